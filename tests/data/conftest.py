"""A corpus of many small documents, and data over it, for the tests of this folder."""

import dataclasses

import numpy as np
import pytest

from maxfdl.data import ByteTokenizer, TextData
from maxfdl.data.bad_documents import BadDocumentError


@dataclasses.dataclass(frozen=True)
class Documents:
    """A source of the strings given; None is a document that cannot be read."""

    texts: tuple[str | None, ...]

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        text = self.texts[index]
        if text is None:
            raise BadDocumentError(f"document {index} must be text", "mend it")
        return text


@pytest.fixture
def corpus():
    """40 documents that no two share a word of, from empty to 300 characters."""
    sizes = np.random.default_rng(0).integers(1, 60, 40)
    texts = [" ".join([f"d{i:02}"] * size) for i, size in enumerate(sizes)]
    return Documents((*texts[:7], "", *texts[7:]))


@pytest.fixture
def make_data(corpus):
    """Makes TextData over the corpus: 8 rows of 32 tokens, unless told otherwise."""

    def make(source=corpus, **changed):
        settings = {"batch_size": 8, "sequence_length": 32, "seed": 0, **changed}
        settings = {"tokenizer": ByteTokenizer(), **settings}
        return TextData(source=source, **settings)

    return make


@pytest.fixture
def make_source():
    return lambda *texts: Documents(texts)
