"""Values of parameters, packed and unpacked where another model stores them so."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from maxfdl.layers.parameter import SUFFIXES, Packing, Parameter
from maxfdl.ops.codec import Parts


def stored_as(
    parameters: Mapping[str, Any], old: Mapping[str, Any], values: dict[str, Any]
) -> dict[str, Any]:
    """Returns the values of a model as another one stores them, which has the same
    kernels but packs others of them.

    Takes the values out of their dict one by one: memory holds one kernel twice.

    Args:
      parameters: Declarations of the other model.
      old: Those of the values.
      values: Of all parameters.
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
        parts = dict(zip(SUFFIXES, taken, strict=False))
    else:
        (values,) = taken if old.packing is None else [_unpack(old.packing)(*taken)]
        if new.packing is None:
            return {name: values}
        parts = _pack(new.packing)(values)
    return {f"{name}{SUFFIXES[part]}": values for part, values in parts.items()}


@functools.cache
def _pack(packing: Packing) -> Callable[..., Parts]:
    return jax.jit(packing.encode)


@functools.cache
def _unpack(packing: Packing) -> Callable[..., jax.Array]:
    return jax.jit(lambda codes, scales: packing.kernel(codes, scales).unpacked())
