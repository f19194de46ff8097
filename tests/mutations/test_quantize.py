"""Which products run in int8, and that they do so in the program of a step."""

import fiddle as fdl
import jax
import pytest
from jax.extend.core import jaxprs_in_params

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.errors import ConfigError, MutationError
from maxfdl.mutations import disable_fp8, enable_fp8, multi_token_prediction, quantize
from maxfdl.mutations.products import is_matrix_product
from maxfdl.report.modules import modules_of
from maxfdl.train.program import Program


def recipes(config):
    """The recipe of each product, by the layer that holds it; None: plain."""
    products = [
        (path.removesuffix(".dot"), node)
        for path, node in graph.iterate(config.model)
        if path and is_matrix_product(node)
    ]
    return {
        path: fdl.get_callable(node.recipe).__name__ if "recipe" in dir(node) else None
        for path, node in products
    }


def test_all_products_but_those_of_heads_have_the_recipe_of_the_format():
    config = zoo_smoke.experiment("mixtral")
    found = recipes(quantize(config))
    assert found.pop("head") is None and set(found.values()) == {"Int8"}
    only = recipes(quantize(config, only=("experts",)))
    assert {path.split(".")[-2] for path in only if only[path]} == {"experts"}


def test_formats_go_together_and_the_later_of_two_wins():
    config = zoo_smoke.experiment("mixtral")
    both = quantize(enable_fp8(config, recipe="delayed"), only=("attention",))
    assert set(recipes(both).values()) == {"Int8", "Fp8Delayed", None}
    assert quantize(enable_fp8(config)) == quantize(config)
    assert enable_fp8(quantize(config)) == enable_fp8(config)


def test_without_a_format_products_are_plain_again_all_or_those_named():
    config = zoo_smoke.experiment("mixtral")
    everywhere = quantize(quantize(config), only=("head",))
    assert quantize(everywhere, format="none") == config
    assert disable_fp8(everywhere) == config
    some = quantize(everywhere, format="none", only=("head", "experts"))
    assert some == quantize(config, skip=("experts",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "int9"}, "quantize format .'int9'. must be one of int8"),
        (
            {"only": ("expert",)},
            r"quantize \[expert\] must match the path of a product",
        ),
        (
            {"exponents": "up"},
            "format int8 has no exponents; it has backward, rounding",
        ),
        ({"format": "mxfp4", "backward": True}, "mxfp4 has no backward; it has expon"),
        ({"format": "nvfp4", "exponents": "up"}, "has no exponents; it has no such"),
        (
            {"format": "none", "backward": True},
            "format none leaves products as they are, without backward",
        ),
    ],
)
def test_what_it_cannot_do_is_said(arguments, message):
    with pytest.raises(MutationError, match=message):
        quantize(zoo_smoke.experiment("mixtral"), **arguments)


def test_rounding_of_gradients_that_are_not_rounded_is_refused():
    config = quantize(zoo_smoke.experiment("llama2"), rounding="stochastic")
    with pytest.raises(ConfigError, match="Int8 rounding .* set backward=True"):
        graph.validate(config)


PASSES = {False: 1, True: 3}
"""Products of a projection in int8, by `backward`; the others are in float32."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "backward"),
    [
        ("deepseek_v3", True),
        pytest.param("llama2", True, marks=pytest.mark.exhaustive),
        pytest.param("mixtral", False, marks=pytest.mark.exhaustive),
        pytest.param("qwen3_next", True, marks=pytest.mark.exhaustive),
    ],
)
def test_every_product_that_it_names_has_int8_operands(family, backward):
    config = multi_token_prediction(zoo_smoke.experiment(family), depth=1)
    int8 = quantize(config, backward=backward)
    named = sum(
        "recipe=Int8" in m.fields.get("dot", "") for m in modules_of(int8.model)
    )
    assert named and operands(int8).count("int8") == PASSES[backward] * named
    assert len(operands(int8)) == len(operands(config))
    assert "int8" not in operands(config)


def operands(config):
    """Types of the operands of all products of a training step."""
    experiment = graph.build(config)
    trainer = experiment.make_trainer(experiment.make_sharding(jax.devices()[:1]))
    program = Program(trainer, experiment.batch_size, experiment.sequence_length)
    step = jax.make_jaxpr(trainer.step)
    traced = step(program.abstract_state(), program.abstract_batch())
    return [*_operands(traced.jaxpr)]


def _operands(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "ragged_dot_general"):
            types = {variable.aval.dtype.name for variable in equation.invars[:2]}
            yield types.pop() if len(types) == 1 else types
        for inner in jaxprs_in_params(equation.params):
            yield from _operands(inner)
