"""The architecture `llama` of GGUF, in the words of Hugging Face."""

import re
from typing import Any

import numpy as np

from maxfdl.errors import UserError
from maxfdl.gguf.file import GgufFile

_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def config_of(file: GgufFile) -> dict[str, Any]:
    """Returns what config.json would say.

    Raises:
      UserError: If the file is of another architecture, or stretches its rope.
    """
    architecture = file.setting("general.architecture")
    if architecture != "llama":
        raise UserError(
            f"{file.path} has the architecture {architecture!r}, which must be 'llama'."
        )
    if file.setting("llama.rope.scaling.type", "none") != "none":
        raise UserError(
            f"{file.path} scales its rope, which is read from config.json only; use"
            " the model's safetensors."
        )
    heads = file.setting("llama.attention.head_count")
    features = file.setting("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": features,
        "num_hidden_layers": file.setting("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.setting("llama.attention.head_count_kv", heads),
        "head_dim": file.setting("llama.attention.key_length", features // heads),
        "intermediate_size": file.setting("llama.feed_forward_length"),
        "vocab_size": file.shape("token_embd.weight")[0],
        "max_position_embeddings": file.setting("llama.context_length"),
        "rms_norm_eps": _as_written(
            file.setting("llama.attention.layer_norm_rms_epsilon")
        ),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": _as_written(file.setting("llama.rope.freq_base", 10_000.0)),
        },
        "tie_word_embeddings": "output.weight" not in file.names(),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in file.names(),
        "mlp_bias": False,
        "dtype": "float32",
        "bos_token_id": file.setting("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.setting("tokenizer.ggml.eos_token_id"),
    }


def name_of(name: str) -> str:
    """Returns Hugging Face's name of a tensor; one that it does not know stays."""
    stem, _, kind = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{kind}"
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if layer and layer[2] in _OF_A_LAYER:
        return f"model.layers.{layer[1]}.{_OF_A_LAYER[layer[2]]}.{kind}"
    return name


def values_of(name: str, values: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """Returns a tensor as Hugging Face keeps it.

    llama.cpp turns neighbours in a head, Hugging Face the two halves of it: the rows
    of queries and keys come in another order.
    """
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }.get(name.split(".")[-2])
    if heads is None:
        return values
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _as_written(value: float) -> float:
    """Returns the shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
