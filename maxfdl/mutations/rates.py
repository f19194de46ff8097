"""Learning rates by step and by role, and weight decay."""

from typing import Literal, TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of, swap
from maxfdl.mutations.fields import chosen, put
from maxfdl.mutations.roles import is_optimizer
from maxfdl.optim.schedules import (
    InverseSquareRoot,
    WarmupConstant,
    WarmupCosine,
    WarmupLinear,
    WarmupStableDecay,
)
from maxfdl.optim.transforms import RateFactors, WeightDecay

C = TypeVar("C", bound=fdl.Buildable)

_SCHEDULES = {
    "constant": WarmupConstant,
    "cosine": WarmupCosine,
    "inverse_square_root": InverseSquareRoot,
    "linear": WarmupLinear,
    "wsd": WarmupStableDecay,
}


def use_schedule(
    cfg: C,
    *,
    kind: Literal["constant", "cosine", "inverse_square_root", "linear", "wsd"],
    peak: float | None = None,
    warmup_steps: int | None = None,
    final_fraction: float | None = None,
    decay_steps: int | None = None,
    shape: Literal["linear", "cosine", "one_minus_sqrt"] | None = None,
) -> C:
    """Sets the learning rate schedule: its kind, peak, warm-up and decay.

    Fields that are not given stay, if the new kind has them, but for `decay_steps`,
    which stays if the kind does; see `maxfdl.optim.schedules`. `wsd` needs
    `decay_steps`. The inverse gives the kind and the values that were there.

    Raises:
      MutationError: If there is no optimizer, or if the kind has no such field.
    """
    given = {
        "peak": peak,
        "warmup_steps": warmup_steps,
        "final_fraction": final_fraction,
        "decay_steps": decay_steps,
        "shape": shape,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    out = copy(cfg)
    made = chosen(_SCHEDULES, kind, "use_schedule kind")
    for optimizer in nodes_of(out, is_optimizer):
        if fdl.get_callable(optimizer.schedule) is not made:
            put(optimizer.schedule, "decay_steps", None)
        swap(optimizer.schedule, made, **changes)
    return out


def learning_rate_by_role(
    cfg: C,
    *,
    kernel: float = 1.0,
    embedding: float = 1.0,
    scale: float = 1.0,
    bias: float = 1.0,
) -> C:
    """Multiplies the learning rate of each role of parameters by a factor.

    Weight decay is multiplied with it. With 0 a role does not change, but keeps its
    optimizer state, unlike with `freeze`. `learning_rate_by_role()` is the inverse.

    Raises:
      MutationError: If there is no optimizer.
    """
    factors = {"kernel": kernel, "embedding": embedding, "scale": scale, "bias": bias}
    out = copy(cfg)
    for optimizer in nodes_of(out, is_optimizer):
        is_one_rate = set(factors.values()) == {1.0}
        node = None if is_one_rate else fdl.Config(RateFactors, **factors)
        put(optimizer, "rate_factors", node)
    return out


def weight_decay(
    cfg: C,
    *,
    rate: float,
    kernel: float = 1.0,
    embedding: float = 1.0,
    scale: float = 0.0,
    bias: float = 0.0,
) -> C:
    """Sets weight decay: its rate, and the share of it that each role gets.

    See `maxfdl.optim.transforms.WeightDecay`; a rate of 0 leaves none. The inverse
    gives the values that were there.

    Raises:
      MutationError: If there is no optimizer.
    """
    shares = {"kernel": kernel, "embedding": embedding, "scale": scale, "bias": bias}
    out = copy(cfg)
    for optimizer in nodes_of(out, is_optimizer):
        optimizer.weight_decay = (
            fdl.Config(WeightDecay, rate=rate, **shares) if rate else None
        )
    return out
