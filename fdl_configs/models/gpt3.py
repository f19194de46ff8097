"""GPT-3 (Brown et al. 2020, https://arxiv.org/abs/2005.14165), in MaxText's sizes.

Numbers are those of MaxText's configs/models/gpt3-*.yml: layers of GPT-2, with dense
attention everywhere, where the paper's 175B alternates with banded. No weights were
published.
"""

import fiddle as fdl

from fdl_configs.models.gpt2 import gpt2


def gpt3_52k() -> fdl.Partial:
    """52,464 parameters: for tests."""
    return gpt2(
        features=16,  # base_emb_dim
        num_layers=1,  # base_num_decoder_layers
        num_heads=2,  # base_num_query_heads
        mlp=64,  # base_mlp_dim
        vocab_size=1024,  # vocab_size
        length=2048,  # trainable_position_size
    )


def gpt3_6b() -> fdl.Partial:
    """5,588,736,000 parameters."""
    return gpt2(
        features=3072,  # base_emb_dim
        num_layers=48,  # base_num_decoder_layers
        num_heads=12,  # base_num_query_heads
        mlp=12288,  # base_mlp_dim
        vocab_size=32768,  # vocab_size
        length=16384,  # trainable_position_size
    )


def gpt3_22b() -> fdl.Partial:
    """22,049,107,968 parameters."""
    return gpt2(
        features=6144,  # base_emb_dim
        num_layers=48,  # base_num_decoder_layers
        num_heads=24,  # base_num_query_heads
        mlp=24576,  # base_mlp_dim
        vocab_size=32768,  # vocab_size
        length=16384,  # trainable_position_size
    )


def gpt3_175b() -> fdl.Partial:
    """174,780,997,632 parameters."""
    return gpt2(
        features=12288,  # base_emb_dim
        num_layers=96,  # base_num_decoder_layers
        num_heads=96,  # base_num_query_heads
        mlp=49152,  # base_mlp_dim
        vocab_size=50304,  # vocab_size
        length=16384,  # trainable_position_size
    )
