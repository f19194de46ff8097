"""How text is cut before pairs are merged: the kinds that llama.cpp knows.

A byte-level BPE in a GGUF file names its kind in `tokenizer.ggml.pre`. What a kind
means is not in the file; the table here says what it means to llama.cpp
(`llama_vocab::impl::load` and `llm_tokenizer_bpe` in src/llama-vocab.cpp): regular
expressions, each applied to the pieces that the one before it left, and two settings.
"""

import dataclasses
from typing import Any

_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_MARKS}|{_SPACES}"

# Words whose capitals begin them: `((?=[\p{L}])([^a-z]))` is any letter but a-z.
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_CAPITALS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_MARKS_AND_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = rf"{_CASED}|{_CAPITALS}|\p{{N}}|{_MARKS_AND_SLASH}|{_SPACES}"
_GPT4O = (
    rf"{_CASED}{_CONTRACTIONS}?|{_CAPITALS}{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    rf"|{_MARKS_AND_SLASH}|{_SPACES}"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    rf"|{_SPACES}",
)
_CHINESE = r"[一-龥ࠀ-一가-퟿&&[^\s]]+"
# Letters of the scripts that have two cases, as llama.cpp lists them.
_TWO_CASES = """
41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377
37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5
13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15
1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4
1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4
1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134
2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3
A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17
FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2
118A0-118DF 1E900-1E943
"""


def _as_class(code_points: str) -> str:
    """Returns what stands in the brackets of a regular expression."""
    ranges = [each.split("-") for each in code_points.split()]
    return "".join("-".join(rf"\x{{{end}}}" for end in ends) for ends in ranges)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of pre-tokenizer.

    Args:
      patterns: Regular expressions; each match is a piece, and so is what is between.
      ignore_merges: Whether a piece that is a token is taken whole, merged or not.
      add_bos: Whether texts begin with BOS where the file says nothing of it.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_KINDS = {
    ("default",): Kind((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9]{3}")),
    ("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "a.x-4.0", "mellum"): Kind(
        (_GPT2,)
    ),
    ("mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"): Kind((_GPT2,)),
    ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone"): Kind(
        (r"\p{N}", _GPT2)
    ),
    ("minerva-7b", "mellum2"): Kind((r"\p{N}", _GPT2)),
    ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral"): Kind(
        (_LLAMA3,), ignore_merges=True, add_bos=True
    ),
    ("midm-2.0", "lfm2"): Kind((_LLAMA3,), ignore_merges=True, add_bos=True),
    ("dbrx", "smaug-bpe", "chatglm-bpe"): Kind((_LLAMA3,)),
    ("glm4", "glm5"): Kind((_LLAMA3,), ignore_merges=True),
    ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2"): Kind(
        (_QWEN2,)
    ),
    ("hunyuan", "solar-open", "grok-2"): Kind((_QWEN2,)),
    ("ufakzeka",): Kind((rf"{_WORDS}|\p{{N}}|{_MARKS}|{_SPACES}",)),
    ("minicpm5",): Kind(
        (
            r"\p{N}{1,3}",
            rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}+|{_MARKS}|{_SPACES}",
        ),
        ignore_merges=True,
    ),
    ("qwen35",): Kind(
        (
            rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
        )
    ),
    ("deepseek-llm",): Kind(
        (
            r"[\r\n]",
            rf"\s?[{_as_class(_TWO_CASES)}]+",
            r"\s?[!-/:-~！-／：-～‘-‟、-。]+",
            r"\s+$",
            _CHINESE,
            r"\p{N}+",
        )
    ),
    ("deepseek-coder",): Kind(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE, r"\p{N}")
    ),
    ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"): Kind(_DEEPSEEK3),
    ("falcon",): Kind((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9]{3}")),
    ("poro-chat", "bloom", "gpt3-finnish"): Kind((r" ?[^(\s|.,!?…。，、।۔،)]+",)),
    ("viking",): Kind((r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}")),
    ("tekken",): Kind((_TEKKEN,), ignore_merges=True, add_bos=True),
    ("gpt-4o", "llama4", "kanana2", "minimax-m2"): Kind((_GPT4O,)),
    ("bailingmoe", "bailingmoe2", "llada-moe"): Kind(
        (
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
            rf"|{_WORDS}|\p{{N}}|{_MARKS}|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    ("seed-coder",): Kind(
        (
            rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+"
            rf"|{_SPACES}",
        )
    ),
}
KINDS = {name: kind for names, kind in _KINDS.items() for name in names}


def pre_tokenizer(kind: Kind) -> Any:
    """Returns the kind as the `tokenizers` library has it, bytes as characters."""
    from tokenizers import Regex, pre_tokenizers

    cuts = [pre_tokenizers.Split(Regex(each), "isolated") for each in kind.patterns]
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*cuts, as_bytes])
