"""GPT-2 (Radford et al. 2019).

Numbers are those of the config.json of openai-community/gpt2, -medium, -large and -xl
on Hugging Face.
"""

from collections.abc import Mapping
from typing import Any

import fiddle as fdl

from fdl_configs import layers
from fdl_configs.hf_parts import (
    activation_from_hf,
    activation_to_hf,
    is_tied,
    layers_of,
)
from maxfdl.errors import UserError
from maxfdl.ops.activation import Activation


def gpt2(
    *,
    features: int,
    num_layers: int,
    num_heads: int,
    mlp: int,
    vocab_size: int = 50257,
    length: int = 1024,
    norm_epsilon: float = 1e-5,
    tied: bool = True,
    activation: Activation = "gelu_tanh",
    scale_by_width: bool = True,
    scale_by_layer: bool = False,
) -> fdl.Partial:
    """A pre-norm decoder with learned positions, LayerNorms and biases everywhere.

    Args:
      length: Positions that there are.
      scale_by_width: Whether scores are divided by the root of the width of a head.
      scale_by_layer: Whether they are divided by the number of the layer, too.
    """
    head_dim = features // num_heads

    def layer(scale: float | None) -> fdl.Partial:
        return layers.pre_norm_layer(
            norm=layers.layer_norm(norm_epsilon),
            attention=layers.attention(
                num_heads=num_heads,
                num_kv_heads=num_heads,
                head_dim=head_dim,
                rope=None,
                scale=scale,
                bias=True,
                out_bias=True,
            ),
            mlp=layers.mlp(mlp, activation),
        )

    if scale_by_layer:
        scale = head_dim**-0.5 if scale_by_width else 1.0
        all_layers = [layer(scale / (number + 1)) for number in range(num_layers)]
    else:
        all_layers = [layer(None if scale_by_width else 1.0)] * num_layers
    return layers.transformer(
        embedding=layers.embedding(),
        position_embedding=layers.position_embedding(length),
        decoder=layers.decoder(all_layers),
        final_norm=layers.layer_norm(norm_epsilon),
        head=layers.tied_head() if tied else layers.head(),
        features=features,
        vocab_size=vocab_size,
    )


def gpt2_small() -> fdl.Partial:
    """124,439,808 parameters: the one that is published as gpt2."""
    return gpt2(
        features=768,  # n_embd
        num_layers=12,  # n_layer
        num_heads=12,  # n_head
        mlp=4 * 768,  # 4 n_embd
    )


def gpt2_medium() -> fdl.Partial:
    """354,823,168 parameters."""
    return gpt2(
        features=1024,  # n_embd
        num_layers=24,  # n_layer
        num_heads=16,  # n_head
        mlp=4 * 1024,  # 4 n_embd
    )


def gpt2_large() -> fdl.Partial:
    """774,030,080 parameters."""
    return gpt2(
        features=1280,  # n_embd
        num_layers=36,  # n_layer
        num_heads=20,  # n_head
        mlp=4 * 1280,  # 4 n_embd
    )


def gpt2_xl() -> fdl.Partial:
    """1,557,611,200 parameters."""
    return gpt2(
        features=1600,  # n_embd
        num_layers=48,  # n_layer
        num_heads=25,  # n_head
        mlp=4 * 1600,  # 4 n_embd
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    if config.get("add_cross_attention"):
        raise UserError(
            "add_cross_attention (True) must be false: there are only decoders here."
        )
    inner = config["n_inner"]
    return gpt2(
        features=config["n_embd"],
        num_layers=config["n_layer"],
        num_heads=config["n_head"],
        mlp=4 * config["n_embd"] if inner is None else inner,
        vocab_size=config["vocab_size"],
        length=config["n_positions"],
        norm_epsilon=config["layer_norm_epsilon"],
        tied=config["tie_word_embeddings"],
        activation=activation_from_hf(config["activation_function"]),
        scale_by_width=config["scale_attn_weights"],
        scale_by_layer=config["scale_attn_by_inverse_layer_idx"],
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a GPT-2."""
    all_layers = layers_of(model)
    layer = all_layers[0]
    scales = [each.attention.attention.scale for each in all_layers]
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": model.features,
        "n_layer": len(all_layers),
        "n_head": layer.attention.num_heads,
        "n_inner": layer.mlp.hidden,
        "vocab_size": model.vocab_size,
        "n_positions": model.position_embedding.length,
        "layer_norm_epsilon": model.final_norm.epsilon,
        "tie_word_embeddings": is_tied(model),
        "activation_function": activation_to_hf(layer.mlp.activation),
        "scale_attn_weights": scales[0] != 1.0,
        "scale_attn_by_inverse_layer_idx": scales[0] not in (None, 1.0)
        or scales[-1] != scales[0],
    }
