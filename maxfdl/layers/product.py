"""Products of activations with the kernel of a layer, which may keep state."""

from typing import Any

import jax

from maxfdl.layers.context import Context
from maxfdl.layers.layer import Maker
from maxfdl.layers.parameter import Parameter
from maxfdl.ops.dot import MatrixProduct
from maxfdl.ops.grouped_dot import GroupedProduct


def make_kernel(
    maker: Maker, dot: MatrixProduct | GroupedProduct, kernel: Parameter
) -> None:
    """Makes the part `kernel`, and one for each state that its product keeps."""
    maker.parameter("kernel", kernel)
    for name, declaration in dot.declare(kernel).items():
        maker.state(_part(name), declaration)


def multiply(
    dot: MatrixProduct | GroupedProduct,
    parts: Any,
    x: jax.Array,
    context: Context,
    *args: Any,
    **kwargs: Any,
) -> jax.Array:
    """Returns the product of `x` with the part `kernel`, and keeps its new state.

    Further arguments are those that the product takes after its state.
    """
    names = dot.declare(parts.kernel.declared)
    cells = {name: getattr(parts, _part(name)) for name in names}
    state = {name: cell.read() for name, cell in cells.items()}
    y, new = dot(x, parts.kernel.ready(context, x.dtype), state, *args, **kwargs)
    for name, value in new.items():
        cells[name].write(value)
    return y


def _part(name: str) -> str:
    return f"dot_{name}"
