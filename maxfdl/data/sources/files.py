"""Documents in files that the user names."""

import bisect
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from maxfdl.data.fingerprint import Fingerprint
from maxfdl.data.sources.document_file import DocumentFile, listed
from maxfdl.data.sources.input_file import InputFile
from maxfdl.data.sources.json_lines import JsonLinesFile
from maxfdl.data.sources.parquet import ParquetFile
from maxfdl.data.sources.paths import find_files, shown
from maxfdl.data.sources.plain_text import TextFile
from maxfdl.data.sources.source import Source
from maxfdl.errors import UserError
from maxfdl.markers import Operational

_SUFFIXES = (".txt", ".jsonl", ".parquet")


@dataclasses.dataclass(frozen=True)
class Files(Source):
    """The documents of `.txt`, `.jsonl` and `.parquet` files, in the order given.

    A `.txt` file is one document, or several if it is large (see `split_bytes`); a
    line of a `.jsonl` file and a row of a `.parquet` file are one document each. A byte
    order mark at the beginning of a file is no text. A blank line is an empty document.
    What is `null`, no string or not UTF-8 is a bad one (see `TextData.skip_bad`); lines
    and rows count from 1 in errors.

    A file counts once, by however many paths, globs and links it is reached: naming
    it twice does not make its documents come twice as often.

    The files must stay as they are during a run, and until it is resumed. Samples of
    them are compared, 32 MiB at most for up to 2,000 files: each file gets an equal
    share of that, from 16 KiB to 8 MiB, and one that is no larger is compared whole.

    Args:
      files: Paths or globs (`**` reaches subfolders); the files of a glob are sorted.
        A run may go on when they have been moved, for it compares what is in them.
      field: What holds the text in a line of `.jsonl` and a row of `.parquet`.
      split_bytes: A larger `.txt` file is cut about every so many bytes, at a blank
        line where there is one: documents are what is shuffled and held out, and a
        corpus in one file would be a single one.
    """

    files: Annotated[tuple[str, ...], Operational]
    field: str = "text"
    split_bytes: int = 65_536

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        file, within = self._locate(index)
        return self._opened[file][within]

    def fingerprint(self, mended: Collection[int]) -> Fingerprint:
        """Returns the samples of all files.

        A line of `.jsonl` and a `.txt` file of one document may be mended.
        """
        inside: dict[int, list[int]] = {}
        for index in mended:
            if index < len(self):
                file, within = self._locate(index)
                inside.setdefault(file, []).append(within)
        paths = [os.path.abspath(each.file.path) for each in self._opened]
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
        parts = [
            each.part(os.path.relpath(path, root), inside.get(file, ()))
            for file, (path, each) in enumerate(zip(paths, self._opened, strict=True))
        ]
        kind = f"Files(field={self.field!r}, split_bytes={self.split_bytes})"
        return Fingerprint.of_many(kind, parts)

    def _locate(self, index: int) -> tuple[int, int]:
        """Returns which file holds a document, and which one it is in that file."""
        file = bisect.bisect_right(self._ends, index)
        return file, index - (self._ends[file - 1] if file else 0)

    @functools.cached_property
    def _opened(self) -> tuple[DocumentFile, ...]:
        if isinstance(self.files, str):
            raise UserError(
                f"Files.files [{self.files!r}] must be a tuple of paths;"
                f" write ({self.files!r},)."
            )
        for name in self.files:
            if not isinstance(name, (str, os.PathLike)):
                raise UserError(
                    f"Files.files [{name!r}] must be a path; write it in quotes."
                )
        paths = find_files(self.files, _SUFFIXES)
        share = sampled_bytes(max(len(paths), 1))
        with ThreadPoolExecutor() as pool:
            return tuple(pool.map(lambda path: self._open(path, share), paths))

    @functools.cached_property
    def _ends(self) -> list[int]:
        """The number of documents up to the end of each file."""
        ends = list(itertools.accumulate(map(len, self._opened)))
        if not ends or not ends[-1]:
            raise UserError(
                f"Files.files [{listed(map(str, self.files))}] must hold at least one"
                " document; give the path of a file that has text in it."
            )
        return ends

    def _open(self, path: pathlib.Path, sampled_bytes: int) -> DocumentFile:
        suffix = path.suffix.lower()
        if suffix not in _SUFFIXES:
            raise UserError(
                f"Files.files [{shown(path)}] must end in .txt, .jsonl or .parquet;"
                " rename or convert it."
            )
        file = InputFile(path, sampled_bytes)
        match suffix:
            case ".txt":
                return TextFile(file, self.split_bytes)
            case ".jsonl":
                return JsonLinesFile(file, self.field)
            case _:
                return ParquetFile(file, self.field)


def sampled_bytes(num_files: int) -> int:
    """Returns how many bytes of each file are sampled."""
    return min(max(2**25 // num_files, 2**14), 2**23)
