"""Layouts: how the values of tensors in a checkpoint are arranged in our parameters.

"Theirs" are tensors of the checkpoint, "ours" arrays of the model. Ours is what a
`Declaration` says: kernels are [*batch, *inputs, *outputs]. Theirs, unless a layout
says otherwise, follows from that: torch's Linear keeps [outputs, inputs], each
flattened into one dim, and vectors are flat.

A layout goes both ways: `to_ours(theirs, declared, config)` and `to_theirs(ours,
declared, config)`, where `declared` has the declaration of each of ours and `config` is
the normalised config.json. Only shapes are changed, never values, so both ways
together are the identity. They work on NumPy arrays and on abstract JAX ones.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from maxfdl.ops.state import Declaration

Arrays = list[Any]
Declared = Sequence[Declaration]
Config = Mapping[str, Any]


class Layout:
    """Base: converts between theirs and ours.

    `transposed` says whether theirs are [outputs, inputs], as those of torch's Linear.
    """

    transposed: bool = False

    def to_ours(self, theirs: Arrays, declared: Declared, config: Config) -> Arrays:
        raise NotImplementedError

    def to_theirs(self, ours: Arrays, declared: Declared, config: Config) -> Arrays:
        raise NotImplementedError

    def of_moment(self, order: int) -> "Layout":
        """Returns the layout of an optimizer's moments: first (1) or second (2)."""
        return self


@dataclasses.dataclass(frozen=True)
class AsDeclared(Layout):
    """One of theirs is one of ours: kernels are [outputs, inputs], the rest is flat.

    Args:
      transposed: False where their kernels are [inputs, outputs], as ours are.
    """

    transposed: bool = True

    def to_ours(self, theirs, declared, config):
        pairs = zip(theirs, declared, strict=True)
        return [self._from_flat(x, parameter) for x, parameter in pairs]

    def to_theirs(self, ours, declared, config):
        pairs = zip(ours, declared, strict=True)
        return [self._flat(x, parameter) for x, parameter in pairs]

    def _from_flat(self, x, parameter):
        if parameter.contracted and self.transposed:
            x = x.swapaxes(-1, -2)
        return x.reshape(parameter.shape)

    def _flat(self, x, parameter):
        x = x.reshape(flat_shape(parameter))
        return x.swapaxes(-1, -2) if parameter.contracted and self.transposed else x


def flat_shape(parameter: Declaration) -> tuple[int, ...]:
    """Returns [*batch, inputs, outputs] of a kernel, [*batch, all] of a vector."""
    if parameter.role == "embedding":
        return parameter.shape
    batch = parameter.shape[: parameter.batched]
    rest = parameter.shape[parameter.batched :]
    inputs, outputs = rest[: parameter.contracted], rest[parameter.contracted :]
    if not parameter.contracted:
        return (*batch, math.prod(rest))
    return (*batch, math.prod(inputs), math.prod(outputs))


@dataclasses.dataclass(frozen=True)
class Fused(Layout):
    """One of theirs is several of ours, concatenated along their outputs.

    Args:
      groups: Key of config.json that says in how many groups the outputs come, such
        as heads: [group 0 of the first, group 0 of the second, ..., group 1 of the
        first, ...]. None: one.
      transposed: As `AsDeclared`.
    """

    groups: str | None = None
    transposed: bool = True

    def to_ours(self, theirs, declared, config):
        (x,) = theirs
        plain = AsDeclared(self.transposed)
        axis = self._axis(declared[0])
        groups = self._groups(config)
        x = _moved(x, axis, 0)
        x = x.reshape(groups, x.shape[0] // groups, *x.shape[1:])
        widths = [self._outputs(each) // groups for each in declared]
        parts, start = [], 0
        for width in widths:
            part = x[:, start : start + width]
            parts.append(_moved(part.reshape(-1, *part.shape[2:]), 0, axis))
            start += width
        return plain.to_ours(parts, declared, config)

    def to_theirs(self, ours, declared, config):
        axis = self._axis(declared[0])
        groups = self._groups(config)
        parts = AsDeclared(self.transposed).to_theirs(ours, declared, config)
        parts = [_moved(part, axis, 0) for part in parts]
        parts = [
            part.reshape(groups, part.shape[0] // groups, *part.shape[1:])
            for part in parts
        ]
        x = _concatenate(parts, 1)
        return [_moved(x.reshape(-1, *x.shape[2:]), 0, axis)]

    def _axis(self, parameter: Declaration) -> int:
        """Index of their dim of outputs."""
        last = len(flat_shape(parameter)) - 1
        return last - 1 if parameter.contracted and self.transposed else last

    def _groups(self, config: Config) -> int:
        return 1 if self.groups is None else config[self.groups]

    def _outputs(self, parameter: Declaration) -> int:
        return flat_shape(parameter)[-1]


@dataclasses.dataclass(frozen=True)
class Depthwise(Layout):
    """The kernel of a depthwise torch Conv1d, [channels, 1, taps].

    The channels of several of ours are concatenated.
    """

    def to_ours(self, theirs, declared, config):
        (x,) = theirs
        x = x.reshape(x.shape[0], x.shape[2])
        return Fused().to_ours([x], declared, config)

    def to_theirs(self, ours, declared, config):
        (x,) = Fused().to_theirs(ours, declared, config)
        return [x.reshape(x.shape[0], 1, x.shape[1])]


@dataclasses.dataclass(frozen=True)
class Alternating(Layout):
    """One of theirs is several of ours, their outputs interleaved: [a0, b0, a1, ...].

    Args:
      transposed: As `AsDeclared`.
    """

    transposed: bool = True

    def to_ours(self, theirs, declared, config):
        (x,) = theirs
        x = _rows_last(x, declared[0], self.transposed)
        parts = [x[..., i :: len(declared)] for i in range(len(declared))]
        return AsDeclared(transposed=False).to_ours(parts, declared, config)

    def to_theirs(self, ours, declared, config):
        parts = AsDeclared(transposed=False).to_theirs(ours, declared, config)
        x = _stack(parts, -1)
        x = x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
        return [_rows_last(x, declared[0], self.transposed)]


def _rows_last(x, parameter: Declaration, transposed: bool):
    return x.swapaxes(-1, -2) if parameter.contracted and transposed else x


def _moved(x, source: int, target: int):
    axes = [axis for axis in range(x.ndim) if axis != source]
    return x.transpose([*axes[:target], source, *axes[target:]])


def _concatenate(parts: Arrays, axis: int):
    library = np if isinstance(parts[0], np.ndarray) else jnp
    return library.concatenate(parts, axis)


def _stack(parts: Arrays, axis: int):
    library = np if isinstance(parts[0], np.ndarray) else jnp
    return library.stack(parts, axis)
