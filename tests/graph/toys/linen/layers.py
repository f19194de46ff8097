"""Linear, Attention, Decoder: the twins, as far as graphs can tell."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from flax import linen

from maxfdl.graph.tags import ComputeDType
from maxfdl.markers import FromParent
from tests.graph.toys.nnx import layers as twins
from tests.graph.toys.ops import Dot


class Linear(linen.Module, kw_only=True):
    dot: Dot = Dot()
    dtype: Annotated[str, ComputeDType] = "float32"
    use_bias: bool = False
    features: Annotated[int, FromParent]


class Attention(linen.Module, kw_only=True):
    q: Callable[..., Linear]
    k: Callable[..., Linear]
    num_heads: int
    num_kv_heads: int
    window: int | None = None
    scale: float = 1.0
    features: Annotated[int, FromParent]

    check_config = staticmethod(twins.Attention.check_config)


class Decoder(linen.Module, kw_only=True):
    layers: Sequence[Callable[..., Attention]]
    repeats: int = 1
    remat: Literal["none", "full", "dots"] = "none"
    betas: tuple[float, float] = (0.9, 0.95)
    label: str = ""
    features: int
