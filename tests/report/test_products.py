"""What the matrix products of a graph are computed in."""

from experiments import zoo_smoke
from maxfdl.mutations import enable_fp8, to_linen
from maxfdl.report.products import products_of, products_text

CHANNEL = "Fp8Current(forward=e4m3, backward=e4m3, fnuz=False, granularity=channel)"
DELAYED = "Fp8Delayed(forward=e4m3, backward=e5m2, fnuz=False, history=1024, margin=0)"


def test_each_way_has_the_layers_that_use_it_in_both_families():
    config = enable_fp8(
        zoo_smoke.experiment("mixtral"), granularity="channel", only=("attention",)
    )
    config = enable_fp8(config, recipe="delayed", only=("**.experts.up",))
    experts = "decoder.stacks[0].layers[0].mlp.experts"
    for each in (config, to_linen(config)):
        found = products_of(each)
        assert len(found.pop(CHANNEL)) == 4
        assert found == {
            "float32": [f"{experts}.gate", f"{experts}.down", "head"],
            DELAYED: [f"{experts}.up"],
        }


def test_what_the_ends_of_the_decoder_have_is_said():
    config = zoo_smoke.experiment("llama2")
    config = enable_fp8(config, granularity="channel", first_layers=2, last_layers=1)
    way, plain = products_of(config)
    assert way == f"{CHANNEL} but the first 2 layers and the last layer in float32"
    assert plain == "float32"


def test_few_layers_are_named():
    many = ["a.query", "a.key", "a.value"]
    assert products_text({"Int8()": many, "bfloat16": ["head"]}) == (
        "3 in Int8(), 1 in bfloat16 (head)"
    )
