"""The parts that decoders are put together from, as graphs of the NNX family."""

from collections.abc import Sequence

import fiddle as fdl

from maxfdl.layers import nnx
from maxfdl.layers.execution import Scan
from maxfdl.ops.activation import Activation
from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.dot import Dot
from maxfdl.ops.glu import Glu
from maxfdl.ops.initializers import FanIn, Normal
from maxfdl.ops.mask import Causal, Chunked, SlidingWindow
from maxfdl.ops.rope import Rope


def linear(use_bias: bool = False) -> fdl.Partial:
    """A projection."""
    parts = dict(dot=fdl.Config(Dot), initializer=fdl.Config(FanIn))
    if not use_bias:
        return fdl.Partial(nnx.Linear, **parts)
    return fdl.Partial(nnx.Linear, use_bias=True, **parts)


def rms_norm(epsilon: float) -> fdl.Partial:
    return fdl.Partial(nnx.RMSNorm, epsilon=epsilon)


def zero_centred_rms_norm(epsilon: float) -> fdl.Partial:
    """The norm of Gemma and Qwen3-Next: its scale is 1 + a parameter."""
    return fdl.Partial(nnx.ZeroCentredRMSNorm, epsilon=epsilon)


def layer_norm(epsilon: float, use_bias: bool = True) -> fdl.Partial:
    return fdl.Partial(nnx.LayerNorm, epsilon=epsilon, use_bias=use_bias)


def zero_centred_layer_norm(epsilon: float) -> fdl.Partial:
    """The norm of GPT-3 in Paxml and MaxText: its scale is 1 + a parameter."""
    return fdl.Partial(nnx.ZeroCentredLayerNorm, epsilon=epsilon)


def per_head(norm: fdl.Partial) -> fdl.Partial:
    """A norm of queries or keys, each head by itself."""
    return fdl.Partial(nnx.PerHead, norm=norm)


def across_heads(norm: fdl.Partial) -> fdl.Partial:
    """A norm of queries or keys, all heads together."""
    return fdl.Partial(nnx.AcrossHeads, norm=norm)


def rope(theta: float) -> fdl.Config:
    return fdl.Config(Rope, theta=theta)


def causal() -> fdl.Config:
    return fdl.Config(Causal)


def sliding_window(window: int) -> fdl.Config:
    return fdl.Config(SlidingWindow, window=window)


def causal_within(window: int | None) -> fdl.Config:
    """The mask of a layer that sees the last `window` tokens, or all with None."""
    return causal() if window is None else sliding_window(window)


def windows(window: int, *, full_every: int, num_layers: int) -> list[int | None]:
    """Returns the window of each layer: None for every `full_every`th."""
    numbers = range(1, num_layers + 1)
    return [None if number % full_every == 0 else window for number in numbers]


def chunked(size: int) -> fdl.Config:
    return fdl.Config(Chunked, size=size)


def attention(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rope: fdl.Config | None,
    mask: fdl.Config | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    bias: bool = False,
    out_bias: bool = False,
    **parts: fdl.Buildable,
) -> fdl.Partial:
    """Grouped-query attention, causal unless `mask` says otherwise.

    `bias` is that of queries, keys and values. `parts` are optional fields of
    `Attention`, such as `query_norm`.
    """
    op = fdl.Config(DotProductAttention)
    if scale is not None:
        op.scale = scale
    if soft_cap is not None:
        op.soft_cap = soft_cap
    return fdl.Partial(
        nnx.Attention,
        query=linear(bias),
        key=linear(bias),
        value=linear(bias),
        out=linear(out_bias),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rope=rope,
        mask=mask or causal(),
        attention=op,
        **parts,
    )


def gated_mlp(
    hidden: int, activation: Activation = "silu", bias: bool = False
) -> fdl.Partial:
    """A gated feed-forward layer; SwiGLU with `silu`."""
    return fdl.Partial(
        nnx.GatedMlp,
        gate=linear(bias),
        up=linear(bias),
        down=linear(bias),
        hidden=hidden,
        glu=fdl.Config(Glu, activation=activation),
    )


def mlp(hidden: int, activation: Activation) -> fdl.Partial:
    """A feed-forward layer of two projections, with biases."""
    return fdl.Partial(
        nnx.Mlp,
        up=linear(use_bias=True),
        down=linear(use_bias=True),
        hidden=hidden,
        activation=activation,
    )


def pre_norm_layer(
    *, norm: fdl.Partial, attention: fdl.Partial, mlp: fdl.Partial
) -> fdl.Partial:
    """A layer with one kind of norm before each branch."""
    return fdl.Partial(
        nnx.DecoderLayer,
        attention_norm=norm,
        attention=attention,
        mlp_norm=norm,
        mlp=mlp,
        dropout=dropout(),
    )


def post_norm_layer(
    *, norm: fdl.Partial, attention: fdl.Partial, mlp: fdl.Partial
) -> fdl.Partial:
    """A layer with one kind of norm after each branch, before it is added."""
    return fdl.Partial(
        nnx.DecoderLayer,
        attention=attention,
        attention_post_norm=norm,
        mlp=mlp,
        mlp_post_norm=norm,
        dropout=dropout(),
    )


def sandwich_layer(
    *, norm: fdl.Partial, attention: fdl.Partial, mlp: fdl.Partial
) -> fdl.Partial:
    """A layer with one kind of norm before and after each branch."""
    return fdl.Partial(
        nnx.DecoderLayer,
        attention_norm=norm,
        attention=attention,
        attention_post_norm=norm,
        mlp_norm=norm,
        mlp=mlp,
        mlp_post_norm=norm,
        dropout=dropout(),
    )


def dropout() -> fdl.Partial:
    return fdl.Partial(nnx.Dropout)


def stack(layers: list[fdl.Partial], repeats: int) -> fdl.Partial:
    return fdl.Partial(
        nnx.Stack, layers=layers, repeats=repeats, execution=fdl.Config(Scan)
    )


def decoder(layers: Sequence[fdl.Partial]) -> fdl.Partial:
    """Returns the decoder of these layers in this order, as few stacks as it takes.

    From each place on, the cycle of layers is taken whose repetitions go furthest.
    """
    stacks, start = [], 0
    while start < len(layers):
        cycle, repeats = _longest_run(layers[start:])
        stacks.append(stack(list(layers[start : start + cycle]), repeats))
        start += cycle * repeats
    return fdl.Partial(nnx.Decoder, stacks=stacks)


def _longest_run(layers: Sequence[fdl.Partial]) -> tuple[int, int]:
    """Returns length and repeats of the cycle that covers most; the shortest of equals.

    A cycle that comes once covers one layer and no more.
    """
    best = (1, 1)
    for cycle in range(1, len(layers) // 2 + 1):
        repeats = 1
        while _equal(layers[:cycle], layers[repeats * cycle : (repeats + 1) * cycle]):
            repeats += 1
        if repeats > 1 and cycle * repeats > best[0] * best[1]:
            best = (cycle, repeats)
        if best[0] * best[1] == len(layers):
            break  # no longer cycle covers more
    return best


def _equal(left: Sequence[fdl.Partial], right: Sequence[fdl.Partial]) -> bool:
    pairs = zip(left, right, strict=False)
    return len(left) == len(right) and all(a is b or a == b for a, b in pairs)


def embedding() -> fdl.Partial:
    return fdl.Partial(nnx.Embedding, initializer=fdl.Config(Normal))


def scaled_embedding() -> fdl.Partial:
    """An embedding whose rows are lengthened by the root of their width."""
    return fdl.Partial(nnx.ScaledEmbedding, initializer=fdl.Config(Normal))


def position_embedding(length: int) -> fdl.Partial:
    return fdl.Partial(
        nnx.PositionEmbedding, initializer=fdl.Config(Normal), length=length
    )


def head(**fields: float | None) -> fdl.Partial:
    """A head with a kernel of its own; `fields` may be `scale` and `soft_cap`."""
    return fdl.Partial(
        nnx.Head, dot=fdl.Config(Dot), initializer=fdl.Config(FanIn), **fields
    )


def tied_head(**fields: float | None) -> fdl.Partial:
    """The embedding table as head; `fields` as of `head`."""
    return fdl.Partial(nnx.TiedHead, dot=fdl.Config(Dot), **fields)


def transformer(
    *,
    decoder: fdl.Partial,
    final_norm: fdl.Partial,
    features: int,
    vocab_size: int,
    embedding: fdl.Partial,
    head: fdl.Partial,
    **parts: fdl.Buildable,
) -> fdl.Partial:
    """The whole model, in float32 until a run says otherwise."""
    return fdl.Partial(
        nnx.Transformer,
        embedding=embedding,
        decoder=decoder,
        final_norm=final_norm,
        head=head,
        features=features,
        vocab_size=vocab_size,
        dtype="float32",
        param_dtype="float32",
        **parts,
    )
