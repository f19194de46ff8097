"""Writes tokenizers.json: what transformers does with tokenizer files of many shapes.

Run it where transformers is installed; the tests read only the result:

    python tests/goldens/tokenizers/make.py

The result holds a few whole tokenizers (`bases`) and cases. A case is a base, a JSON
merge patch to its tokenizer.json, and the files beside it; then what
`AutoTokenizer.from_pretrained` of that folder gives.
"""

import json
import os
import pathlib
import sys
import tempfile

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
from tests.goldens.tokenizers import FOLDER, merged  # noqa: E402

CORPUS = [
    "the cat sat on the mat; the dog didn't. it's 12345 o'clock, isn't it?",
    "hello hello world, this is a small text about the weather and the sea",
    "Übung macht den Meister, naïve café, 日本語のテキスト",
    "def f(x):\n    return x + 1\n\n\tfor i in range(10): print(i)",
] * 4
TEXTS = [
    "",
    "hello world",
    " the  cat\n\n sat, didn't it?",
    "Café ñ e\u0301 日本 😀 ﬁ",
    "<s>the</s> <pad><extra> <|im_start|>user [MASK] it</s>",
    "the <one>  <two>  cat<three>",
]
SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def frame(tokenizer, single):
    ids = [(text, tokenizer.token_to_id(text)) for text in ("<s>", "</s>")]
    return processors.TemplateProcessing(single=single, special_tokens=ids)


def byte_level():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=SPECIALS,
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        ),
    )
    made.post_processor = frame(made, "<s> $A")
    return made


def sentencepiece_bpe():
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIALS + bytes_)
    made.train_from_iterator(CORPUS, trainer)
    content = json.loads(made.to_str())
    content["added_tokens"] = content["added_tokens"][: len(SPECIALS)]
    made = Tokenizer.from_str(json.dumps(content))
    made.post_processor = frame(made, "<s> $A")
    return made


def unigram():
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    made.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>"
        ),
    )
    made.post_processor = frame(made, "$A </s>")
    return made


def word_piece():
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=names)
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return made


def token(content, **flags):
    usual = dict(lstrip=False, rstrip=False, single_word=False, normalized=False)
    return {"content": content, **usual, **flags}


def added(index, content, **flags):
    return {"id": index, "special": True, **token(content), **flags}


TRUNCATION = {
    "truncation": {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    },
    "padding": {
        "strategy": {"Fixed": 20},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 3,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    },
}


def template(*pieces):
    single = [
        {"Sequence": {"id": "A", "type_id": 0}}
        if piece == "$A"
        else {"SpecialToken": {"id": piece, "type_id": 0}}
        for piece in pieces
    ]
    ids = {"<s>": 1, "</s>": 2}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": {
            text: {"id": text, "ids": [index], "tokens": [text]}
            for text, index in ids.items()
        },
    }


LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
LEVEL["use_regex"] = True
SPECIAL_DICTS = {str(i): {**token(t), "special": True} for i, t in enumerate(SPECIALS)}


def flagged(bases, base):
    """Added tokens with every flag, after those of the base."""
    size = len(bases[base]["added_tokens"])
    last = Tokenizer.from_str(json.dumps(bases[base])).get_vocab_size()
    flags = [
        {"lstrip": True},
        {"rstrip": True, "special": False},
        {"single_word": True, "special": False, "normalized": True},
    ]
    names = ["<one>", "<two>", "<three>"]
    more = [
        added(last + i, name, **each)
        for i, (name, each) in enumerate(zip(names, flags, strict=True))
    ]
    return {"added_tokens": bases[base]["added_tokens"][:size] + more}


def cases(bases):
    """Yields name, base, patch of tokenizer.json, files beside it."""
    for base in ("bytes", "sentencepiece", "unigram"):
        yield f"{base}: names", base, {}, {"tokenizer_config.json": NAMES}
        yield f"{base}: no side file", base, {}, {}
        yield f"{base}: flags", base, flagged(bases, base), {}
        stored = {"tokenizer_config.json": {"bos_token": "<s>"}}
        yield f"{base}: truncation and padding stored", base, TRUNCATION, stored
        for single in (("$A",), ("<s>", "$A", "</s>"), ("$A", "</s>")):
            name = f"{base}: template {' '.join(single)}"
            patch = {"post_processor": template(*single)}
            yield name, base, patch, {"tokenizer_config.json": NAMES}
        for config in (
            {"add_bos_token": True, "add_eos_token": True},
            {"add_bos_token": False},
        ):
            for patch in ({}, {"post_processor": None}):
                has = "no post-processor" if patch else "a post-processor"
                name = f"{base}: {json.dumps(config)} with {has}"
                yield name, base, patch, {"tokenizer_config.json": {**NAMES, **config}}
    yield from byte_cases(bases)
    bert = {
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    }
    for cleans in (True, False):
        config = {**bert, "clean_up_tokenization_spaces": cleans}
        files = {"tokenizer_config.json": config}
        yield f"word pieces, cleaned: {cleans}", "word_piece", {}, files


def byte_cases(bases):
    def case(name, *, patch=None, config=None, special=None, more=None):
        files = {"tokenizer_config.json": config} if config is not None else {}
        if special is not None:
            files["special_tokens_map.json"] = special
        if more is not None:
            files["added_tokens.json"] = more
        return name, "bytes", patch or {}, files

    dicts = {key: token(text) for key, text in NAMES.items()}
    typed = {key: {"__type": "AddedToken", **each} for key, each in dicts.items()}
    other = {"bos_token": "</s>", "eos_token": "<s>"}
    decoder = {"added_tokens_decoder": SPECIAL_DICTS}
    new = {"320": {**token("<extra>"), "special": True}}
    some = ["<extra>", "cat"]

    yield case("special_tokens_map alone, texts", special=NAMES)
    yield case("special_tokens_map alone, objects", special=dicts)
    yield case("special_tokens_map beside a config", config={}, special=dicts)
    yield case("special_tokens_map wins", config=NAMES, special=other)
    yield case(
        "special_tokens_map does not count beside added_tokens_decoder",
        config={**NAMES, **decoder},
        special=other,
    )
    yield case("objects in the config", config=typed)
    yield case("null is none", config={"bos_token": None, "eos_token": "</s>"})
    yield case(
        "null in special_tokens_map wins", config=NAMES, special={"eos_token": None}
    )
    yield case(
        "added_tokens_decoder has more",
        config={**NAMES, "added_tokens_decoder": {**SPECIAL_DICTS, **new}},
    )
    plain = {"1": {**token("<s>"), "special": False}}
    yield case(
        "added_tokens_decoder changes flags",
        config={"added_tokens_decoder": {**SPECIAL_DICTS, **plain}},
    )
    yield case("added_tokens.json has more", more={"<extra>": 320, "<two>": 321})
    yield case(
        "added_tokens.json with names",
        config={**NAMES, "additional_special_tokens": ["<two>"]},
        more={"<extra>": 320, "<two>": 321},
    )
    yield case("a role's token is new", config={**NAMES, "mask_token": "[MASK]"})
    yield case("additional tokens", config={**NAMES, "additional_special_tokens": some})
    yield case("extra tokens", config={**NAMES, "extra_special_tokens": some})
    yield case(
        "extra tokens in special_tokens_map",
        config=NAMES,
        special={**NAMES, "extra_special_tokens": some},
    )
    yield case(
        "additional tokens in special_tokens_map",
        config=NAMES,
        special={**NAMES, "additional_special_tokens": some},
    )
    yield case(
        "named extra tokens",
        config={**NAMES, "extra_special_tokens": {"image_token": "<extra>"}},
    )
    yield case("roles of other names", config={**NAMES, "image_token": "<extra>"})
    yield case("special text is text", config={**NAMES, "split_special_tokens": True})
    yield case(
        "class Llama on bytes",
        config={**NAMES, "tokenizer_class": "LlamaTokenizerFast"},
    )
    yield case("byte-level post-processor", patch={"post_processor": LEVEL})
    both = {
        "type": "Sequence",
        "processors": [LEVEL, template("<s>", "$A", "</s>")],
    }
    yield case("sequence of post-processors", patch={"post_processor": both})
    roberta = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}
    roberta |= {"trim_offsets": True, "add_prefix_space": False}
    yield case("Roberta's post-processor", patch={"post_processor": roberta})


def asked(folder):
    """Returns what transformers makes of the folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    return {
        "ids": ids,
        "plain": [tokenizer.encode(t, add_special_tokens=False) for t in TEXTS],
        "decoded": [tokenizer.decode(i, skip_special_tokens=True) for i in ids],
        "roles": tokenizer.special_tokens_map,
        "size": len(tokenizer),
    }


def main():
    made = {
        "bytes": byte_level(),
        "sentencepiece": sentencepiece_bpe(),
        "unigram": unigram(),
        "word_piece": word_piece(),
    }
    bases = {name: json.loads(each.to_str()) for name, each in made.items()}
    found = []
    for name, base, patch, files in cases(bases):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            content = {"tokenizer.json": merged(bases[base], patch), **files}
            content["config.json"] = {"model_type": "llama"}
            for file, each in content.items():
                (path / file).write_text(json.dumps(each), "utf-8")
            case = {"name": name, "base": base, "patch": patch, "files": files}
            found.append({**case, "transformers": asked(path)})
    result = {"texts": TEXTS, "bases": bases, "cases": found}
    text = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
    text = text.replace('{"name":', '\n{"name":')
    (FOLDER / "tokenizers.json").write_text(f"{text}\n", "utf-8")
    print(len(found), "cases", len(text), "characters")


if __name__ == "__main__":
    main()
