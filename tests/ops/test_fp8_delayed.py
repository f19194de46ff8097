"""Delayed scaling against Flax's own FP8 products, step by step."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import fp8_ops

from maxfdl.layers.parameter import Parameter
from maxfdl.ops.fp8 import scale_of
from maxfdl.ops.fp8_recipes import FIRST_GRADIENT, Fp8Delayed
from maxfdl.ops.initializers import Constant
from maxfdl.ops.quantized_dot import QuantizedDot, QuantizedGroupedDot

HISTORY, STEPS = 3, 6
OF_FLAX = {
    "x_amax": "input_amax_history",
    "kernel_amax": "kernel_amax_history",
    "dy_amax": "output_grad_amax_history",
}
DIMS = (((2,), (0,)), ((), ()))


def tensors(step):
    """Those of one step, which grow and shrink, with steps of zeros among them."""
    rng = np.random.default_rng(step)
    size = [1.0, 30.0, 1e-3, 1.0, 0.0, 5.0][step]
    return [
        jnp.asarray(rng.normal(size=shape) * factor, jnp.float32)
        for shape, factor in (((2, 5, 6), size), ((6, 7), 1.0), ((2, 5, 7), size / 512))
    ]


@jax.jit
def ours(x, kernel, dy, state):
    dot = QuantizedDot(Fp8Delayed(history=HISTORY))

    def product(x, kernel, dy_amax):
        return dot(x, kernel, {**state, "dy_amax": dy_amax})

    y, pull, new = jax.vjp(product, x, kernel, state["dy_amax"], has_aux=True)
    dx, dkernel, dy_amax = pull(dy)
    return (y, dx, dkernel), {**new, "dy_amax": dy_amax}


def of_flax(op):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = op(amax_history_length=HISTORY)

    def product(variables, x, kernel):
        return module.apply(variables, x, kernel, DIMS)

    def step(x, kernel, dy, variables):
        y, pull = jax.vjp(product, variables, x, kernel)
        variables, dx, dkernel = pull(dy)
        return (y, dx, dkernel), variables

    def first():
        return module.init(jax.random.key(0), *tensors(0)[:2], DIMS)

    return first, jax.jit(step)


@pytest.mark.filterwarnings("ignore:The Fp8DotGeneralOp is deprecated")
@pytest.mark.parametrize(
    ("op", "bitwise"),
    [
        (fp8_ops.Fp8DirectDotGeneralOp, True),
        # It multiplies numbers that are scaled back, and so rounds before it adds up.
        (fp8_ops.Fp8DotGeneralOp, False),
    ],
)
def test_scales_histories_and_products_are_those_of_flax_at_each_step(op, bitwise):
    first, step = of_flax(op)
    variables = first()
    # Where Flax has no history it keeps the scale it had: here that of ours.
    scale = scale_of(jnp.array(FIRST_GRADIENT), jnp.float8_e5m2)
    variables["_overwrite_with_gradient"]["output_grad_scale"] = scale[None]
    state = {name: jnp.zeros(HISTORY) for name in OF_FLAX}
    for i in range(STEPS):
        here, state = ours(*tensors(i), state)
        there, variables = step(*tensors(i), variables)
        for name, of_flax_ in OF_FLAX.items():
            expected = variables["_overwrite_with_gradient"][of_flax_]
            np.testing.assert_array_equal(state[name], expected)
        for got, wanted in zip(here, there, strict=True):
            if bitwise:
                np.testing.assert_array_equal(got, wanted)
            else:
                atol = 5e-7 * np.max(np.abs(wanted))
                np.testing.assert_allclose(got, wanted, rtol=0, atol=atol)


def test_a_step_that_overflows_leaves_its_histories_finite():
    state = {name: jnp.full(HISTORY, 2.0) for name in OF_FLAX}
    x, kernel, dy = tensors(0)
    x, dy = x.at[0, 0, 0].set(jnp.inf), dy.at[0, 0, 0].set(jnp.nan)
    (y, _, _), state = ours(x, kernel, dy, state)
    assert np.all(np.isnan(y[0, 0])) and np.all(np.isfinite(y[1]))
    for history in state.values():
        assert np.all(np.isfinite(history)) and history[0] not in (0.0, 2.0)


def test_each_kernel_of_a_group_has_a_history_of_its_own():
    kernel = Parameter(
        (4, 6, 3),
        ("experts", "embed", "expert_mlp"),
        Constant(),
        "kernel",
        contracted=1,
        batched=1,
    )
    dot = QuantizedGroupedDot(Fp8Delayed(history=2))
    declared = dot.declare(kernel)
    assert declared["kernel_amax"].shape == (4, 2)
    assert declared["kernel_amax"].axes == ("experts", "history")
    state = {name: each.first() for name, each in declared.items()}
    kernels = jnp.arange(1.0, 5.0)[:, None, None] * jnp.ones((4, 6, 3))
    _, new = dot(jnp.ones((5, 6)), kernels, state, jnp.array([2, 0, 3, 0]))
    np.testing.assert_array_equal(new["kernel_amax"][:, 0], [1.0, 2.0, 3.0, 4.0])
    assert new["x_amax"][0] == 1.0
