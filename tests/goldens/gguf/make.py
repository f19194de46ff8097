"""Writes tokenizers.json: the ids that llama.cpp gives texts, for many vocabularies.

Run it where llama-cpp-python is installed; the tests read only the result:

    python tests/goldens/gguf/make.py

The vocabularies are trained here, without any cutting of text into words, so that
tokens reach across the places where a kind of pre-tokenizer cuts: two kinds that cut
otherwise give other ids.
"""

import json
import pathlib
import sys
import tempfile

import llama_cpp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
from tests.goldens.gguf import FOLDER, changed, write  # noqa: E402

TEXTS = [
    "",
    " hello hello",
    "I'll say: DON'T, don't we'Re 'tis  it's",
    "123456 7,890.12 a1b22c333 ½²३४५ x12345y",
    "two  spaces   three\n\nlines\r\n \r\n\ttabs \t end  ",
    "  \n \n\n  leading",
    "café e\u0301t\u0301 Ünï ſs ﬁ ΑΒΓαβγ Жжж HTTPServer camelCaseWord",
    "日本語のテキスト、漢字。한국어 ไทยภาษา हिन्दी עברית العربية",
    "(a[0]+b)/c==d&&e!=f // ** --- ... ?! $x=^~|`y` #@%_z",
    "nbsp\u00a0\u00a0x\u3000y\u2003z\u200b\u0085w",
    "😀👩‍👩‍👧 🇪🇺!",
    "<s>the</s> <|im_end|><|user|> the<unk>the [EOT]x",
    "path/to/file.txt\n/x /y\n- a\n- b\n",
]
CORPUS = TEXTS * 3 + [
    "the the hello it's don't we're 123 12 1234 00 99 1,000 the, the. (the) the\n\nthe",
    "日本 漢字 한국 ไทย हिन्दी ١٢٣ x\ny\nz\r\n \n  \n   ''s 't 'Re 'LL e\u0301 ABCdef",
]
SPECIAL = "<unk> <s> </s> <|user|> <|im_end|> [EOT] <|endoftext|>".split()
PRES = """default gpt-2 phi-2 jina-es jina-de gigachat a.x-4.0 mellum mpt olmo jais
trillion granite-docling exaone4 starcoder refact command-r smollm codeshell exaone
minerva-7b mellum2 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2
dbrx smaug-bpe chatglm-bpe glm4 glm5 qwen2 deepseek-r1-qwen kormo f2llmv2 megrez
stablelm2 hunyuan solar-open grok-2 qwen35 deepseek-llm deepseek-coder deepseek-v3
hunyuan-dense joyai-llm falcon poro-chat bloom gpt3-finnish viking tekken gpt-4o llama4
kanana2 minimax-m2 bailingmoe bailingmoe2 llada-moe
seed-coder hy_v4 ufakzeka minicpm5""".split()


def byte_level() -> dict:
    """Merges that cross words, digits and blanks, and two tokens that none makes."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=760,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    content = json.loads(made.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].__getitem__)
    tokens += sorted({"Ġhello", "hello", "ĠDON"} - {*tokens})
    types = [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL))
    types[0], types[3] = 2, 4
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in content["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def sentencepiece() -> dict:
    """Pieces with scores, some of them equal, and bytes for what is no piece."""
    made = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False)
    made.train_from_iterator([text.replace(" ", "▁") for text in CORPUS], trainer)
    vocab = made.get_vocab()
    pieces = sorted(vocab, key=vocab.__getitem__)
    pieces = [p for p in pieces if p not in SPECIAL and not set(p) & {"\n", "\r", "😀"}]
    scored = [p for p in pieces if len(p) > 1] + [p for p in pieces if len(p) == 1]
    tokens = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)] + scored
    types = [3] * len(SPECIAL) + [6] * 256 + [1] * len(scored)
    types[0], types[3] = 2, 4
    scores = [0.0] * (len(tokens) - len(scored))
    scores += [-float(number // 3) for number in range(len(scored))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
    }


# Settings beside those of a vocabulary.
BPE = {
    "no pre-tokenizer": {},
    "BOS asked for": {"pre": "gpt-2", "add_bos_token": True},
    "BOS refused": {"pre": "llama-bpe", "add_bos_token": False},
    "EOS asked for": {"pre": "gpt-2", "add_eos_token": True},
    "both": {"pre": "llama-bpe", "add_eos_token": True},
    "other ids": {"pre": "llama-bpe", "bos_token_id": 2, "eos_token_id": 1},
    "end of turn": {"pre": "gpt-2", "eot_token_id": 300, "eom_token_id": 301},
    "file separator": {"pre": "gpt-2", "fim_sep_token_id": 302},
    "Phi-3 by name": {"pre": "gpt-2", "general.name": "A Phi-3 mini"},
}
PIECES = {
    "pieces": {},
    "pieces, no blank in front": {"add_space_prefix": False},
    "pieces, no BOS": {"add_bos_token": False},
    "pieces, EOS": {"add_eos_token": True},
    "pieces, BOS is another": {"bos_token_id": 5},
}


def asked(settings: dict) -> dict:
    """Returns what llama.cpp makes of a vocabulary."""
    needed = {
        "llama.context_length": 128,
        "llama.embedding_length": 32,
        "llama.block_count": 1,
        "llama.feed_forward_length": 48,
        "llama.attention.head_count": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = write(pathlib.Path(folder) / "x.gguf", {**needed, **settings})
        model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        vocab = model._model.vocab
        ids = [model.tokenize(t.encode(), add_bos=True, special=True) for t in TEXTS]
        ends = llama_cpp.llama_vocab_is_eog
        return {
            "ids": ids,
            "ends": [i for i in range(model.n_vocab()) if ends(vocab, i)],
        }


def main():
    bases = {"bytes": byte_level(), "pieces": sentencepiece()}
    cases = [
        {"name": name, "base": base, "changes": changes}
        for base, group in (("bytes", BPE), ("pieces", PIECES))
        for name, changes in group.items()
    ]
    cases += [
        {"name": f"pre {pre}", "base": "bytes", "changes": {"pre": pre}} for pre in PRES
    ]
    seen = {}
    for case in cases:
        found = asked(changed(bases[case["base"]], case["changes"]))
        # Kinds that are one to llama.cpp are written once.
        same = seen.setdefault(json.dumps(found), case["name"])
        case["llama.cpp"] = found if same == case["name"] else same
    result = {"texts": TEXTS, "bases": bases, "cases": cases}
    text = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
    text = text.replace('{"name":', '\n{"name":')
    (FOLDER / "tokenizers.json").write_text(f"{text}\n", "utf-8")
    print(f"{len(cases)} cases, {len(seen)} of them different")


if __name__ == "__main__":
    main()
