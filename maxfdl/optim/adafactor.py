"""Adafactor: second moments kept as rows and columns.

A matrix is what one layer, and one expert, holds of a kernel from its inputs to its
outputs, or of an embedding from its rows to its features.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maxfdl.layers.parameter import Parameter
from maxfdl.optim.transforms import UpdateRule


@dataclasses.dataclass(frozen=True)
class Adafactor(UpdateRule):
    """`max(min_scale, rms(p)) * u / max(1, rms(u) / max_rms)` with `u = g / sqrt(v)`.

    At step t a moment moves towards that of the gradient's squares by
    `t ** -decay_exponent`. Of a matrix, `rows` are means over the columns and `columns`
    over the rows, and `v = rows columns / max(mean(rows), epsilon)`; of a vector v is
    whole. v is at least `epsilon ** 2`.

    Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235, with the floors of torch's
    Adafactor: where the root mean square of gradients is far below `sqrt(epsilon)`, v
    is smaller than Adam's, and `max_rms` bounds the update. torch also bounds the
    learning rate by `1 / sqrt(t)`; here that is left to the schedule. Learning rates
    are relative to the size of parameters.

    State: a row and a column per matrix, one array per vector, float32.

    Args:
      decay_exponent: How fast the averages come to cover more steps.
      epsilon: Floor of moments; the default is that of torch in float32.
      min_scale: Least size of a parameter that an update is relative to.
      max_rms: Updates are scaled down to this root mean square.
    """

    decay_exponent: float = 0.8
    epsilon: float = 2.0**-23
    min_scale: float = 1e-3
    max_rms: float = 1.0

    @staticmethod
    def check_config(node):
        if node.epsilon < 1e-18:
            yield (
                f"Adafactor epsilon ({node.epsilon}) must be at least 1e-18, for its"
                " square must be a float32."
            )
        if node.min_scale < 0:
            yield f"Adafactor min_scale ({node.min_scale}) must not be negative."
        if node.max_rms <= 0:
            yield f"Adafactor max_rms ({node.max_rms}) must be positive."

    @property
    def squares(self) -> frozenset[str]:
        return frozenset({"moments"})

    def transform(self, parameters: dict) -> optax.GradientTransformation:
        def init(params):
            moments = jax.tree.map(_no_moment, parameters)
            return AdafactorState(jnp.zeros((), jnp.int32), moments)

        def update(updates, state, params=None):
            count = state.count + 1
            share = count.astype(jnp.float32) ** -self.decay_exponent
            moments = jax.tree.map(
                lambda p, old, grad: jax.tree.map(
                    lambda old, new: old + share * (new - old), old, _moment(p, grad)
                ),
                parameters,
                state.moments,
                updates,
            )
            directions = jax.tree.map(
                self._direction, parameters, moments, updates, params
            )
            return directions, AdafactorState(count, moments)

        return optax.GradientTransformation(init, update)

    def _direction(
        self,
        parameter: Parameter,
        moment: "jax.Array | Factors",
        grad: jax.Array,
        value: jax.Array,
    ) -> jax.Array:
        if isinstance(moment, Factors):
            inputs, _ = _matrix_dims(parameter)
            mean = jnp.mean(moment.rows, inputs, keepdims=True)
            moment = moment.rows * moment.columns / jnp.maximum(mean, self.epsilon)
        update = grad * jax.lax.rsqrt(jnp.maximum(moment, self.epsilon**2))
        scale = jnp.maximum(_rms(parameter, value), self.min_scale)
        return scale * update / jnp.maximum(_rms(parameter, update) / self.max_rms, 1.0)


class AdafactorState(NamedTuple):
    """Count of steps, and the second moment of each parameter, whole or factored."""

    count: jax.Array
    moments: Any


class Factors(NamedTuple):
    """Of `[*layers, *experts, *inputs, *outputs]`, with dims of 1 for those averaged.

    Dims are kept and never merged, so that sharded ones stay where they are.
    """

    rows: jax.Array
    columns: jax.Array


def _no_moment(parameter: Parameter) -> jax.Array | Factors:
    shape = jax.ShapeDtypeStruct(parameter.full_shape, jnp.float32)
    start = jax.eval_shape(lambda grad: _moment(parameter, grad), shape)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), start)


def _moment(parameter: Parameter, grad: jax.Array) -> jax.Array | Factors:
    """Returns the second moment of one gradient."""
    squares = jnp.square(grad.astype(jnp.float32))
    inputs, outputs = _matrix_dims(parameter)
    if not inputs:
        return squares
    return Factors(
        rows=jnp.mean(squares, outputs, keepdims=True),
        columns=jnp.mean(squares, inputs, keepdims=True),
    )


def _rms(parameter: Parameter, x: jax.Array) -> jax.Array:
    """Returns the root mean square of each matrix or vector."""
    inputs, outputs = _matrix_dims(parameter)
    squares = jnp.square(x.astype(jnp.float32))
    return jnp.sqrt(jnp.mean(squares, inputs + outputs, keepdims=True))


def _matrix_dims(parameter: Parameter) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the dims of inputs and of outputs; a vector has outputs alone."""
    rows = 1 if parameter.role == "embedding" else parameter.contracted
    dims = tuple(range(len(parameter.full_shape)))
    own = dims[len(dims) - len(parameter.shape) + parameter.batched :]
    return own[:rows], own[rows:]
