"""Writes variables as the tensors of a folder.

Host memory holds one tensor at a time.
"""

import contextlib
import functools
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from maxfdl.layers.parameter import SUFFIXES, Packing
from maxfdl.model import Model
from maxfdl.tensors.finite import Inspection
from maxfdl.tensors.hugging_face.quantization.formats import Plan
from maxfdl.tensors.layouts import Config
from maxfdl.tensors.matching import their_shapes
from maxfdl.tensors.names import table_of
from maxfdl.tensors.on_disk import Held
from maxfdl.tensors.quantized.gptq import gptq
from maxfdl.tensors.quantized.rounded import Rounded, converted
from maxfdl.tensors.safetensors import SHARD_BYTES, Spec, TensorWriter
from maxfdl.tensors.source import tell
from maxfdl.tensors.table import Slot, bind, leaves_of

Variables = dict[str, Any]


class Moments(Protocol):
    """What kernels multiply: second moments, asked for layer after layer."""

    def __call__(self, name: str) -> np.ndarray:
        """Returns the moment of the kernel `name`."""
        ...

    def keep(self, name: str, values: np.ndarray) -> None:
        """Is told what a kernel is stored as, which later layers see the outputs of."""
        ...


def write_weights(
    folder: pathlib.Path | None,
    model: Model,
    variables: Mapping[str, Any],
    config: Config,
    plan: Plan | None = None,
    shard_bytes: int = SHARD_BYTES,
    allow_non_finite: bool = False,
    moments: Moments | None = None,
) -> None:
    """Writes variables under Hugging Face's names, in the types that they have.

    All processes must call; those that do not write pass no folder.

    Args:
      folder: Where to.
      model: The network.
      variables: Its variables.
      config: The normalised config.json.
      plan: Which weights are stored in few bits.
      shard_bytes: Largest size of a file.
      allow_non_finite: Whether to write weights that are not finite.
      moments: As `write_tensors`.

    Raises:
      UserError: If weights are not finite, unless `allow_non_finite`; those in few bits
        must be in any case.
    """
    specs = specs_of(model, variables, config)
    tensors = _weights(model, variables, config)
    inspection = Inspection(allow_non_finite)
    write_tensors(folder, specs, tensors, plan, inspection, shard_bytes, moments)
    tell(inspection.remarks)


def write_tensors(
    folder: pathlib.Path | None,
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, np.ndarray | Rounded]],
    plan: Plan | None,
    inspection: Inspection,
    shard_bytes: int = SHARD_BYTES,
    moments: Moments | None = None,
) -> None:
    """Writes tensors as they come, those that `plan` names in few bits.

    Args:
      folder: Where to; None only looks at them.
      specs: Shape and type of each, if it were not in few bits.
      tensors: Names and values, of any floating-point type. Those that are rounded
        stay so where `plan` has such numbers by such scales, and no moments are given.
      plan: Which weights are stored in few bits; None: none.
      inspection: Looks at those that are not.
      shard_bytes: Largest size of a file.
      moments: Returns the second moment of what a weight multiplies, by its name, for
        codes that keep its outputs; asked in the order of `tensors`. None: codes are
        the nearest.
    """
    codecs = {} if plan is None else plan.codecs
    stored = dict(specs) if plan is None else plan.specs(specs)
    strict = Inspection(allow_non_finite=False)
    writer = None if folder is None else TensorWriter(folder, stored, shard_bytes)
    with contextlib.nullcontext() if writer is None else writer:
        for name, weight in tensors:
            values = weight.values if isinstance(weight, Rounded) else weight
            codec, dtype = codecs.get(name), specs[name][1]
            (inspection if codec is None else strict).look(name, values, dtype)
            if writer is None:
                continue
            if codec is None:
                parts = {"": values.astype(dtype, copy=False)}
            else:
                if moments is not None:
                    weight = gptq(codec, values, moments(name))
                    moments.keep(name, weight.values)
                kept = codec.exactly(weight) if isinstance(weight, Rounded) else None
                parts = kept or codec.encode(values)
            for part, x in parts.items():
                writer.write(name + part, x)


def specs_of(
    model: Model, variables: Mapping[str, Any], config: Config
) -> dict[str, Spec]:
    """Returns the shape and type of each tensor of Hugging Face."""
    bindings = bind(table_of(config["model_type"]), leaves_of(model))
    dtypes = {
        name: _dtype(model, Held(variables), binding.slots[0])
        for binding in bindings
        for name in binding.theirs
    }
    shapes = their_shapes(bindings, config)
    return {name: (shape, dtypes[name]) for name, shape in shapes.items()}


def _weights(
    model: Model, variables: Mapping[str, Any], config: Config
) -> Iterator[tuple[str, np.ndarray | Rounded]]:
    """Yields what `their_tensors` does, packed kernels as they are rounded."""
    held = Held(variables)
    bindings = bind(table_of(config["model_type"]), leaves_of(model))
    for binding in held.in_order(bindings):
        convert = functools.partial(binding.to_theirs, config=config)
        packed = [_rounded(model, held, slot) for slot in binding.slots]
        kept = [weight for weight in packed if weight is not None]
        if len(kept) == len(packed):
            theirs = converted(convert, kept)
        else:
            theirs = convert([fetch(model, held, slot) for slot in binding.slots])
        yield from zip(binding.theirs, theirs, strict=True)


def their_tensors(
    model: Model, variables: Mapping[str, Any], config: Config
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each tensor of Hugging Face, by name, from a tree like `variables`."""
    for binding in bind(table_of(config["model_type"]), leaves_of(model)):
        ours = [fetch(model, Held(variables), slot) for slot in binding.slots]
        theirs = binding.to_theirs(ours, config)
        yield from zip(binding.theirs, theirs, strict=True)


def fetch(model: Model, held: Held, slot: Slot) -> np.ndarray:
    """Returns the values at a slot, on the host; those of a packed kernel unpacked."""
    rounded = _rounded(model, held, slot)
    if rounded is None:
        return _part(held, slot)
    return rounded.values.astype(_dtype(model, held, slot))


def _rounded(model: Model, held: Held, slot: Slot) -> Rounded | None:
    """Returns the packed kernel at a slot, on the host; None: it is not packed."""
    packing = _packing(model, slot)
    if packing is None:
        return None
    parts = {part: _part(held, slot, suffix) for part, suffix in SUFFIXES.items()}
    return Rounded(*packing.apart(**parts))


def _part(held: Held, slot: Slot, suffix: str = "") -> np.ndarray:
    array, index = held.array(slot, suffix)
    if isinstance(array, np.ndarray):
        return array[index]
    return np.asarray(_take(_everywhere(array))(array, index))


def _dtype(model: Model, held: Held, slot: Slot) -> np.dtype:
    """Returns the type of the values at a slot; of a packed kernel, once unpacked."""
    if _packing(model, slot) is None:
        return np.dtype(held.leaf(slot).dtype)
    return jnp.dtype(slot.declared.dtype or model.network.param_dtype)


def _packing(model: Model, slot: Slot) -> Packing | None:
    if slot.collection != "params":
        return None
    declared: Any = model.parameters()
    for name in slot.path:
        declared = declared[name]
    return declared.packing


@functools.cache
def _take(place: jax.sharding.Sharding | None):
    def take(leaf, index):
        for each in index:
            leaf = lax.dynamic_index_in_dim(leaf, each, keepdims=False)
        return leaf

    return jax.jit(take, out_shardings=place)


def _everywhere(leaf: jax.Array) -> jax.sharding.Sharding | None:
    """Returns the sharding that replicates a part of `leaf` on all devices."""
    if isinstance(leaf.sharding, NamedSharding):
        return NamedSharding(leaf.sharding.mesh, PartitionSpec())
    return None
