"""The tokenizer in a GGUF file as the files that Hugging Face keeps beside a model."""

import json
import pathlib
from typing import TYPE_CHECKING, Any

from maxfdl.errors import UserError
from maxfdl.gguf.file import GgufFile

if TYPE_CHECKING:
    import tokenizers

_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type

# How text is cut before pairs are merged; each model file names one.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(file: GgufFile, folder: pathlib.Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json.

    Raises:
      UserError: If it is no byte-level BPE of a kind that is known here.
    """
    texts = file.setting("tokenizer.ggml.tokens")
    _tokenizer(file, texts).save(str(folder / "tokenizer.json"))
    ids = {
        role: file.setting(f"tokenizer.ggml.{name}_token_id")
        for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    config: dict[str, Any] = {
        f"{role}_token": texts[index]
        for role, index in ids.items()
        if index is not None
    }
    if template := file.setting("tokenizer.chat_template"):
        config["chat_template"] = template
    _write(folder / "tokenizer_config.json", config)
    stop = [ids["eos"], file.setting("tokenizer.ggml.eot_token_id")]
    stop = list(dict.fromkeys(index for index in stop if index is not None))
    _write(folder / "generation_config.json", {"eos_token_id": stop})


def _tokenizer(file: GgufFile, texts: list[str]) -> "tokenizers.Tokenizer":
    import tokenizers
    from tokenizers import AddedToken, decoders, models, processors

    kind = file.setting("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UserError(
            f"{file.path} has a tokenizer of kind {kind!r}, which must be 'gpt2', a"
            " byte-level BPE; use the model's tokenizer.json."
        )
    merges = [tuple(m.split(" ", 1)) for m in file.setting("tokenizer.ggml.merges")]
    vocab = {text: index for index, text in enumerate(texts)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(file)
    tokenizer.decoder = decoders.ByteLevel()
    types = file.setting("tokenizer.ggml.token_type")
    for text, token_type in zip(texts, types, strict=True):
        if token_type == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(text, normalized=False)])
        elif token_type == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(text, normalized=False)])
    if file.setting("tokenizer.ggml.add_bos_token", False):
        index = file.setting("tokenizer.ggml.bos_token_id")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[texts[index], "$A"], special_tokens=[(texts[index], index)]
        )
    return tokenizer


def _pre_tokenizer(file: GgufFile) -> Any:
    from tokenizers import Regex, pre_tokenizers

    def byte_level(use_regex: bool) -> Any:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)

    kind = file.setting("tokenizer.ggml.pre", "default")
    if kind in ("default", "gpt-2"):
        return byte_level(True)
    if kind == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level(True)])
    if kind == "llama-bpe":
        split = pre_tokenizers.Split(Regex(_LLAMA3), "isolated")
        return pre_tokenizers.Sequence([split, byte_level(False)])
    raise UserError(
        f"{file.path} cuts text the way of {kind!r}, which must be one of default,"
        " gpt-2, llama-bpe, smollm; use the model's tokenizer.json."
    )


def _write(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
