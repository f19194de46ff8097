"""Tokenizers: text to token ids and back."""

from maxfdl.data.tokenizers.bounds import check_ids
from maxfdl.data.tokenizers.byte import ByteTokenizer
from maxfdl.data.tokenizers.files import TokenizerFiles
from maxfdl.data.tokenizers.hugging_face import HuggingFaceTokenizer
from maxfdl.data.tokenizers.tokenizer import Tokenizer
from maxfdl.data.tokenizers.trained_bpe import TrainedBpe

__all__ = [
    "ByteTokenizer",
    "HuggingFaceTokenizer",
    "Tokenizer",
    "TokenizerFiles",
    "TrainedBpe",
    "check_ids",
]
