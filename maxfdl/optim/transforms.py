"""Parts of an optimizer; each makes one Optax transform."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from maxfdl.layers.parameter import Parameter
from maxfdl.optim.matrices import is_matrix


class UpdateRule:
    """Base: turns gradients into directions, which are scaled by minus the rate."""

    @property
    def squares(self) -> frozenset[str]:
        """Names of the fields of its state that are averages of squares."""
        return frozenset()

    def transform(self, parameters: dict) -> optax.GradientTransformation:
        """Returns the rule for parameters with these declarations, a tree like them.

        Parameters of another rule are an `optax.MaskedNode` in both trees.
        """
        raise NotImplementedError


def problems_of_shares(node, name: str, *fields: str) -> Iterator[str]:
    """Yields a sentence for each field that is no decay rate in [0, 1)."""
    for field in fields:
        value = getattr(node, field)
        if not 0.0 <= value < 1.0:
            yield f"{name} {field} ({value}) must be at least 0 and below 1."


def problems_of_epsilon(node, name: str) -> Iterator[str]:
    """Yields a sentence if a parameter without any gradient would become NaN."""
    if not node.epsilon > 0.0:
        yield f"{name} epsilon ({node.epsilon}) must be positive; 1e-8 is usual."


@dataclasses.dataclass(frozen=True)
class Adam(UpdateRule):
    """Bias-corrected first moment over the root of the second (Kingma & Ba 2015).

    State: two arrays per parameter, or the second alone if b1 is 0.

    Args:
      nesterov: Whether the first moment looks one step ahead (Dozat 2016, NAdam).
    """

    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    nesterov: bool = False

    @staticmethod
    def check_config(node):
        yield from problems_of_shares(node, "Adam", "b1", "b2")
        yield from problems_of_epsilon(node, "Adam")

    @property
    def squares(self) -> frozenset[str]:
        return frozenset({"nu"})

    def transform(self, parameters: dict) -> optax.GradientTransformation:
        if self.b1 == 0.0:
            return optax.scale_by_rms(
                decay=self.b2,
                eps=self.epsilon,
                eps_in_sqrt=False,
                bias_correction=True,
            )
        return optax.scale_by_adam(
            b1=self.b1, b2=self.b2, eps=self.epsilon, nesterov=self.nesterov
        )


@dataclasses.dataclass(frozen=True)
class AdamPax(UpdateRule):
    """Adam with the moments of Paxml, which need no bias correction.

    The decay of step t is `b (1 - b^(t-1)) / (1 - b^t)`, so the weights of each average
    add up to 1. The direction is Adam's up to rounding; the stored moments are those of
    Paxml's checkpoints.
    """

    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8

    @staticmethod
    def check_config(node):
        yield from problems_of_shares(node, "AdamPax", "b1", "b2")
        yield from problems_of_epsilon(node, "AdamPax")

    @property
    def squares(self) -> frozenset[str]:
        return frozenset({"nu"})

    def transform(self, parameters: dict) -> optax.GradientTransformation:
        def init(params):
            zeros = jax.tree.map(jnp.zeros_like, params)
            return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

        def update(updates, state, params=None):
            count = state.count + 1
            mu = self._averaged(self.b1, count, state.mu, updates)
            squares = jax.tree.map(jnp.square, updates)
            nu = self._averaged(self.b2, count, state.nu, squares)
            directions = jax.tree.map(
                lambda m, v: m / (jnp.sqrt(v) + self.epsilon), mu, nu
            )
            return directions, optax.ScaleByAdamState(count, mu, nu)

        return optax.GradientTransformation(init, update)

    def _averaged(self, b, count, averages, values):
        t = count.astype(jnp.float32)
        decay = b * (1.0 - b ** (t - 1.0)) / (1.0 - b**t)
        return jax.tree.map(
            lambda a, x: (decay * a + (1.0 - decay) * x).astype(a.dtype),
            averages,
            values,
        )


@dataclasses.dataclass(frozen=True)
class Sgd(UpdateRule):
    """The gradient, or the sum with momentum `m = momentum m + g` (Polyak 1964).

    Args:
      momentum: Factor of the old sum; 0 keeps no state.
      nesterov: Whether the direction is `g + momentum m` (Nesterov 1983).
    """

    momentum: float = 0.0
    nesterov: bool = False

    @staticmethod
    def check_config(node):
        yield from problems_of_shares(node, "Sgd", "momentum")

    def transform(self, parameters: dict) -> optax.GradientTransformation:
        if self.momentum == 0.0:
            return optax.identity()
        return optax.trace(decay=self.momentum, nesterov=self.nesterov)


@dataclasses.dataclass(frozen=True)
class Lion(UpdateRule):
    """The sign of an average of momentum and gradient.

    `sign(b1 m + (1 - b1) g)`, then `m = b2 m + (1 - b2) g`: Chen et al. 2023,
    https://arxiv.org/abs/2302.06675. State: one array per parameter. Learning rates are
    3 to 10 times smaller than Adam's, and weight decay larger.
    """

    b1: float = 0.9
    b2: float = 0.99

    @staticmethod
    def check_config(node):
        yield from problems_of_shares(node, "Lion", "b1", "b2")

    def transform(self, parameters: dict) -> optax.GradientTransformation:
        return optax.scale_by_lion(b1=self.b1, b2=self.b2)


@dataclasses.dataclass(frozen=True)
class ClipByGlobalNorm:
    """Scales all gradients together so that their L2 norm is at most `max_norm`."""

    max_norm: float = 1.0

    @staticmethod
    def check_config(node):
        if node.max_norm <= 0:
            yield f"ClipByGlobalNorm max_norm ({node.max_norm}) must be positive."

    def transform(self) -> optax.GradientTransformation:
        return optax.clip_by_global_norm(self.max_norm)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByRole:
    """One number for the parameters of each role."""

    kernel: float = 1.0
    embedding: float = 1.0
    scale: float = 1.0
    bias: float = 1.0

    @staticmethod
    def check_config(node):
        for role in ("kernel", "embedding", "scale", "bias"):
            if getattr(node, role) < 0:
                yield (
                    f"ByRole {role} ({getattr(node, role)}) must not be negative; 0"
                    " leaves the role out."
                )

    def of(self, parameters: dict) -> dict:
        """Returns the number of each parameter, a tree like their declarations."""
        return jax.tree.map(lambda p: getattr(self, p.role), parameters)

    @property
    def largest(self) -> float:
        return max(self.kernel, self.embedding, self.scale, self.bias)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightDecay(ByRole):
    """Decoupled decay (Loshchilov & Hutter 2019): adds `rate * share * parameter`.

    The learning rate of the parameter's role scales it with the direction.

    Args:
      rate: Decay per unit of learning rate.
      kernel, embedding, scale, bias: Share of the rate that each role has.
      matrix: Share of the kernels that Muon takes as matrices, see
        `maxfdl.optim.matrices`; None: that of all kernels.
    """

    rate: float = 0.1
    scale: float = 0.0
    bias: float = 0.0
    matrix: float | None = None

    @staticmethod
    def check_config(node):
        yield from ByRole.check_config(node)
        if node.rate < 0:
            yield f"WeightDecay rate ({node.rate}) must not be negative."
        if node.matrix is not None and node.matrix < 0:
            yield f"WeightDecay matrix ({node.matrix}) must not be negative."

    def of(self, parameters: dict) -> dict:
        def share(parameter: Parameter, by_role: float) -> float:
            apart = self.matrix is not None and is_matrix(parameter)
            return self.matrix if apart else by_role  # type: ignore

        return jax.tree.map(share, parameters, super().of(parameters))

    @property
    def largest(self) -> float:
        return max(super().largest, self.matrix or 0.0)

    def transform(self, parameters: dict) -> optax.GradientTransformation:
        rates = jax.tree.map(lambda share: self.rate * share, self.of(parameters))

        def update(directions, params):
            return jax.tree.map(
                lambda d, rate, p: d + rate * p if rate else d,
                directions,
                rates,
                params,
            )

        return optax.stateless(update)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateFactors(ByRole):
    """Factors of the learning rate by role.

    Parameters of a role with factor 0 do not change, and their gradients do not count
    for clipping. They keep their optimizer state: `freeze` drops that, too.
    """

    def transform(self, parameters: dict) -> optax.GradientTransformation:
        factors = self.of(parameters)

        def update(directions, params):
            return jax.tree.map(lambda d, factor: factor * d, directions, factors)

        return optax.stateless(update)


def times_minus_rate() -> optax.GradientTransformationExtraArgs:
    """Scales directions by minus `rate`, an argument of each `update`."""

    def update(updates, state, params=None, **extra):
        scale = -extra["rate"]
        return jax.tree.map(lambda d: (scale * d).astype(d.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
