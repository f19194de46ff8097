"""What MaxText calls the parameters of each kind of decoder, and how it stacks layers.

Rows are those of `maxfdl.tensors.table`, with paths in MaxText's tree in place of
names: `{layer}` is the path of a layer or a stack of layers, `{kind}` tells two layers
apart that are one in MaxText.
"""

import dataclasses
from collections.abc import Sequence

from maxfdl.errors import UserError, did_you_mean
from maxfdl.tensors.layouts import AsDeclared, Fused, Layout
from maxfdl.tensors.maxtext.groups import (
    Grouping,
    dense_first,
    in_cycles,
    in_forked_cycles,
    in_pairs,
    of_gemma3,
    plain,
)
from maxfdl.tensors.maxtext.layouts import (
    KEY_HEADS,
    Joined,
    Plus,
    Same,
    Side,
    Taps,
    Times,
)
from maxfdl.tensors.maxtext.options import Options
from maxfdl.tensors.table import Names, Row

LAYER_STACK = "{layer}"
LAYER = f"{LAYER_STACK}/"
SAME = Same()


@dataclasses.dataclass(frozen=True)
class Naming:
    """The names of one kind of decoder.

    Args:
      rows: All parameters; rows of paths that a model lacks do not count.
      groups: How its layers are grouped.
      rngs: Parts of a layer that keep the random streams of NNX; the first that a layer
        has keeps them. An empty path is the layer itself.
      decoder_rngs: What keeps those of the decoder, where layers are scanned and none
        of them is outside a stack.
      block_rngs: What keeps those of a block of layers, beside those of its layers.
    """

    rows: tuple[Row, ...]
    groups: Grouping
    rngs: tuple[str, ...] = ("self_attention",)
    decoder_rngs: str = "decoder"
    block_rngs: str | None = None


def _row(theirs: str, ours: Names, layout: Layout = SAME, **more) -> Row:
    return Row(theirs, ours, layout, **more)


def _scale(theirs: str, ours: str) -> tuple[Row, Row]:
    """Rows of a norm's scale, which ours may keep without its 1."""
    return (
        _row(f"{theirs}/scale", f"{ours}/scale"),
        _row(f"{theirs}/scale", f"{ours}/offset", Plus(1.0)),
    )


def _offset(theirs: str, ours: str) -> tuple[Row, ...]:
    """Rows of a norm whose scale MaxText keeps without its 1."""
    return (
        _row(f"{theirs}/scale", f"{ours}/offset"),
        _row(f"{theirs}/scale", f"{ours}/scale", Plus(-1.0)),
        _row(f"{theirs}/bias", f"{ours}/bias"),
    )


QUERY = Times("query", turned=(0,))
KEY = Times("", turned=(0,))
QKV = Times("query", which=(0,), turned=(0, 1), inner=Side(-3))

EMBEDDING = _row("token_embedder/embedding", "embedding/table", Times("embedding"))
OUTSIDE = (
    EMBEDDING,
    *_scale("decoder/decoder_norm", "final_norm"),
    _row("decoder/logits_dense/kernel", "head/kernel"),
)
PRE_NORMS = (
    *_scale(f"{LAYER}pre_self_attention_layer_norm", "attention_norm"),
    *_scale(f"{LAYER}post_self_attention_layer_norm", "mlp_norm"),
)


def attention(name: str = "self_attention") -> tuple[Row, ...]:
    """Rows of grouped-query attention under `name`, with projections apart or fused."""
    path = f"{LAYER}{name}"
    layouts = {"query": QUERY, "key": KEY, "value": SAME}
    arrays = ("kernel", "bias")
    return (
        *(
            _row(f"{path}/{part}/{array}", f"attention/{part}/{array}", layout)
            for part, layout in layouts.items()
            for array in arrays
        ),
        *(
            _row(
                f"{path}/qkv_proj/{array}",
                tuple(f"attention/{part}/{array}" for part in layouts),
                QKV,
            )
            for array in arrays
        ),
        _row(f"{path}/out/kernel", "attention/out/kernel"),
        _row(f"{path}/out/bias", "attention/out/bias"),
        *_scale(f"{path}/query_norm", "attention/query_norm/norm"),
        *_scale(f"{path}/key_norm", "attention/key_norm/norm"),
        _row(f"{path}/sinks", "attention/sinks/scores"),
    )


def mlp(name: str = "mlp", ours: str = "mlp") -> tuple[Row, ...]:
    """Rows of a gated layer, with its two first projections apart or fused."""
    path, both = f"{LAYER}{name}", (f"{ours}/gate/kernel", f"{ours}/up/kernel")
    return (
        _row(f"{path}/wi_0/kernel", f"{ours}/gate/kernel"),
        _row(f"{path}/wi_1/kernel", f"{ours}/up/kernel"),
        _row(f"{path}/wi/kernel", both, Side(-2)),
        _row(f"{path}/wo/kernel", f"{ours}/down/kernel"),
        *(
            _row(f"{path}/{theirs}/bias", f"{ours}/{each}/bias")
            for theirs, each in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down"))
        ),
    )


def experts(name: str) -> tuple[Row, ...]:
    """Rows of a mixture of experts."""
    path = f"{LAYER}{name}"
    pairs = (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down"))
    return (
        _row(f"{path}/gate/kernel", "mlp/router/kernel"),
        _row(f"{path}/gate/bias", "mlp/router/bias"),
        _row(f"{path}/gate/bias", "mlp/router/selection_bias", state=True),
        *(_row(f"{path}/{a}", f"mlp/experts/{b}/kernel") for a, b in pairs),
        *(_row(f"{path}/{a}_bias", f"mlp/experts/{b}/bias") for a, b in pairs),
    )


LATENT_ATTENTION = (
    _row(f"{LAYER}self_attention/query/kernel", "attention/query/kernel"),
    _row(f"{LAYER}self_attention/wq_a/kernel", "attention/query/down/kernel"),
    *_scale(f"{LAYER}self_attention/q_norm", "attention/query/norm"),
    _row(f"{LAYER}self_attention/wq_b/kernel", "attention/query/up/kernel"),
    _row(
        f"{LAYER}self_attention/wkv_a/kernel",
        ("attention/latent/kernel", "attention/rope_key/kernel"),
        Joined(),
    ),
    *_scale(f"{LAYER}self_attention/kv_norm", "attention/latent_norm"),
    _row(
        f"{LAYER}self_attention/wkv_b/kernel",
        ("attention/key/kernel", "attention/value/kernel"),
        Joined(),
    ),
    _row(f"{LAYER}self_attention/out/kernel", "attention/out/kernel"),
)
GPT3 = (
    EMBEDDING,
    _row("decoder/position_embedder/embedding", "position_embedding/table"),
    *_offset("decoder/decoder_norm", "final_norm"),
    _row("decoder/logits_dense/kernel", "head/kernel"),
    *_offset(f"{LAYER}pre_self_attention_norm", "attention_norm"),
    *_offset(f"{LAYER}mlp/mlp_layer_norm", "mlp_norm"),
    *attention(),
    *(
        _row(f"{LAYER}mlp/{theirs}/{part}", f"mlp/{ours}/{part}")
        for theirs, ours in (("wi", "up"), ("wo", "down"))
        for part in ("kernel", "bias")
    ),
)


_OLMO3 = (
    *_scale(f"{LAYER}post_self_attention_layer_norm", "attention_post_norm"),
    *_scale(f"{LAYER}post_mlp_layer_norm", "mlp_post_norm"),
)
_LINEAR, _FULL = f"{LAYER}attention", f"{LAYER}attention/attention"
_BESIDE_LINEAR, _BESIDE_FULL = "attention/a_log", "attention/query_norm/norm/offset"
_OF_KEY_HEADS = Fused(groups=KEY_HEADS, transposed=False)
LINEAR_ATTENTION = (
    # Of each key head, all that it shares with its value heads.
    _row(
        f"{_LINEAR}/in_proj_qkvz/kernel",
        tuple(
            f"attention/{part}/kernel"
            for part in ("query", "key", "value", "output_gate")
        ),
        _OF_KEY_HEADS,
    ),
    _row(
        f"{_LINEAR}/in_proj_ba/kernel",
        ("attention/beta/kernel", "attention/decay/kernel"),
        _OF_KEY_HEADS,
    ),
    _row(
        f"{_LINEAR}/conv1d/kernel",
        tuple(f"attention/{part}_conv/kernel" for part in ("query", "key", "value")),
        Taps(),
    ),
    _row(f"{_LINEAR}/A_log", "attention/a_log"),
    _row(f"{_LINEAR}/dt_bias", "attention/dt_bias"),
    _row(f"{_LINEAR}/norm/rms_norm/scale", "attention/norm/scale"),
    _row(
        f"{_LINEAR}/out_proj/kernel",
        "attention/out/kernel",
        AsDeclared(transposed=False),
        beside=_BESIDE_LINEAR,
    ),
)
GATED_ATTENTION = (
    # Of each head, the query and then its gate.
    _row(
        f"{_FULL}/query/kernel",
        ("attention/query/kernel", "attention/gate/kernel"),
        Joined(),
    ),
    *(
        _row(f"{_FULL}/{part}/kernel", f"attention/{part}/kernel", beside=_BESIDE_FULL)
        for part in ("key", "value", "out")
    ),
    *_offset(f"{_FULL}/query_norm", "attention/query_norm/norm"),
    *_offset(f"{_FULL}/key_norm", "attention/key_norm/norm"),
)
QWEN3_NEXT = (
    EMBEDDING,
    *_offset("decoder/decoder_norm", "final_norm"),
    _row("decoder/logits_dense/kernel", "head/kernel"),
    *_offset(f"{LAYER}input_layernorm", "attention_norm"),
    *_offset(f"{LAYER}post_attention_layernorm", "mlp_norm"),
    *LINEAR_ATTENTION,
    *GATED_ATTENTION,
    *experts("mlp/routed_experts"),
    *mlp("mlp/shared_expert", "mlp/shared"),
    _row(
        f"{LAYER}mlp/shared_expert_gate/kernel",
        "mlp/shared_gate/kernel",
        AsDeclared(transposed=False),
    ),
)


def _gemma(kind: str = "") -> tuple[Row, ...]:
    return (
        *OUTSIDE,
        *_scale(f"{LAYER}pre_self_attention_norm{kind}", "attention_norm"),
        *_scale(f"{LAYER}post_self_attention_norm{kind}", "attention_post_norm"),
        *_scale(f"{LAYER}pre_ffw_norm{kind}", "mlp_norm"),
        *_scale(f"{LAYER}post_ffw_norm{kind}", "mlp_post_norm"),
        *attention(f"self_attention{kind}"),
        *mlp(f"mlp{kind}"),
    )


_LLAMA_ROWS = OUTSIDE + PRE_NORMS + attention() + mlp()
_LLAMA = Naming(_LLAMA_ROWS, plain)
_DEEPSEEK, _LLAMA4 = "DeepSeekMoeBlock_0", "Llama4MoEBlock_0"

NAMINGS: dict[str, Naming] = {
    "llama2": _LLAMA,
    "mistral": Naming(_LLAMA_ROWS, plain, ("",)),
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": Naming(
        OUTSIDE + PRE_NORMS + attention() + experts("moe_block"), plain, ("moe_block",)
    ),
    "mixtral": Naming(
        OUTSIDE + PRE_NORMS + attention() + experts("MoeBlock_0"),
        plain,
        ("MoeBlock_0",),
    ),
    "deepseek": Naming(
        OUTSIDE
        + PRE_NORMS
        + LATENT_ATTENTION
        + mlp()
        + experts(f"{_DEEPSEEK}/MoeBlock_0")
        + mlp(f"{_DEEPSEEK}/shared_experts", "mlp/shared"),
        dense_first,
        (f"{_DEEPSEEK}/MoeBlock_0", ""),
    ),
    "gemma": Naming(_gemma(), plain, ("",)),
    "gemma2": Naming(_gemma("{kind}"), in_pairs, ("",)),
    "gemma3": Naming(
        _gemma(), of_gemma3, ("",), decoder_rngs="decoder/layers_remainder"
    ),
    "gpt3": Naming(GPT3, plain, ("",)),
    "gpt_oss": Naming(
        OUTSIDE + PRE_NORMS + attention("GptOssAttention") + experts("GptOssMlp"),
        in_cycles,
        ("GptOssAttention",),
    ),
    "olmo3": Naming(
        OUTSIDE + _OLMO3 + attention("attention") + mlp(), in_cycles, ("attention",)
    ),
    "llama4": Naming(
        OUTSIDE
        + PRE_NORMS
        + attention()
        + mlp()
        + experts(f"{_LLAMA4}/MoeBlock_0")
        + mlp(f"{_LLAMA4}/shared_experts", "mlp/shared"),
        in_cycles,
        (f"{_LLAMA4}/MoeBlock_0", ""),
    ),
    "qwen3_next": Naming(
        QWEN3_NEXT,
        in_forked_cycles,
        ("attention/attention", "mlp/routed_experts"),
        block_rngs="decoder/layers",
    ),
}
"""The names of each `decoder_block`."""

FOLDED = frozenset({"llama2", "mistral", "mixtral", "gemma", "gemma2"})
"""Decoders that keep the scale of attention's scores inside the query kernels."""

OTHER_MATRICES = frozenset({"gemma2", "qwen3_moe", "gpt_oss", "olmo3", "qwen3_next"})
"""Decoders of which MaxText's Muon orthogonalises other matrices than [inputs, outputs]
of each kernel, for it tells them by names that these do not have."""


def naming_of(options: Options) -> Naming:
    """Returns the names of the decoder that options describe.

    Raises:
      UserError: If it is none that is known here.
    """
    block = options["decoder_block"]
    if block not in NAMINGS:
        raise UserError(
            f"MaxText's decoder_block ({block}) must be one of {', '.join(NAMINGS)}."
            f"{did_you_mean(block, NAMINGS)}"
        )
    return NAMINGS[block]


def rows_for(naming: Naming, options: Options) -> Sequence[Row]:
    """Returns the rows that count where projections are fused, or are not."""
    fused = {"qkv_proj": options["fused_qkv"], "wi": options["fused_mlp"]}
    apart = {"query": "qkv_proj", "key": "qkv_proj", "value": "qkv_proj"}
    apart |= {"wi_0": "wi", "wi_1": "wi"}

    def counts(row: Row) -> bool:
        assert isinstance(row.theirs, str)
        part = row.theirs.rpartition("/")[0].rpartition("/")[2]
        if part in fused and not isinstance(row.ours, str):
            return fused[part]
        return not fused.get(apart.get(part, ""), False)

    return [row for row in naming.rows if counts(row)]
