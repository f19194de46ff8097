"""Text and synthetic data: what `Experiment.data` may be, and its parts.

    source -> tokenizer -> packing -> batches

Importing this package is light: Grain, `tokenizers` and PyArrow are imported by the
functions that need them, so that a launcher may do that while XLA compiles.
"""

from maxfdl.data.data import Data
from maxfdl.data.packing import Concatenate, FirstFit, Packing
from maxfdl.data.sources import Files, KingJames, Source, StandardLibrary
from maxfdl.data.synthetic import Synthetic
from maxfdl.data.text import TextData
from maxfdl.data.tokenizers import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
    TrainedBpe,
)

__all__ = [
    "ByteTokenizer",
    "Concatenate",
    "Data",
    "Files",
    "FirstFit",
    "HuggingFaceTokenizer",
    "KingJames",
    "Packing",
    "Source",
    "StandardLibrary",
    "Synthetic",
    "TextData",
    "Tokenizer",
    "TrainedBpe",
]
