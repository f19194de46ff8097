"""Muon: momentum with orthogonalised matrices.

Letters: *M matrices (of layers, of experts), I inputs, O outputs, s = min(I, O).
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from maxfdl.layers.parameter import Parameter
from maxfdl.optim.matrices import is_matrix, matrix_shape
from maxfdl.optim.transforms import UpdateRule, problems_of_shares

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
    """`orthogonal(momentum) * scale` for matrices, another rule for the rest.

    A kernel is one matrix per layer and expert, from the inputs to the outputs that it
    declares. Embeddings, heads, vectors and convolutions are left to `rest`. The
    momentum is an average, `m += (1 - momentum) (g - m)`, and with `nesterov` the
    direction is `g + momentum (m - g)`.

    State: one array per matrix, float32. Cost: `4 s^2 max(I, O) + 2 s^3` FLOPs per
    matrix and step of the iteration.

    Args:
      rest: Rule of the other parameters.
      momentum: Share of the past in the average.
      nesterov: Whether to use Nesterov momentum.
      scale: `spectral` is `sqrt(max(1, O / I))`; `rms` is `rms sqrt(max(I, O))`, which
        at 0.2 makes updates as large as Adam's, for one learning rate and decay for all
        (Liu et al. 2025, https://arxiv.org/abs/2502.16982).
      rms: Root of the mean square of an update's numbers, with the scale `rms`.
      coefficients: (a, b, c) of each step of the iteration.
    """

    rest: UpdateRule
    momentum: float = 0.95
    nesterov: bool = True
    scale: Literal["spectral", "rms"] = "spectral"
    coefficients: Coefficients = STANDARD
    rms: float = 0.2

    @staticmethod
    def check_config(node):
        yield from problems_of_shares(node, "Muon", "momentum")
        if node.rms <= 0:
            yield f"Muon rms ({node.rms}) must be positive."

    @property
    def squares(self) -> frozenset[str]:
        return self.rest.squares

    def transform(self, parameters: dict) -> optax.GradientTransformation:
        def of(label):
            return jax.tree.map(
                lambda p, own: p if own == label else optax.MaskedNode(),
                parameters,
                labels,
            )

        labels = jax.tree.map(
            lambda p: "matrix" if is_matrix(p) else "rest", parameters
        )
        transforms: dict[Any, optax.GradientTransformation] = {
            "matrix": self._of_matrices(of("matrix")),
            "rest": self.rest.transform(of("rest")),
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
            directions = jax.tree.map(self._direction, parameters, ahead)
            return directions, MomentumState(mean)

        return optax.GradientTransformation(init, update)

    def _direction(self, parameter: Parameter, momentum: jax.Array) -> jax.Array:
        inputs, outputs = matrix_shape(parameter)
        # Layers and experts stay dims of their own, so that sharded ones stay cut.
        many = momentum.shape[
            : momentum.ndim - len(parameter.shape) + parameter.batched
        ]
        x = orthogonalised(momentum.reshape(*many, inputs, outputs), self.coefficients)
        factor = (
            math.sqrt(max(1.0, outputs / inputs))
            if self.scale == "spectral"
            else self.rms * math.sqrt(max(inputs, outputs))
        )
        return factor * x.reshape(momentum.shape)


@dataclasses.dataclass(frozen=True)
class CorrectedMuon(Muon):
    """Muon whose average is freed of its start at 0, as Adam's is: that of Optax.

    Early Nesterov directions differ from those of `Muon`, where gradient and average
    have other shares; later ones become the same. MaxText trains with this one.
    """

    def _of_matrices(self, parameters: dict) -> optax.GradientTransformation:
        b = self.momentum

        def init(params):
            zeros = lambda p: jnp.zeros(p.shape, jnp.float32)  # noqa: E731
            return CountedState(jnp.zeros((), jnp.int32), jax.tree.map(zeros, params))

        def update(updates, state, params=None):
            grads = jax.tree.map(lambda g: g.astype(jnp.float32), updates)
            mean = jax.tree.map(
                lambda m, g: b * m + (1.0 - b) * g, state.momentum, grads
            )
            count = state.count + 1
            now, ahead = (1.0 - b ** (count + i).astype(jnp.float32) for i in (0, 1))
            looked = jax.tree.map(lambda m: m / now, mean)
            if self.nesterov:
                looked = jax.tree.map(
                    lambda m, g: b * m / ahead + (1.0 - b) * g / now, mean, grads
                )
            directions = jax.tree.map(self._direction, parameters, looked)
            return directions, CountedState(count, mean)

        return optax.GradientTransformation(init, update)


class CountedState(NamedTuple):
    """The number of updates, and the averages, a tree like the parameters."""

    count: Any
    momentum: Any


class MomentumState(NamedTuple):
    """The averages, a tree like the parameters."""

    momentum: Any


def orthogonalised(
    x_MIO: Float[Array, "*M I O"], coefficients: Coefficients
) -> Float[Array, "*M I O"]:
    """Returns matrices with the same singular vectors and values near 1.

    Newton-Schulz: from `X / |X|` on, `X = a X + (b A + c A A) X` with `A = X X^T`, or
    with `A = X^T X` on the right if that is smaller.

    On XLA:CPU the result for a matrix is bitwise independent of how many there are:
    there the order of a sum depends on the size of the array, that of a product not.
    """
    x, is_tall = x_MIO, x_MIO.shape[-2] > x_MIO.shape[-1]
    gram = _gram(x, is_tall)
    squares = jnp.sum(jnp.diagonal(gram, axis1=-2, axis2=-1), axis=-1)
    norm = jnp.maximum(jnp.sqrt(squares), 1e-7)[..., None, None]
    x, gram = x / norm, gram / norm**2
    for a, b, c in coefficients:
        factor = b * gram + c * gram @ gram
        x = a * x + (x @ factor if is_tall else factor @ x)
        gram = _gram(x, is_tall)
    return x


def _gram(x: jax.Array, is_tall: bool) -> jax.Array:
    dims = "...ji,...jk->...ik" if is_tall else "...ij,...kj->...ik"
    return jnp.einsum(dims, x, x)
