"""Data."""

import fiddle as fdl

from maxfdl.data import (
    ByteTokenizer,
    Concatenate,
    StandardLibrary,
    Synthetic,
    TextData,
)


def python_source() -> fdl.Partial:
    """The running Python's own standard library, byte by byte: text on any machine."""
    return fdl.Partial(
        TextData,
        source=fdl.Config(StandardLibrary),
        tokenizer=fdl.Config(ByteTokenizer),
        packing=fdl.Config(Concatenate),
    )


def synthetic() -> fdl.Partial:
    """Random tokens, for benchmarks."""
    return fdl.Partial(Synthetic)
