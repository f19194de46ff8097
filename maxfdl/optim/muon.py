"""Muon: momentum whose matrices are made orthogonal.

Letters: M matrices (layers, experts), I inputs, O outputs, s = min(I, O).
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from maxfdl.layers.parameter import Parameter, map_parameters
from maxfdl.optim.transforms import UpdateRule

Coefficients = tuple[tuple[float, float, float], ...]

STANDARD: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5
"""Jordan et al. 2024, https://kellerjordan.github.io/posts/muon: singular values end
between 0.68 and 1.14."""

DEEPSEEK_V4: Coefficients = ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2
"""Eight steps that bring singular values near 1, and two that end there."""

DION: Coefficients = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Five steps with coefficients of their own, as Dion's code and Optax have them."""


@dataclasses.dataclass(frozen=True)
class Muon(UpdateRule):
    """`orthogonal(momentum) * scale` for matrices, another rule for all else.

    A kernel is one matrix per layer and expert, from its inputs to its outputs as its
    own declaration says; embeddings, heads, vectors and convolutions are `rest`'s. The
    momentum is an average, `m += (1 - momentum) (g - m)`, and with `nesterov` the
    direction is `g + momentum (m - g)`.

    State: one array per matrix, float32. Cost: `4 s^2 max(I, O) + 2 s^3` FLOPs per
    matrix and step of the iteration.

    Args:
      rest: Rule of the other parameters.
      momentum: Share of the past in the average.
      nesterov: Whether the direction looks ahead.
      scale: `spectral` is `sqrt(max(1, O / I))`; `rms` is `0.2 sqrt(max(I, O))`, which
        makes updates as large as Adam's, for one learning rate and decay for all (Liu
        et al. 2025, https://arxiv.org/abs/2502.16982).
      coefficients: (a, b, c) of each step of the iteration.
    """

    rest: UpdateRule
    momentum: float = 0.95
    nesterov: bool = True
    scale: Literal["spectral", "rms"] = "spectral"
    coefficients: Coefficients = STANDARD

    def transform(self, parameters: dict) -> optax.GradientTransformation:
        labels = map_parameters(
            lambda _, p: "matrix" if is_matrix(p) else "rest", parameters
        )
        transforms: dict[Any, optax.GradientTransformation] = {
            "matrix": self._of_matrices(parameters),
            "rest": self.rest.transform(parameters),
        }
        return optax.partition(transforms, labels)

    def _of_matrices(self, parameters: dict) -> optax.GradientTransformation:
        def init(params):
            zeros = lambda p: jnp.zeros(p.shape, jnp.float32)  # noqa: E731
            return MomentumState(jax.tree.map(zeros, params))

        def update(updates, state, params=None):
            grads = jax.tree.map(lambda g: g.astype(jnp.float32), updates)
            mean = jax.tree.map(
                lambda m, g: m + (1.0 - self.momentum) * (g - m), state.momentum, grads
            )
            ahead = mean
            if self.nesterov:
                ahead = jax.tree.map(
                    lambda m, g: g + self.momentum * (m - g), mean, grads
                )
            # Parameters of another rule are absent from these trees.
            directions = jax.tree.map(
                lambda p, x: x if _is_absent(x) else self._direction(p, x),
                parameters,
                ahead,
                is_leaf=lambda node: isinstance(node, Parameter),
            )
            return directions, MomentumState(mean)

        return optax.GradientTransformation(init, update)

    def _direction(self, parameter: Parameter, momentum: jax.Array) -> jax.Array:
        inputs, outputs = matrix_shape(parameter)
        x = orthogonalised(momentum.reshape(-1, inputs, outputs), self.coefficients)
        factor = (
            math.sqrt(max(1.0, outputs / inputs))
            if self.scale == "spectral"
            else 0.2 * math.sqrt(max(inputs, outputs))
        )
        return factor * x.reshape(momentum.shape)


class MomentumState(NamedTuple):
    """The averages, a tree like the parameters."""

    momentum: Any


def _is_absent(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def is_matrix(parameter: Parameter) -> bool:
    """Returns whether a parameter maps hidden features to hidden features."""
    apart = {"vocab", "taps"} & set(parameter.axes)
    return (
        parameter.role == "kernel"
        and 0 < parameter.contracted < len(parameter.shape) - parameter.batched
        and not apart
    )


def matrix_shape(parameter: Parameter) -> tuple[int, int]:
    """Returns I and O of each of the matrices that a kernel holds."""
    dims = parameter.shape[parameter.batched :]
    return math.prod(dims[: parameter.contracted]), math.prod(
        dims[parameter.contracted :]
    )


def orthogonalised(
    x_MIO: Float[Array, "M I O"], coefficients: Coefficients
) -> Float[Array, "M I O"]:
    """Returns matrices with the same singular vectors and values near 1.

    Newton-Schulz: from `X / |X|` on, `X = a X + (b A + c A A) X` with `A = X X^T`, on
    whichever side is shorter.
    """
    is_tall = x_MIO.shape[1] > x_MIO.shape[2]
    x = x_MIO.swapaxes(1, 2) if is_tall else x_MIO
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True))
    x = x / jnp.maximum(norm, 1e-7)
    for a, b, c in coefficients:
        gram = jnp.einsum("mij,mkj->mik", x, x)
        x = a * x + jnp.einsum("mij,mjk->mik", b * gram + c * gram @ gram, x)
    return x.swapaxes(1, 2) if is_tall else x
