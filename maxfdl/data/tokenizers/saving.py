"""Saves our own tokenizers as a folder that transformers loads."""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"


def save_ours(folder: pathlib.Path, tokenizer: "tokenizers.Tokenizer") -> None:
    """Writes a tokenizer with the special tokens BOS, EOS and PAD into `folder`.

    With `split_special_tokens`, transformers reads `<|eos|>` in a text as ordinary
    text, as we do.
    """
    tokenizer.save(str(folder / TOKENIZER))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / TOKENIZER_CONFIG, config)
    roles = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    ids = {role: tokenizer.token_to_id(text) for role, text in roles.items()}
    write_json(folder / GENERATION_CONFIG, ids)


def begin_with_bos(tokenizer: "tokenizers.Tokenizer") -> None:
    """Lets the tokenizer put BOS in front of every text that stands alone."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(f"{text}\n", "utf-8")


OTHER_FORMATS = (
    "tokenizer.model*",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "tekken.json",
    "*.tiktoken",
)
"""Patterns of files with the vocabulary of a tokenizer that is no tokenizer.json."""

TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *OTHER_FORMATS,
    "chat_template*",
    "chat_templates/*.jinja",
    GENERATION_CONFIG,
)
"""Patterns of what lies in a model folder besides config.json and weights."""


def in_other_format(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns a file of a folder that holds a tokenizer in another format, if any."""
    found = (path for pattern in OTHER_FORMATS for path in sorted(folder.glob(pattern)))
    return next(found, None)


def copy_tokenizer_files(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the files of tokenizer, chat template and generation settings."""
    for pattern in TOKENIZER_FILES:
        for path in sorted(source.glob(pattern)):
            copy = target / path.relative_to(source)
            if path.is_file() and copy.absolute() != path.absolute():
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)
