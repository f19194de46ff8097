"""The parts that decoders are put together from, as graphs of the NNX family."""

import fiddle as fdl

from maxfdl.layers import nnx
from maxfdl.layers.execution import Scan
from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.dot import Dot
from maxfdl.ops.initializers import FanIn, Normal
from maxfdl.ops.rope import Rope


def linear() -> fdl.Partial:
    """A projection without bias."""
    return fdl.Partial(nnx.Linear, dot=fdl.Config(Dot), initializer=fdl.Config(FanIn))


def rms_norm(epsilon: float) -> fdl.Partial:
    return fdl.Partial(nnx.RMSNorm, epsilon=epsilon)


def attention(
    *, num_heads: int, num_kv_heads: int, head_dim: int, rope_theta: float
) -> fdl.Partial:
    """Causal grouped-query attention without biases."""
    return fdl.Partial(
        nnx.Attention,
        query=linear(),
        key=linear(),
        value=linear(),
        out=linear(),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rope=fdl.Config(Rope, theta=rope_theta),
        attention=fdl.Config(DotProductAttention),
    )


def gated_mlp(hidden: int) -> fdl.Partial:
    """SwiGLU without biases."""
    return fdl.Partial(
        nnx.GatedMlp, gate=linear(), up=linear(), down=linear(), hidden=hidden
    )


def stack(layers: list[fdl.Partial], repeats: int) -> fdl.Partial:
    return fdl.Partial(
        nnx.Stack, layers=layers, repeats=repeats, execution=fdl.Config(Scan)
    )


def embedding() -> fdl.Partial:
    return fdl.Partial(nnx.Embedding, initializer=fdl.Config(Normal))


def head() -> fdl.Partial:
    """A head with a kernel of its own."""
    return fdl.Partial(nnx.Head, dot=fdl.Config(Dot), initializer=fdl.Config(FanIn))


def tied_head() -> fdl.Partial:
    """The embedding table as head."""
    return fdl.Partial(nnx.TiedHead, dot=fdl.Config(Dot))
