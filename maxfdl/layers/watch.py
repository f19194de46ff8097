"""What layers of attention leave of their scores, for those who ask."""

import dataclasses

import jax

from maxfdl.layers.context import Context
from maxfdl.layers.sinks import HeadScores, Max
from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.mask import Mask


@dataclasses.dataclass(frozen=True)
class WatchScores:
    """Leaves the highest score of each head as the sink `scores`."""

    def __call__(
        self,
        attention: DotProductAttention,
        q_BTHK: jax.Array,
        k_BSGK: jax.Array,
        mask: Mask,
        context: Context,
        shared: int = 0,
    ) -> None:
        highest = attention.highest_scores(q_BTHK, k_BSGK, mask, context.sharding)
        context.emit("scores", HeadScores(Max(highest), shared))
