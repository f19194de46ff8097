"""SmolLM 3 (Bakouch et al. 2025, https://huggingface.co/blog/smollm3).

Numbers are those of the config.json of HuggingFaceTB/SmolLM3-3B on Hugging Face.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import fiddle as fdl

from fdl_configs import layers
from fdl_configs import rope as ropes
from fdl_configs.hf_parts import (
    activation_from_hf,
    activation_to_hf,
    layers_of,
    widths_from_hf,
    widths_to_hf,
    windows_from_hf,
    windows_to_hf,
)
from maxfdl.errors import UserError
from maxfdl.ops.activation import Activation


def smollm3(
    *,
    features: int,
    turns: Sequence[bool],
    windows: Sequence[int | None] | None = None,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    vocab_size: int,
    rope: fdl.Config,
    norm_epsilon: float = 1e-6,
    tied: bool = True,
    activation: Activation = "silu",
    attention_bias: bool = False,
    mlp_bias: bool = False,
) -> fdl.Partial:
    """Llama, some of whose layers know no positions.

    Args:
      turns: Of each layer, whether its queries and keys turn by `rope`.
      windows: Of each layer, None where it sees everything, as all do by default.
    """
    windows = windows or [None] * len(turns)

    @functools.cache
    def layer(turns: bool, window: int | None) -> fdl.Partial:
        return layers.pre_norm_layer(
            norm=layers.rms_norm(norm_epsilon),
            attention=layers.attention(
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                rope=rope if turns else None,
                mask=layers.causal_within(window),
                bias=attention_bias,
                out_bias=attention_bias,
            ),
            mlp=layers.gated_mlp(mlp, activation, bias=mlp_bias),
        )

    kinds = zip(turns, windows, strict=True)
    return layers.transformer(
        embedding=layers.embedding(),
        decoder=layers.decoder([layer(*kind) for kind in kinds]),
        final_norm=layers.rms_norm(norm_epsilon),
        head=layers.tied_head() if tied else layers.head(),
        features=features,
        vocab_size=vocab_size,
    )


def smollm3_3b() -> fdl.Partial:
    """3,075,098,624 parameters."""
    return smollm3(
        features=2048,  # hidden_size
        turns=[True, True, True, False] * 9,  # no_rope_layers, num_hidden_layers
        num_heads=16,  # num_attention_heads
        num_kv_heads=4,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=11008,  # intermediate_size
        vocab_size=128256,  # vocab_size
        rope=layers.rope(5_000_000.0),  # rope_theta
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    turns = [bool(each) for each in config["no_rope_layers"]]
    if len(turns) != config["num_hidden_layers"]:
        raise UserError(
            f"no_rope_layers has {len(turns)} entries and num_hidden_layers is"
            f" {config['num_hidden_layers']}; they must agree."
        )
    return smollm3(
        **widths_from_hf(config),
        turns=turns,
        windows=windows_from_hf(config),
        rope=ropes.from_hf(
            config["rope_parameters"], config["max_position_embeddings"]
        ),
        norm_epsilon=config["rms_norm_eps"],
        activation=activation_from_hf(config["hidden_act"]),
        attention_bias=config["attention_bias"],
        mlp_bias=config["mlp_bias"],
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a SmolLM 3."""
    all_layers = layers_of(model)
    layer = all_layers[0]
    rotations = [each.attention.rope for each in all_layers]
    rope = next((each for each in rotations if each is not None), layers.rope(10_000.0))
    windows = windows_to_hf(model)
    return {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        **widths_to_hf(model),
        **windows,
        "use_sliding_window": windows["sliding_window"] is not None,
        # A 1 is a layer that turns, for all that the name says.
        "no_rope_layers": [int(each is not None) for each in rotations],
        "rope_parameters": ropes.to_hf(rope),
        "rms_norm_eps": model.final_norm.epsilon,
        "hidden_act": activation_to_hf(layer.mlp.glu.activation),
        "attention_bias": layer.attention.query.use_bias,
        "mlp_bias": layer.mlp.up.use_bias,
    }
