"""The parts of an optimizer, as nodes that each make one Optax transform."""

import dataclasses

import optax

from maxfdl.layers.parameter import DType, Role, map_parameters


class UpdateRule:
    """Turns gradients into directions, to be scaled by minus the learning rate."""

    def transform(self) -> optax.GradientTransformation:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Adam(UpdateRule):
    """Bias-corrected first moment over the root of the second (Kingma & Ba 2015).

    State: two arrays per parameter.

    Args:
      moment_dtype: Type of the first moment; None keeps the parameter's.
    """

    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    moment_dtype: DType | None = None

    def transform(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(
            b1=self.b1, b2=self.b2, eps=self.epsilon, mu_dtype=self.moment_dtype
        )


@dataclasses.dataclass(frozen=True)
class ClipByGlobalNorm:
    """Scales all gradients together so that their L2 norm is at most `max_norm`."""

    max_norm: float = 1.0

    def transform(self) -> optax.GradientTransformation:
        return optax.clip_by_global_norm(self.max_norm)


@dataclasses.dataclass(frozen=True)
class WeightDecay:
    """Decoupled decay (Loshchilov & Hutter 2019): `rate * parameter` per unit of
    learning rate, for the parameters whose role is in `roles`."""

    rate: float = 0.1
    roles: tuple[Role, ...] = ("kernel", "embedding")

    def transform(self, parameters: dict) -> optax.GradientTransformation:
        mask = map_parameters(lambda _, p: p.role in self.roles, parameters)
        return optax.add_decayed_weights(self.rate, mask)
