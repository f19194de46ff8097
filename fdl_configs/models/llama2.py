"""Llama 2 (Touvron et al. 2023, https://arxiv.org/abs/2307.09288).

Widths are those of the `config.json` that Meta publishes with each checkpoint on
Hugging Face (meta-llama/Llama-2-7b-hf, -13b-hf, -70b-hf).
"""

import fiddle as fdl

from fdl_configs import layers
from maxfdl.layers import nnx


def llama2(
    *,
    features: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    vocab_size: int,
    norm_epsilon: float = 1e-5,
    rope_theta: float = 10_000.0,
    tied: bool = False,
) -> fdl.Partial:
    """A pre-norm decoder with RoPE, RMSNorm and SwiGLU."""
    layer = fdl.Partial(
        nnx.DecoderLayer,
        attention_norm=layers.rms_norm(norm_epsilon),
        attention=layers.attention(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rope_theta=rope_theta,
        ),
        mlp_norm=layers.rms_norm(norm_epsilon),
        mlp=layers.gated_mlp(mlp),
        dropout=fdl.Partial(nnx.Dropout),
    )
    return fdl.Partial(
        nnx.Transformer,
        embedding=layers.embedding(),
        decoder=fdl.Partial(nnx.Decoder, stacks=[layers.stack([layer], num_layers)]),
        final_norm=layers.rms_norm(norm_epsilon),
        head=layers.tied_head() if tied else layers.head(),
        features=features,
        vocab_size=vocab_size,
        dtype="float32",
        param_dtype="float32",
    )


def llama2_7b() -> fdl.Partial:
    """6,738,415,616 parameters."""
    return llama2(
        features=4096,  # hidden_size
        num_layers=32,  # num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=32,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=11008,  # intermediate_size
        vocab_size=32000,  # vocab_size
    )


def llama2_13b() -> fdl.Partial:
    """13,015,864,320 parameters."""
    return llama2(
        features=5120,  # hidden_size
        num_layers=40,  # num_hidden_layers
        num_heads=40,  # num_attention_heads
        num_kv_heads=40,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=13824,  # intermediate_size
        vocab_size=32000,  # vocab_size
    )


def llama2_70b() -> fdl.Partial:
    """68,976,648,192 parameters."""
    return llama2(
        features=8192,  # hidden_size
        num_layers=80,  # num_hidden_layers
        num_heads=64,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=28672,  # intermediate_size
        vocab_size=32000,  # vocab_size
    )
