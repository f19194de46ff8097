"""Values of parameters, packed and unpacked where another model stores them so."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from maxfdl.layers.on_disk import OnDisk, in_memory
from maxfdl.layers.parameter import SUFFIXES, Packing, Parameter
from maxfdl.ops.codec import Parts


def stored_as(
    parameters: Mapping[str, Any], old: Mapping[str, Any], values: dict[str, Any]
) -> dict[str, Any]:
    """Returns the values of a model as another one stores them, which has the same
    kernels but packs others of them.

    Takes the values out of their dict one by one: memory holds one kernel twice. Of a
    kernel that is on disk, and packed here, it holds one layer at a time.

    Args:
      parameters: Declarations of the other model.
      old: Those of the values.
      values: Of all parameters; some may be `OnDisk`.
    """
    result: dict[str, Any] = {}
    for name, declared in parameters.items():
        if not isinstance(declared, Parameter):
            result[name] = stored_as(declared, old[name], values.pop(name))
        elif declared.packing is None or declared.packing.part == "codes":
            given = [f"{name}{suffix}" for suffix in SUFFIXES.values()]
            taken = [values.pop(each) for each in given if each in values]
            result |= _repacked(name, declared, old[name], taken)
    return result


def _repacked(
    name: str, new: Parameter, old: Parameter, taken: list[Any]
) -> dict[str, Any]:
    if new.packing == old.packing:
        parts = dict(zip(SUFFIXES, map(in_memory, taken), strict=False))
    elif new.packing is None:
        return {name: _unpack(old.packing)(*map(in_memory, taken))}
    elif old.packing is None:
        (values,) = taken
        parts = _packed_from(values, new.packing)
    else:
        whole = _unpack(old.packing)(*map(in_memory, taken))
        parts = _pack(new.packing)(whole)
    return {f"{name}{SUFFIXES[part]}": values for part, values in parts.items()}


def _packed_from(values: Any, packing: Packing) -> Parts:
    """Returns the parts of a kernel, read a layer at a time if it is on disk so."""
    if not isinstance(values, OnDisk) or values.read_part is None:
        return _pack(packing)(in_memory(values))
    each = [
        _pack(packing)(jnp.asarray(values.read_part(i))) for i in range(values.shape[0])
    ]
    return {part: jnp.stack([one[part] for one in each]) for part in each[0]}


@functools.cache
def _pack(packing: Packing) -> Callable[..., Parts]:
    return jax.jit(packing.encode)


@functools.cache
def _unpack(packing: Packing) -> Callable[..., jax.Array]:
    return jax.jit(lambda codes, scales: packing.kernel(codes, scales).unpacked())
