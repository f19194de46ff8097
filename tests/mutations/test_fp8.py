"""Which products run in FP8, and that they do so in the program of a training step."""

import functools
import re

import fiddle as fdl
import jax
import pytest

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.errors import ConfigError, MutationError
from maxfdl.mutations import (
    compute_dtype,
    disable_fp8,
    enable_fp8,
    multi_token_prediction,
    quantize,
)
from maxfdl.mutations.products import is_matrix_product
from maxfdl.ops.fp8_recipes import Fp8Current
from maxfdl.ops.grouped_dot import GroupedProduct
from maxfdl.ops.quantized_dot import QuantizedDot, QuantizedGroupedDot
from maxfdl.report.modules import modules_of
from maxfdl.train.program import Program
from tests.mutations.cases import CASES, apply

FP8 = (QuantizedDot, QuantizedGroupedDot)


def with_tokens_beyond(family):
    return multi_token_prediction(zoo_smoke.experiment(family), depth=1)


def in_fp8(config):
    """Paths of the layers whose product is in FP8, from the network on."""
    products = graph.nodes_of(config, is_matrix_product)
    paths = {id(node): path for path, node in graph.iterate(config.model)}
    return [
        paths[id(node)].removesuffix(".dot")
        for node in products
        if fdl.get_callable(node) in FP8
    ]


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("llama2", ("query", "key", "value", "out", "gate", "up", "down")),
        ("deepseek_v3", ("query.down", "query.up", "latent", "rope_key", "experts.up")),
        ("qwen3_next", ("decay", "output_gate", "shared_gate", "experts.down")),
    ],
)
def test_all_products_but_those_of_heads_run_in_fp8(family, kinds):
    config = enable_fp8(with_tokens_beyond(family))
    found = in_fp8(config)
    products = graph.nodes_of(config.model, is_matrix_product)
    heads = len(graph.nodes_of(config.model.head, is_matrix_product))
    assert len(found) == len(products) - heads
    for kind in (*kinds, "later_token.projection"):
        assert any(path.endswith(kind) for path in found), kind


def test_roles_and_paths_select_products():
    config = with_tokens_beyond("deepseek_v3")
    everything = in_fp8(enable_fp8(config))

    def selects(*expected, **arguments):
        wanted = [p for p in everything if any(re.search(e, p) for e in expected)]
        assert in_fp8(enable_fp8(config, **arguments)) == wanted and wanted

    selects("attention", "projection", only=("attention",))
    selects("attention", "projection", only=("latent_attention",))
    selects(r"experts\.", only=("experts",))
    selects(r"mlp\.(gate|up|down)", "shared", only=("mlp",))
    selects("later_token", only=("later_token",))
    selects(r"attention\.out", only=("**.attention.out",))
    selects(
        r"attention\.(query|latent|rope|key|value)",
        "projection",
        only=("attention",),
        skip=("**.out",),
    )
    selects(r"stacks\[1\].*experts", only=("decoder.stacks[1].layers[*].mlp.experts",))


def test_what_is_not_selected_stays_so_that_two_recipes_go_together():
    config = enable_fp8(
        zoo_smoke.experiment("mixtral"), recipe="delayed", only=("experts",)
    )
    both = enable_fp8(config, granularity="channel", only=("attention",))
    recipes = {
        p.split(".")[-2]: dict(graph.iterate(both.model))[f"{p}.dot"]
        for p in in_fp8(both)
    }
    assert {k: fdl.get_callable(v.recipe).__name__ for k, v in recipes.items()} == {
        "attention": "Fp8Current",
        "experts": "Fp8Delayed",
    }
    assert disable_fp8(both) == zoo_smoke.experiment("mixtral")


CALLS = (
    "enable_fp8(only=('attention',))",
    "enable_fp8(first_layers=1, last_layers=1)",
    "enable_fp8(skip=('attention',))",
    "enable_fp8(only=('experts',))",
    "enable_fp8(only=('head',), recipe=block)",
    "enable_fp8(only=('**.attention.out',), recipe=delayed)",
)


@pytest.mark.parametrize(
    ("family", "call"),
    [
        pytest.param("deepseek_v3", call, marks=[pytest.mark.slow] * (i > 1))
        for i, call in enumerate(CALLS)
    ]
    + [pytest.param("mixtral", CALLS[2], marks=pytest.mark.slow)],
)
def test_a_selection_commutes_with_every_mutation(family, call):
    config = zoo_smoke.experiment(family)
    selected = apply(config, call)
    for name, case in CASES.items():
        if case.decides not in ("products", "text"):
            both = apply(selected, case.call)
            assert graph.diff(both, apply(config, case.call, call)) == [], name


def test_the_ends_of_the_decoder_keep_the_products_that_they_had():
    config = zoo_smoke.experiment("deepseek_v3")
    ends = dict(first_layers=1, last_layers=1)
    once = enable_fp8(config, **ends)
    for node in graph.nodes_of(once.model.decoder, is_matrix_product):
        assert (node.ends.first, node.ends.last) == (1, 1) and node.ends_recipe is None
    assert graph.diff(enable_fp8(once, **ends), once) == []
    assert graph.diff(disable_fp8(once), config) == []
    # Another format goes between the same ends, or takes them too.
    inside = quantize(once, format="mxfp8", **ends)
    assert graph.diff(inside, quantize(config, format="mxfp8", **ends)) == []
    assert graph.diff(enable_fp8(once), enable_fp8(config)) == []
    in_fp8_at_ends = quantize(enable_fp8(config), format="mxfp8", **ends)
    product = graph.nodes_of(in_fp8_at_ends.model.decoder, is_matrix_product)[0]
    assert fdl.get_callable(product.ends_recipe) is Fp8Current
    with pytest.raises(
        MutationError, match=r"first_layers \(2\) and last_layers \(0\)"
    ):
        enable_fp8(once, first_layers=2)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (
            {"first_layers": 1, "last_layers": 40},
            "must leave a layer between them, of the",
        ),
        ({"last_layers": -1}, r"last \(-1\) must not be negative"),
    ],
)
def test_ends_that_cannot_be_are_refused(ends, message):
    config = enable_fp8(zoo_smoke.experiment("deepseek_v3"), **ends)
    with pytest.raises(ConfigError, match=message):
        graph.validate(config)


def test_two_recipes_that_keep_state_do_not_share_a_stack():
    config = zoo_smoke.experiment("llama2")
    for history, ends in ((2, {}), (4, {"first_layers": 1})):
        config = enable_fp8(config, recipe="delayed", history=history, **ends)
    with pytest.raises(ConfigError, match="must not both keep state between steps"):
        graph.validate(config)


def test_a_head_runs_in_fp8_if_it_is_named():
    config = zoo_smoke.experiment("llama2")
    assert in_fp8(enable_fp8(config, only=("head",))) == ["head"]
    assert "head" not in in_fp8(enable_fp8(config, only=("**",)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"only": ("experts",)},
            r"\[experts\] must match the path of a product, or be one",
        ),
        ({"only": ("atention",)}, "Did you mean 'attention'"),
        (
            {"skip": ("decoder.stacks[7]",)},
            r"\[decoder.stacks\[7\]\] must match the path",
        ),
        ({"only": ("mlp",), "skip": ("mlp",)}, "is left no product"),
        (
            {"recipe": "delaid"},
            "recipe .'delaid'. must be one of current, delayed",
        ),
        (
            {"history": 4},
            "recipe current has no history; it has forward, backw",
        ),
        ({"under": "teacher"}, "must be the path of a network of this graph"),
    ],
)
def test_what_it_cannot_do_is_said(arguments, message):
    with pytest.raises(MutationError, match=message):
        enable_fp8(zoo_smoke.experiment("llama2"), **arguments)


def test_one_node_that_makes_several_products_is_taken_whole_or_not():
    config = zoo_smoke.experiment("deepseek_v3")  # two stacks share their attention
    with pytest.raises(MutationError, match="without all of .* one node of the graph"):
        enable_fp8(config, skip=("decoder.stacks[0].layers[0].attention",))


@pytest.mark.parametrize("family", ["llama2", "llama3"])  # own and tied
def test_a_head_whose_product_would_keep_state_is_refused(family):
    config = enable_fp8(
        zoo_smoke.experiment(family), recipe="delayed", only=("head", "mlp")
    )
    with pytest.raises(
        ConfigError, match=r"Head dot.recipe \(Fp8Delayed\) must be one"
    ):
        graph.validate(config)
    graph.validate(enable_fp8(config, recipe="block", only=("head",)))


@pytest.mark.parametrize(("field", "value"), [("history", 0), ("margin", -1)])
def test_a_history_and_a_margin_that_cannot_be_are_refused(field, value):
    config = enable_fp8(
        zoo_smoke.experiment("llama2"), recipe="delayed", **{field: value}
    )
    with pytest.raises(ConfigError, match=f"Fp8Delayed {field} .{value}. must be"):
        graph.validate(config)


def lowered(config, platform):
    """The text of a training step, as it is given to XLA."""
    config = graph.copy(config)
    for node in graph.nodes_of(config.model, is_matrix_product):
        if issubclass(fdl.get_callable(node), GroupedProduct):
            node.implementation = "ragged"  # what `auto` is on accelerators
    experiment = graph.build(config)
    trainer = experiment.make_trainer(experiment.make_sharding(jax.devices()[:1]))
    program = Program(trainer, experiment.batch_size, experiment.sequence_length)
    step = jax.jit(trainer.step)
    traced = step.trace(program.abstract_state(), program.abstract_batch())
    return traced.lower(lowering_platforms=(platform,)).as_text()


_OPERANDS = re.compile(
    r"(?:stablehlo\.dot_general|chlo\.ragged_dot).*: "
    r"\(tensor<(?:\d+x)*([a-z]\w*)>, tensor<(?:\d+x)*([a-z]\w*)>"
)


_PRODUCT = re.compile(
    r"(%\w+) = stablehlo\.dot_general .*"
    r"xf8(\w+)>, tensor<.*xf8(\w+)>\) -> tensor<(?:\d+x)*(\w+)>"
)


def assert_cublas_takes(text):
    """The form that XLA's `gemm_rewriter` turns into one call of cuBLASLt: two FP8
    operands, not both e5m2, a wider result, and that multiplied by one number."""
    products = list(_PRODUCT.finditer(text))
    for product in products:
        y, *operands, result = product.groups()
        assert result == "f32" and "E4M3FN" in operands
        after = text[product.end() :]
        if moved := re.match(rf"\s+(%\w+) = stablehlo.transpose {y}\b.*", after):
            y, after = moved.group(1), after[moved.end() :]
        scaled = re.search(rf"= stablehlo.multiply {y}, (%\w+) :", after)
        assert scaled and len(re.findall(rf"{y}\b", after.split("func.func")[0])) == 1
        scale = rf"{scaled.group(1)} = stablehlo.broadcast_in_dim %\w+, dims = \[\]"
        assert re.search(scale, after[: scaled.start()])
    return len(products)


def products_in(text):
    """How many products have FP8 operands, and how many have others."""
    operands = _OPERANDS.findall(text)
    fp8 = [a.startswith("f8") and b.startswith("f8") for a, b in operands]
    return sum(fp8), len(fp8) - sum(fp8)


SCALARS = ({}, {"recipe": "delayed"})
"""Recipes with one scale for each operand of a dense product."""
IN_PROGRAMS = [
    pytest.param(
        family,
        arguments,
        marks=()
        if (family, len(arguments)) == ("deepseek_v3", 0)
        else pytest.mark.slow,
        id=f"{family}-{'-'.join(arguments.values())}",
    )
    for family in ("deepseek_v3", "llama2", "mixtral", "qwen3_next")
    for arguments in (
        {},
        {"granularity": "channel"},
        {"recipe": "delayed"},
        {"recipe": "block"},
    )
]


def in_bfloat16(family):
    return compute_dtype(with_tokens_beyond(family), dtype="bfloat16")


@functools.cache
def plain_products_in(family):
    return products_in(lowered(in_bfloat16(family), "cuda"))


@pytest.mark.parametrize(("family", "arguments"), IN_PROGRAMS)
def test_every_product_that_it_names_has_fp8_operands_in_all_three_passes(
    family, arguments
):
    plain = plain_products_in(family)
    assert plain[0] == 0
    fp8 = enable_fp8(in_bfloat16(family), **arguments)
    # A module of a stack stands once in the program, for its layers are in a loop.
    named = sum("recipe=Fp8" in m.fields.get("dot", "") for m in modules_of(fp8.model))
    text = lowered(fp8, "cuda")
    assert products_in(text) == (3 * named, plain[1] - 3 * named) and named
    if arguments in SCALARS:
        grouped = len(re.findall('"chlo.ragged_dot"', text))
        assert assert_cublas_takes(text) == 3 * named - grouped
