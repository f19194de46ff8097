"""Tensor names of DeepSeek-V3 and Kimi K2: DeepSeek-V2's, with a bias of the choice."""

from maxfdl.tensors.names.deepseek_v2 import LATENT_ATTENTION, SHARED_EXPERTS
from maxfdl.tensors.names.llama import LAYER, MLP, OUTSIDE, PRE_NORMS
from maxfdl.tensors.names.qwen3_moe import EXPERTS
from maxfdl.tensors.table import NameTable, Row

SELECTION_BIAS = (
    Row(
        f"{LAYER}mlp.gate.e_score_correction_bias",
        "mlp/router/selection_bias",
        state=True,
    ),
)

TABLE = NameTable(
    model_types=("deepseek_v3",),
    rows=OUTSIDE
    + PRE_NORMS
    + LATENT_ATTENTION
    + MLP
    + EXPERTS
    + SELECTION_BIAS
    + SHARED_EXPERTS,
)
