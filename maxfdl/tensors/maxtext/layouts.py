"""How values lie in MaxText's arrays, and what they are multiplied by.

MaxText's kernels are [*inputs, *outputs] as ours are, so most arrays are the same. The
layouts here count dims from the end: ours, and so theirs, may have leading dims.

Some parts of a network can be put into its weights: a factor of the queries, one of the
embedding, 1 added to a scale, the order of features that turn. Where a network and
MaxText do so differently, values change. `factors` in the config of a conversion says
how; where it is 1 and there is no turn, values stay bit for bit.

A moment of an optimizer follows its parameter: if that is multiplied by c, gradients
and first moments are divided by c, second moments by its square.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from maxfdl.tensors.layouts import Arrays, Config, Declared, Fused, Layout

KEY_HEADS = "key_heads"
"""Key in the config of a conversion: heads of the keys of linear attention."""


@dataclasses.dataclass(frozen=True)
class Same(Layout):
    """One of theirs is one of ours."""

    def to_ours(self, theirs, declared, config):
        return list(theirs)

    def to_theirs(self, ours, declared, config):
        return list(ours)


@dataclasses.dataclass(frozen=True)
class Joined(Layout):
    """One of theirs is several of ours, concatenated along the last dim."""

    def to_ours(self, theirs, declared, config):
        (x,) = theirs
        widths = [each.shape[-1] for each in declared]
        return list(_library(x).split(x, np.cumsum(widths)[:-1], -1))

    def to_theirs(self, ours, declared, config):
        return [_library(ours[0]).concatenate(ours, -1)]


@dataclasses.dataclass(frozen=True)
class Side(Layout):
    """One of theirs is several of ours, side by side in a dim of its own.

    Args:
      axis: Index of that dim in theirs, from the end.
    """

    axis: int

    def to_ours(self, theirs, declared, config):
        (x,) = theirs
        return [x.take(i, self.axis) for i in range(len(declared))]

    def to_theirs(self, ours, declared, config):
        return [_library(ours[0]).stack(ours, self.axis)]


@dataclasses.dataclass(frozen=True)
class Taps(Layout):
    """One of theirs is [taps, 1, channels], where channels of ours are concatenated."""

    def to_ours(self, theirs, declared, config):
        (x,) = theirs
        return Fused(transposed=False).to_ours([x.squeeze(-2)], declared, config)

    def to_theirs(self, ours, declared, config):
        (x,) = Fused(transposed=False).to_theirs(ours, declared, config)
        return [x.reshape(*x.shape[:-1], 1, x.shape[-1])]


@dataclasses.dataclass(frozen=True)
class Times(Layout):
    """Theirs is ours times a factor, in the layout `inner`.

    Args:
      factor: Name of the factor in the config.
      which: Which of ours it multiplies; None: all.
      turned: Which of ours have features that turn, and may come in another order.
      inner: How values lie.
      power: Power of the factor: 1 for weights, -1 and -2 for moments.
    """

    factor: str
    which: tuple[int, ...] | None = None
    turned: tuple[int, ...] = ()
    inner: Layout = Same()
    power: int = 1

    def to_ours(self, theirs, declared, config):
        ours = self.inner.to_ours(theirs, declared, config)
        return self._changed(ours, config, -self.power, config["turn"][::-1])

    def to_theirs(self, ours, declared, config):
        ours = self._changed(ours, config, self.power, config["turn"])
        return self.inner.to_theirs(ours, declared, config)

    def of_moment(self, order: int) -> Layout:
        return dataclasses.replace(self, power=-order)

    def _changed(
        self, ours: Arrays, config: Config, power: int, turn: tuple[str, ...]
    ) -> Arrays:
        factor = config["factors"].get(self.factor, 1.0) ** power
        return [
            _turned(
                _times(x, factor) if self.which is None or i in self.which else x,
                turn if i in self.turned else (),
            )
            for i, x in enumerate(ours)
        ]


@dataclasses.dataclass(frozen=True)
class Plus(Layout):
    """Theirs is ours plus a number: a scale that is kept without its 1, or with it."""

    number: float

    def to_ours(self, theirs, declared, config):
        return [_plus(x, -self.number) for x in theirs]

    def to_theirs(self, ours, declared, config):
        return [_plus(x, self.number) for x in ours]

    def of_moment(self, order: int) -> Layout:
        return Same()


@dataclasses.dataclass(frozen=True)
class Stacked(Layout):
    """One of theirs holds several layers along a dim; ours hold one or all of them.

    Args:
      inner: The layout of one layer.
      axis: Index of the dim of layers in theirs.
      layers: Of how many layers ours are, one after the other; None where ours are
        whole stacks, whose first dim the layers are.
    """

    inner: Layout
    axis: int
    layers: int | None

    def to_ours(self, theirs, declared, config):
        (x,) = theirs
        x = _moved(x, min(self.axis, x.ndim - 1), 0)
        if self.layers is None:
            return self.inner.to_ours([x], declared, config)
        parts = self._apart(declared, self.layers)
        return [
            ours
            for i, part in enumerate(parts)
            for ours in self.inner.to_ours([x[i]], part, config)
        ]

    def to_theirs(self, ours, declared, config):
        if self.layers is None:
            (x,) = self.inner.to_theirs(ours, declared, config)
        else:
            apart = (self._apart(each, self.layers) for each in (ours, declared))
            pairs = zip(*apart, strict=True)
            each = [self.inner.to_theirs(x, d, config)[0] for x, d in pairs]
            x = _library(each[0]).stack(each)
        return [_moved(x, 0, min(self.axis, x.ndim - 1))]

    def of_moment(self, order: int) -> Layout:
        return dataclasses.replace(self, inner=self.inner.of_moment(order))

    @staticmethod
    def _apart(values: Arrays | Declared, layers: int) -> list[Any]:
        count = len(values) // layers
        return [values[i * count : (i + 1) * count] for i in range(layers)]


def _library(x: Any) -> Any:
    return np if isinstance(x, np.ndarray) else jnp


def _times(x: Any, factor: float) -> Any:
    """Returns `x` times a factor, rounded once; abstract arrays keep their type."""
    if factor == 1.0 or not isinstance(x, np.ndarray):
        return x
    return (x.astype(np.float64) * factor).astype(x.dtype)


def _plus(x: Any, number: float) -> Any:
    if not isinstance(x, np.ndarray):
        return x
    return (x.astype(np.float64) + number).astype(x.dtype)


def _turned(x: Any, turn: tuple[str, ...]) -> Any:
    """Returns `x` with the features of heads in another order.

    `turn` is the order that they have and the one that they get: `halves` keeps the
    partners of a rotation half a head apart, `pairs` side by side.
    """
    if not turn or turn[0] == turn[1]:
        return x
    half = x.shape[-1] // 2
    shape = (2, half) if turn[0] == "halves" else (half, 2)
    return x.reshape(*x.shape[:-1], *shape).swapaxes(-1, -2).reshape(x.shape)


def _moved(x: Any, source: int, target: int) -> Any:
    axes = [axis for axis in range(x.ndim) if axis != source]
    return x.transpose([*axes[:target], source, *axes[target:]])
