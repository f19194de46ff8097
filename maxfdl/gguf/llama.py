"""The architecture `llama` of GGUF, in the words of Hugging Face."""

import re
from typing import Any

import numpy as np

from maxfdl.gguf.file import GgufFile
from maxfdl.outside import Integer, Number, Text

_SIZE = Integer(least=1)

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
      UserError: If a setting is missing or no number, or if the file is of another
        architecture, or has settings that change a Llama.
    """
    general = file.settings
    architecture = general.take("general.architecture", Text())
    if architecture != "llama":
        raise file.wrong(
            f"has the architecture {architecture!r}, which must be 'llama'"
        )
    heads = general.take("llama.attention.head_count", _SIZE)
    features = general.take("llama.embedding_length", _SIZE)
    head_dim = _head_dim(file, features, heads)
    _check_plain(file, head_dim)
    names = set(file.names())
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": features,
        "num_hidden_layers": general.take("llama.block_count", _SIZE),
        "num_attention_heads": heads,
        "num_key_value_heads": general.take(
            "llama.attention.head_count_kv", _SIZE, heads
        ),
        "head_dim": head_dim,
        "intermediate_size": general.take("llama.feed_forward_length", _SIZE),
        "vocab_size": file.shape("token_embd.weight")[0],
        "max_position_embeddings": general.take("llama.context_length", _SIZE),
        "rms_norm_eps": _as_written(
            general.take("llama.attention.layer_norm_rms_epsilon", Number(above=0))
        ),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": _as_written(
                general.take("llama.rope.freq_base", Number(above=0), 10_000.0)
            ),
        },
        "tie_word_embeddings": "output.weight" not in names,
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_gate.bias" in names,
        "dtype": "float32",
        "bos_token_id": general.take("tokenizer.ggml.bos_token_id", Integer(), None),
        "eos_token_id": general.take("tokenizer.ggml.eos_token_id", Integer(), None),
    }


def _head_dim(file: GgufFile, features: int, heads: int) -> int:
    given = file.settings.take("llama.attention.key_length", _SIZE, None)
    if given is None and features % heads:
        raise file.settings.wrong(
            f"llama.embedding_length ({features}) must be a multiple of"
            f" llama.attention.head_count ({heads})"
        )
    return given or features // heads


def _check_plain(file: GgufFile, head_dim: int) -> None:
    """Refuses settings that make another network of the same tensors."""
    settings = file.settings
    if settings.take("llama.rope.scaling.type", Text(), "none") != "none":
        raise file.wrong("scales its rope, which is read from config.json only")
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if settings.take(key, _SIZE, head_dim) != head_dim:
            raise settings.wrong(
                f"{key} ({settings.content[key]}) must be the width of a head"
                f" ({head_dim})"
            )
    experts = settings.take("llama.expert_count", Integer(), 0)
    if experts:
        raise file.wrong(f"has {experts} experts, where a Llama has none")


def name_of(name: str) -> str:
    """Returns Hugging Face's name of a tensor; one that it does not know stays."""
    stem, _, kind = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{kind}"
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if layer and layer[2] in _OF_A_LAYER:
        return f"model.layers.{layer[1]}.{_OF_A_LAYER[layer[2]]}.{kind}"
    return name


def check_tensors(file: GgufFile, config: dict[str, Any]) -> None:
    """Refuses tensors that a Llama has no place for, and too few or too many layers.

    Raises:
      UserError: With the first of them.
    """
    unknown = [name for name in file.names() if name_of(name) == name]
    if unknown:
        shown = (name if name.isprintable() else ascii(name) for name in unknown[:5])
        raise file.wrong(
            f"holds tensors that a Llama has no place for: {', '.join(shown)}"
        )
    layers = {name.split(".")[1] for name in file.names() if name.startswith("blk.")}
    if config["num_hidden_layers"] != len(layers):
        raise file.settings.wrong(
            f"llama.block_count ({config['num_hidden_layers']}) must be {len(layers)},"
            " for the file holds that many layers"
        )
    for name in file.names():
        heads, rows = _heads_of(name, config), file.shape(name)[0]
        if heads is not None and rows % (2 * heads):
            raise file.wrong(
                f"holds {name} of {rows} rows, which must be a multiple of 2 x {heads},"
                " for that many heads"
            )


def _heads_of(name: str, config: dict[str, Any]) -> int | None:
    """Returns the heads that the rows of a tensor make, None if they make none."""
    return {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }.get(name.split(".")[-2])


def values_of(name: str, values: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """Returns a tensor as Hugging Face keeps it.

    llama.cpp rotates neighbours in a head, Hugging Face the two halves of it: the rows
    of queries and keys come in another order.

    Raises:
      UserError: If the rows do not make that many heads.
    """
    heads = _heads_of(name, config)
    if heads is None:
        return values
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _as_written(value: float) -> float:
    """Returns the shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
