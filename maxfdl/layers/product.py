"""Products of activations with the kernel of a layer, which may keep state.

The kernel is one parameter, `kernel`, or packed in two: codes and scales.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from maxfdl.layers.context import Context
from maxfdl.layers.layer import Maker, Weight
from maxfdl.layers.parameter import SUFFIXES, Parameter, packed
from maxfdl.ops.codec import Codec, PackedKernel, Simulated
from maxfdl.ops.grouped_dot import GroupedProduct
from maxfdl.ops.product import Product


def make_kernel(
    maker: Maker,
    dot: Product,
    kernel: Parameter,
    storage: Codec | Simulated | None = None,
) -> None:
    """Makes the part `kernel`, and one for each state that its product keeps.

    With a codec as `storage` it makes those of the packed kernel, which are not
    trained.
    """
    if storage is None:
        maker.parameter("kernel", kernel)
    elif isinstance(storage, Simulated):
        trained_for = dataclasses.replace(kernel, simulates=storage.codec)
        maker.parameter("kernel", trained_for)
    else:
        for part, declaration in packed(kernel, storage).items():
            maker.parameter(f"kernel{SUFFIXES[part]}", declaration)
    for name, declaration in dot.declare(kernel).items():
        maker.state(_part(name), declaration)


def multiply(
    dot: Product,
    parts: Any,
    x: jax.Array,
    context: Context,
    *args: Any,
    **kwargs: Any,
) -> jax.Array:
    """Returns the product of `x` with the part `kernel`, and keeps its new state.

    Further arguments are those that the product takes after its state.
    """
    dot = dot.at(context.depth)
    declared = parts.kernel.declared.whole
    cells = {name: getattr(parts, _part(name)) for name in dot.declare(declared)}
    state = {name: cell.read() for name, cell in cells.items()}
    gather = context.gather_of(declared.axes)
    is_packed = parts.kernel.declared.packing is not None
    if not is_packed and gather is not None and dot.gathers_kernel():
        if parts.kernel.declared.simulates is None:
            kernel, kwargs["gather"] = parts.kernel.cut(x.dtype), gather
        else:
            kernel = parts.kernel.ready(context, x.dtype)
            kwargs["gather"] = gather.done()
        y, new = dot(x, kernel, state, *args, **kwargs)
    elif not is_packed:
        kernel = parts.kernel.ready(context, x.dtype)
        y, new = dot(x, kernel, state, *args, **kwargs)
    else:

        def product(x: jax.Array, kernel: PackedKernel, state: Any) -> Any:
            if gather is None:
                return dot.of_packed(x, kernel, state, *args, **kwargs)
            if isinstance(dot, GroupedProduct):
                kwargs["gather"] = gather.done()
            return dot(x, kernel.unpacked(x.dtype), state, *args, **kwargs)

        # The backward pass keeps what is stored and unpacks it again.
        gathered = packed_kernel(parts, lambda weight: weight.ready(context))
        y, new = jax.checkpoint(product)(x, gathered, state)
    for name, value in new.items():
        cells[name].write(value)
    return y


def packed_kernel(parts: Any, value_of: Callable[[Weight], jax.Array]) -> PackedKernel:
    """Returns the packed kernel of a layer, of `value_of` each of its parts."""
    values = {
        part: value_of(getattr(parts, f"kernel{suffix}"))
        for part, suffix in SUFFIXES.items()
    }
    return parts.kernel.declared.packing.kernel(**values)


def _part(name: str) -> str:
    return f"dot_{name}"
