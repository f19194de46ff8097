"""Which rule turns gradients into updates.

The last one applied wins, and `use_adamw` is the inverse of all. The learning rate
stays that of the schedule; it may have to change with the rule.
"""

from typing import Literal, TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.fields import chosen, put
from maxfdl.mutations.roles import is_optimizer
from maxfdl.mutations.trainer_updates import put_qk_clip, take_out_qk_clip
from maxfdl.optim.adafactor import Adafactor
from maxfdl.optim.muon import DEEPSEEK_V4, DION, STANDARD, Muon
from maxfdl.optim.schedule_free import ScheduleFree
from maxfdl.optim.transforms import Adam, AdamPax, Lion, Sgd

C = TypeVar("C", bound=fdl.Buildable)

_COEFFICIENTS = {"standard": STANDARD, "dion": DION, "deepseek_v4": DEEPSEEK_V4}


def use_adamw(cfg: C, *, b1: float = 0.9, b2: float = 0.95, epsilon: float = 1e-8) -> C:
    """Trains with AdamW.

    See `maxfdl.optim.transforms.Adam`. The inverse sets the values that were there.

    Raises:
      MutationError: If there is no optimizer.
    """
    return _with_rule(cfg, fdl.Config(Adam, b1=b1, b2=b2, epsilon=epsilon))


def use_adam_pax(
    cfg: C, *, b1: float = 0.9, b2: float = 0.95, epsilon: float = 1e-8
) -> C:
    """Trains with AdamW whose moments are stored as Paxml stores them.

    Same updates as those of `use_adamw` up to rounding. `use_adamw` is the inverse.

    Raises:
      MutationError: If there is no optimizer.
    """
    return _with_rule(cfg, fdl.Config(AdamPax, b1=b1, b2=b2, epsilon=epsilon))


def use_sgd(cfg: C, *, momentum: float = 0.0, nesterov: bool = False) -> C:
    """Trains with SGD, with momentum if it is not 0.

    See `maxfdl.optim.transforms.Sgd`. `use_adamw` is the inverse.

    Raises:
      MutationError: If there is no optimizer.
    """
    return _with_rule(cfg, fdl.Config(Sgd, momentum=momentum, nesterov=nesterov))


def use_lion(cfg: C, *, b1: float = 0.9, b2: float = 0.99) -> C:
    """Trains with Lion, whose updates are signs.

    It needs learning rates 3 to 10 times smaller than Adam's. See
    `maxfdl.optim.transforms.Lion`. `use_adamw` is the inverse.

    Raises:
      MutationError: If there is no optimizer.
    """
    return _with_rule(cfg, fdl.Config(Lion, b1=b1, b2=b2))


def use_muon(
    cfg: C,
    *,
    momentum: float = 0.95,
    coefficients: Literal["standard", "dion", "deepseek_v4"] = "standard",
    scale: Literal["spectral", "rms"] = "rms",
) -> C:
    """Trains matrices with Muon and all other parameters with Adam.

    With the scale `rms` it can use the learning rate of AdamW. See
    `maxfdl.optim.muon.Muon`. `use_adamw` is the inverse.

    Raises:
      MutationError: If there is no optimizer.
    """
    rule = fdl.Config(
        Muon,
        rest=fdl.Config(Adam, b1=0.9, b2=0.95, epsilon=1e-8),
        momentum=momentum,
        scale=scale,
        coefficients=chosen(_COEFFICIENTS, coefficients, "use_muon coefficients"),
    )
    return _with_rule(cfg, rule)


def use_muonclip(
    cfg: C,
    *,
    threshold: float = 100.0,
    momentum: float = 0.95,
    coefficients: Literal["standard", "dion", "deepseek_v4"] = "standard",
    scale: Literal["spectral", "rms"] = "rms",
) -> C:
    """Trains with MuonClip: Muon, and a bound on the scores of attention.

    After each step, QK-clip scales down the query and key weights of heads whose
    highest score is above `threshold`, see `maxfdl.train.qk_clip.QkClip`. `use_adamw`
    is the inverse.

    Raises:
      MutationError: If there is no optimizer, attention or trainer, or if queries and
        keys have norms, which undo the clip.
    """
    out = use_muon(cfg, momentum=momentum, coefficients=coefficients, scale=scale)
    put_qk_clip(out, threshold)
    return out


def use_adafactor(cfg: C, *, min_scale: float = 1e-3, epsilon: float = 2.0**-23) -> C:
    """Trains with Adafactor, whose state is a row and a column per matrix.

    Learning rates become relative to the size of parameters: 1e-2 is usual. See
    `maxfdl.optim.adafactor.Adafactor`. `use_adamw` is the inverse.

    Raises:
      MutationError: If there is no optimizer.
    """
    return _with_rule(cfg, fdl.Config(Adafactor, min_scale=min_scale, epsilon=epsilon))


def use_schedule_free(
    cfg: C, *, b1: float = 0.9, b2: float = 0.95, epsilon: float = 1e-8
) -> C:
    """Trains with schedule-free AdamW, which evaluates an average of the weights.

    The average replaces Adam's first moment and a falling learning rate: combine it
    with `use_schedule(kind="constant")`. See `maxfdl.optim.schedule_free.ScheduleFree`.
    With `average_weights` too, that average is the one that is evaluated. `use_adamw`
    is the inverse.

    Raises:
      MutationError: If there is no optimizer.
    """
    rule = fdl.Config(Adam, b1=0.0, b2=b2, epsilon=epsilon)
    return _with_rule(cfg, rule, averaging=fdl.Config(ScheduleFree, b1=b1))


def _with_rule(cfg: C, rule: fdl.Config, averaging: fdl.Config | None = None) -> C:
    out = copy(cfg)
    take_out_qk_clip(out)
    for optimizer in nodes_of(out, is_optimizer):
        optimizer.rule = copy(rule)
        put(optimizer, "averaging", copy(averaging) if averaging else None)
    return out
