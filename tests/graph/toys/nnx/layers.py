"""Linear, Attention, Layer, Decoder."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal

import jax.numpy as jnp
from flax import nnx

from maxfdl.graph.tags import ComputeDType
from maxfdl.markers import FromParent
from tests.graph.toys.ops import Dot


class Linear(nnx.Module):
    def __init__(
        self,
        *,
        dot: Dot = Dot(),  # noqa: B008 (frozen)
        dtype: Annotated[str, ComputeDType] = "float32",
        use_bias: bool = False,
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        if features > 1000:
            raise ValueError(f"features ({features}) is too large.")
        self.kernel = nnx.Param(jnp.ones((features, features), dtype))
        self.dot = dot


class LoraLinear(Linear):
    def __init__(
        self,
        *,
        dot: Dot = Dot(),  # noqa: B008 (frozen)
        dtype: Annotated[str, ComputeDType] = "bfloat16",
        use_bias: bool = False,
        rank: int = 8,
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        super().__init__(dot=dot, dtype=dtype, features=features, rngs=rngs)


class Attention(nnx.Module):
    def __init__(
        self,
        *,
        q: Callable[..., Linear],
        k: Callable[..., Linear],
        num_heads: int,
        num_kv_heads: int,
        window: int | None = None,
        scale: float = 1.0,
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.q = q(features=features, rngs=rngs)
        self.k = k(features=features, rngs=rngs)

    @staticmethod
    def check_config(node) -> Iterable[str]:
        if None not in (node.num_heads, node.num_kv_heads):
            if node.num_heads % node.num_kv_heads:
                yield (
                    f"num_heads ({node.num_heads}) must be a multiple of num_kv_heads"
                    f" ({node.num_kv_heads})."
                )


class Decoder(nnx.Module):
    def __init__(
        self,
        *,
        layers: Sequence[Callable[..., Attention]],
        repeats: int = 1,
        remat: Literal["none", "full", "dots"] = "none",
        betas: tuple[float, float] = (0.9, 0.95),
        label: str = "",
        features: int,
        rngs: nnx.Rngs,
    ):
        self.layers = nnx.List([la(features=features, rngs=rngs) for la in layers])
