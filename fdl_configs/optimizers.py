"""Optimizers."""

import fiddle as fdl

from maxfdl.optim.optimizer import Optimizer
from maxfdl.optim.schedules import WarmupCosine
from maxfdl.optim.transforms import Adam, ClipByGlobalNorm, WeightDecay


def adamw(*, peak: float, warmup_steps: int, weight_decay: float = 0.1) -> fdl.Partial:
    """AdamW with the betas, clipping and decay of Llama 2's section 2.2."""
    return fdl.Partial(
        Optimizer,
        clip=fdl.Config(ClipByGlobalNorm, max_norm=1.0),
        rule=fdl.Config(Adam, b1=0.9, b2=0.95, epsilon=1e-8),
        weight_decay=fdl.Config(WeightDecay, rate=weight_decay),
        schedule=fdl.Config(WarmupCosine, peak=peak, warmup_steps=warmup_steps),
    )
