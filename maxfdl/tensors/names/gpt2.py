"""Tensor names of GPT-2, whose kernels are [inputs, outputs] as ours are."""

from maxfdl.tensors.layouts import AsDeclared, Fused
from maxfdl.tensors.table import NameTable, Row

LAYER = "transformer.h.{layer}."
PLAIN = AsDeclared(transposed=False)
QKV = ("attention/query", "attention/key", "attention/value")

OUTSIDE = (
    Row("transformer.wte.weight", "embedding/table"),
    Row("transformer.wpe.weight", "position_embedding/table"),
    Row("transformer.ln_f.weight", "final_norm/scale"),
    Row("transformer.ln_f.bias", "final_norm/bias"),
    Row("lm_head.weight", "head/kernel"),
)
NORMS = (
    Row(f"{LAYER}ln_1.weight", "attention_norm/scale"),
    Row(f"{LAYER}ln_1.bias", "attention_norm/bias"),
    Row(f"{LAYER}ln_2.weight", "mlp_norm/scale"),
    Row(f"{LAYER}ln_2.bias", "mlp_norm/bias"),
)
ATTENTION = (
    Row(
        f"{LAYER}attn.c_attn.weight",
        tuple(f"{each}/kernel" for each in QKV),
        Fused(transposed=False),
    ),
    Row(f"{LAYER}attn.c_attn.bias", tuple(f"{each}/bias" for each in QKV), Fused()),
    Row(f"{LAYER}attn.c_proj.weight", "attention/out/kernel", PLAIN),
    Row(f"{LAYER}attn.c_proj.bias", "attention/out/bias"),
)
MLP = (
    Row(f"{LAYER}mlp.c_fc.weight", "mlp/up/kernel", PLAIN),
    Row(f"{LAYER}mlp.c_fc.bias", "mlp/up/bias"),
    Row(f"{LAYER}mlp.c_proj.weight", "mlp/down/kernel", PLAIN),
    Row(f"{LAYER}mlp.c_proj.bias", "mlp/down/bias"),
)

TABLE = NameTable(
    model_types=("gpt2",),
    rows=OUTSIDE + NORMS + ATTENTION + MLP,
    prefix="transformer.",
    # Causal masks, which the first checkpoints keep beside the weights.
    ignored=(r"\.attn\.(masked_)?bias$",),
)
