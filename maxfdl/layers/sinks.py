"""Side results of layers, each with how several of them become one.

Microbatches, devices and logged steps are put together by this, never by a name.
"""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sum:
    """Parts add up."""

    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """Sums and weights add up; the result is their quotient."""

    sum: jax.Array
    weight: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Max:
    """The greatest part counts."""

    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
    """Whole numbers, which add up exactly."""

    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Last:
    """The newest part counts."""

    value: jax.Array


Sink = Sum | Mean | Max | Counts | Last
