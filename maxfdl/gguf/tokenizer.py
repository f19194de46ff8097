"""The tokenizer in a GGUF file as the files that Hugging Face keeps beside a model.

Right is what llama.cpp does with the same file. Two kinds are read: `gpt2`, a
byte-level BPE, and `llama`, the BPE of SentencePiece, whose pairs have scores.
"""

import pathlib
from typing import TYPE_CHECKING, Any

from maxfdl.data.tokenizers.rust import explained, without_panic_messages
from maxfdl.data.tokenizers.saving import (
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    write_json,
)
from maxfdl.errors import did_you_mean
from maxfdl.gguf.file import GgufFile
from maxfdl.gguf.pre_tokenizers import KINDS, Kind, pre_tokenizer
from maxfdl.gguf.vocabulary import Type, Vocabulary
from maxfdl.outside import Flag, Listing, Number, Text

if TYPE_CHECKING:
    import tokenizers

# Roles in the words of Hugging Face and of GGUF.
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def write_tokenizer(file: GgufFile, folder: pathlib.Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json.

    Raises:
      UserError: If the tokenizer is of a kind that is not read, or a setting of it is
        missing or wrong.
    """
    model = file.settings.take("tokenizer.ggml.model", Text())
    if model not in ("gpt2", "llama"):
        raise file.wrong(
            f"has a tokenizer of kind {model!r}, which must be 'gpt2' or 'llama'"
        )
    # Without a word in the file, llama.cpp takes SentencePiece's ids.
    usual = {"bos": 1, "eos": 2, "unknown": 0} if model == "llama" else {}
    vocabulary = Vocabulary(file, usual)
    make = _sentencepiece_bpe if model == "llama" else _byte_level_bpe
    with explained(str(file.path)), without_panic_messages():
        tokenizer = make(vocabulary)
        _add_special_tokens(tokenizer, vocabulary)
        tokenizer.save(str(folder / TOKENIZER))
    ids = {role: vocabulary.special(theirs) for role, theirs in _ROLES.items()}
    names = {
        f"{role}_token": vocabulary.texts[index]
        for role, index in ids.items()
        if index is not None
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    write_json(folder / TOKENIZER_CONFIG, {**config, **_chat_templates(file)})
    write_json(folder / GENERATION_CONFIG, {"eos_token_id": vocabulary.ends})


def _byte_level_bpe(vocabulary: Vocabulary) -> "tokenizers.Tokenizer":
    import tokenizers
    from tokenizers import decoders, models

    settings = vocabulary.file.settings
    kind = _kind(vocabulary.file)
    pairs = settings.take("tokenizer.ggml.merges", Listing(Text()))
    made = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary.ids,
            merges=[_pair(pair, vocabulary) for pair in pairs],
            ignore_merges=kind.ignore_merges,
        )
    )
    made.pre_tokenizer = pre_tokenizer(kind)
    made.decoder = decoders.ByteLevel()
    _frame(made, vocabulary, add_bos=kind.add_bos)
    return made


def _kind(file: GgufFile) -> Kind:
    name = file.settings.take("tokenizer.ggml.pre", Text(), "default")
    if name not in KINDS:
        raise file.wrong(
            f"cuts text the way of {name!r}, which is none of the {len(KINDS)} kinds"
            f" that are known here.{did_you_mean(name, KINDS)} It can be read from"
            " tokenizer.json"
        )
    return KINDS[name]


def _pair(text: str, vocabulary: Vocabulary) -> tuple[str, str]:
    """Returns the two tokens of a merge; a first one may begin with a blank."""
    cut = text.find(" ", 1)
    left, right = text[:cut], text[cut + 1 :]
    known = vocabulary.ids
    if cut < 0 or not {left, right, left + right} <= known.keys():
        raise vocabulary.file.settings.wrong(
            f"tokenizer.ggml.merges has {text!r}, which must be two tokens that make a"
            " third"
        )
    return left, right


def _sentencepiece_bpe(vocabulary: Vocabulary) -> "tokenizers.Tokenizer":
    import tokenizers
    from tokenizers import decoders, models, normalizers

    settings = vocabulary.file.settings
    unknown = vocabulary.special("unknown")
    has_bytes = all(f"<0x{byte:02X}>" in vocabulary.ids for byte in range(256))
    made = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary.ids,
            merges=_scored_pairs(vocabulary),
            unk_token=None if unknown is None else vocabulary.texts[unknown],
            fuse_unk=True,
            byte_fallback=has_bytes,
        )
    )
    blanks: list[Any] = [normalizers.Replace(" ", "▁")]
    decoded: list[Any] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if settings.take("tokenizer.ggml.add_space_prefix", Flag(), True):
        blanks.insert(0, normalizers.Prepend("▁"))
        decoded.append(decoders.Strip(" ", left=1, right=0))
    made.normalizer = normalizers.Sequence(blanks)
    made.decoder = decoders.Sequence(decoded)
    _frame(made, vocabulary, add_bos=True)
    return made


def _scored_pairs(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Returns the pairs that make a token, those of the highest score first.

    llama.cpp joins the neighbours whose token scores highest, and of equals those on
    the left. A list of pairs says the same, but for equals: the first in the list comes
    first, wherever it stands.
    """
    settings, ids = vocabulary.file.settings, vocabulary.ids
    key, size = "tokenizer.ggml.scores", len(ids)
    scores = settings.take(key, Listing(Number(), length=size))
    found = []
    for index, text in enumerate(vocabulary.texts):
        if vocabulary.types[index] != Type.NORMAL:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                found.append((-scores[index], ids[left], ids[right], (left, right)))
    return [pair for *_, pair in sorted(found)]


def _frame(
    tokenizer: "tokenizers.Tokenizer", vocabulary: Vocabulary, *, add_bos: bool
) -> None:
    """Lets the tokenizer add BOS and EOS to a text, as the file or its kind says."""
    from tokenizers import processors

    settings = vocabulary.file.settings
    asked = {
        "bos": settings.take("tokenizer.ggml.add_bos_token", Flag(), add_bos),
        "eos": settings.take("tokenizer.ggml.add_eos_token", Flag(), False),
    }
    added: dict[str, tuple[str, int]] = {}
    for role in (role for role, wanted in asked.items() if wanted):
        index = vocabulary.special(role)
        if index is None:
            raise settings.wrong(
                f"tokenizer.ggml.{role}_token_id is missing, and must be the id of a"
                " token, for it is added to texts"
            )
        added[role] = vocabulary.texts[index], index
    pieces = [added["bos"][0]] if "bos" in added else []
    pieces += ["$A"]
    pieces += [added["eos"][0]] if "eos" in added else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=pieces, special_tokens=list(dict.fromkeys(added.values()))
    )


def _add_special_tokens(
    tokenizer: "tokenizers.Tokenizer", vocabulary: Vocabulary
) -> None:
    from tokenizers import AddedToken

    def made(ids: set[int]) -> list[AddedToken]:
        strips = vocabulary.strips_right
        return [
            AddedToken(vocabulary.texts[i], rstrip=i in strips, normalized=False)
            for i in sorted(ids)
        ]

    tokenizer.add_special_tokens(made(vocabulary.control))
    tokenizer.add_tokens(made(vocabulary.user_defined - vocabulary.control))


def _chat_templates(file: GgufFile) -> dict[str, Any]:
    """Returns the chat templates as tokenizer_config.json has them."""
    key = "tokenizer.chat_template"
    names = file.settings.take("tokenizer.chat_templates", Listing(Text()), [])
    found = {name: file.settings.take(f"{key}.{name}", Text()) for name in names}
    default = file.settings.take(key, Text(), None)
    if default is not None:
        found = {"default": default, **found}
    if not found:
        return {}
    listed = [{"name": name, "template": text} for name, text in found.items()]
    return {"chat_template": default if len(found) == 1 and default else listed}
