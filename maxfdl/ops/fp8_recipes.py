"""FP8 recipes: where the scales of an FP8 product come from.

A recipe multiplies activations by a kernel, in FP8 in the forward pass and in both
products of the backward pass. The operands of each `dot_general` are FP8 arrays, its
sums are float32. For the backward pass a product keeps the FP8 operands and their
scales, and not what they were made of.

Scales follow from the rows of one call: where a step cuts its batch in microbatches
or replicas, each has scales of its own, unless they come from state.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from maxfdl.ops.channels import Coder, by_channel
from maxfdl.ops.contraction import Contraction, Name
from maxfdl.ops.fp8 import Format, Formats, quantise, rolled, scale_of
from maxfdl.ops.product import State
from maxfdl.ops.recipe import Recipe
from maxfdl.ops.state import Declaration, StateDeclaration

Granularity = Literal["tensor", "channel"]


@dataclasses.dataclass(frozen=True)
class Fp8Current(Formats, Recipe):
    """Scales of the tensors at hand: no state.

    With the granularity `tensor` each tensor has one scale, and each expert's kernel
    one. With `channel` each row of activations and each output of a kernel has a scale
    of its own, see `maxfdl.ops.channels`.

    Gradients are in e4m3 too. Its third bit of mantissa halves the rounding error of
    e5m2, and a scale of the tensor at hand needs no room for what comes: e5m2 is more
    exact only where the greatest gradient is beyond 2**15 times their root mean square.

    Args:
      granularity: Numbers that share a scale.
    """

    gathers_kernel = True

    backward: Format = "e4m3"
    granularity: Granularity = "tensor"

    def multiply(
        self, product: Contraction, x: jax.Array, kernel: jax.Array, state: State
    ) -> tuple[jax.Array, State]:
        if self.granularity == "channel":
            coders = _Channels(self.forward_dtype), _Channels(self.backward_dtype)
            return jnp.asarray(by_channel(*coders, product, x, kernel)), {}
        dtype = self.forward_dtype
        x_scale = scale_of(product.greatest(x, "x", ""), dtype)
        of_kernels = product.greatest(kernel, "kernel", product.each)
        of_kernels = product.whole(of_kernels, product.each)
        scales = jax.lax.stop_gradient((x_scale, scale_of(of_kernels, dtype)))
        return _by_tensor(self, product, x, kernel, scales, None), {}


@dataclasses.dataclass(frozen=True)
class Fp8Delayed(Formats, Recipe):
    """Scales of earlier steps: from the greatest magnitude that a history holds.

    A step scales by `max(history) / max`, and puts what it sees in the history. So a
    tensor is read once; one that grows beyond its history is clipped. Micikevicius et
    al. 2022; the formula and the order of the history are those of Flax's
    `Fp8DotGeneralOp`. A history of zeros, as before the first step, has the scale 1;
    Flax then keeps the last scale that it had. For gradients it has that of a greatest
    one of 1/64: with the scale 1 those of a mean over many tokens are all rounded to 0,
    so that no gradient comes to the layers below, and one product more has a history
    after each step.

    State: the histories of activations, of each kernel, and of the gradient of y, which
    the backward pass leaves. Microbatches and replicas begin with the history from
    before the step and differ in its newest value alone, of which the greatest counts:
    that of the whole batch. Infinities and NaN are not put in it.

    Args:
      history: Steps that it holds.
      margin: Powers of two left free for numbers above the history.
    """

    gathers_kernel = True

    history: int = 1024
    margin: int = 0

    @staticmethod
    def check_config(node):
        if node.history < 1:
            yield f"Fp8Delayed history ({node.history}) must be at least 1 step."
        if not 0 <= node.margin <= 8:
            yield (
                f"Fp8Delayed margin ({node.margin}) must be from 0 to 8 powers of two."
            )

    def declare(self, kernel: Declaration) -> dict[str, StateDeclaration]:
        def amaxes(each: int, **kwargs) -> StateDeclaration:
            shape = (*kernel.shape[:each], self.history)
            axes = (*kernel.axes[:each], "history")
            return StateDeclaration(shape, axes, merge="max", **kwargs)

        return {
            "x_amax": amaxes(0),
            "kernel_amax": amaxes(kernel.batched),
            "dy_amax": amaxes(0, backward=True),
        }

    def multiply(
        self, product: Contraction, x: jax.Array, kernel: jax.Array, state: State
    ) -> tuple[jax.Array, State]:
        seen = {
            "x_amax": product.greatest(x, "x", ""),
            "kernel_amax": product.whole(
                product.greatest(kernel, "kernel", product.each), product.each
            ),
        }
        scales = tuple(self.scale(state[name], self.forward_dtype) for name in seen)
        y = _by_tensor(self, product, x, kernel, scales, state["dy_amax"])
        return jnp.asarray(y), {
            name: rolled(state[name], amax) for name, amax in seen.items()
        }

    def scale(self, history: jax.Array, dtype) -> jax.Array:
        return scale_of(jnp.max(history, axis=-1), dtype, self.margin)

    def scale_of_gradient(self, history: jax.Array) -> jax.Array:
        amax = jnp.max(history)
        amax = jnp.where(amax > 0, amax, FIRST_GRADIENT)
        return scale_of(amax, self.backward_dtype, self.margin)


FIRST_GRADIENT = 2.0**-6
"""Magnitude for which gradients are scaled before any was seen.

In e5m2 it leaves numbers down to 1.5e-11 all bits: gradients of means over a hundred to
ten million tokens lie between.
"""


# Scales of whole tensors are factors of the result.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_tensor(recipe, product, x, kernel, scales, dy_history):
    """The product by given scales, of x and of each kernel.

    The gradient is scaled by `dy_history`, whose gradient is the history with what is
    seen; without one by what is seen.
    """
    return _by_tensor_forward(recipe, product, x, kernel, scales, dy_history)[0]


def _by_tensor_forward(recipe, product, x, kernel, scales, dy_history):
    x_scale, kernel_scale = scales
    of_kernels = product.spread(kernel_scale, product.each, "kernel")
    x = quantise(x, x_scale, recipe.forward_dtype)
    kernel = quantise(kernel, of_kernels, recipe.forward_dtype)
    y = product.product("y", x, product.gathered(kernel))
    y = y * (x_scale * product.spread(kernel_scale, product.each, "y"))
    return y, (product, x, kernel, scales, dy_history)


def _by_tensor_backward(recipe, saved, dy):
    product, x, kernel, (x_scale, kernel_scale), dy_history = saved
    seen, dtype = product.greatest(dy, "y", ""), recipe.backward_dtype
    if dy_history is None:
        scale, history = scale_of(seen, dtype), None
    else:
        scale = recipe.scale_of_gradient(dy_history)
        history = rolled(dy_history, seen)
    dy = quantise(dy, scale, dtype)
    dx = product.product("x", dy, product.gathered(kernel))
    dx = dx * (product.spread(kernel_scale, product.each, "x") * scale)
    dkernel = product.product("kernel", x, dy) * (x_scale * scale)
    return None, dx, product.cut(dkernel), None, history


_by_tensor.defvjp(_by_tensor_forward, _by_tensor_backward)


@dataclasses.dataclass(frozen=True)
class _Channels(Coder):
    """FP8 numbers of one type, as large as they can be by their scale."""

    dtype: Any

    def encode(
        self, product: Contraction, a: jax.Array, name: Name, kept: str
    ) -> tuple[jax.Array, jax.Array]:
        scale = scale_of(product.greatest(a, name, kept), self.dtype)
        return quantise(a, product.spread(scale, kept, name), self.dtype), scale
