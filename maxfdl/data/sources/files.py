"""Documents in files that the user names."""

import bisect
import dataclasses
import functools
import glob
import itertools
import pathlib

from maxfdl.data.sources.json_lines import JsonLinesFile
from maxfdl.data.sources.parquet import ParquetFile
from maxfdl.data.sources.plain_text import TextFile
from maxfdl.errors import UserError


@dataclasses.dataclass(frozen=True)
class Files:
    """The documents of `.txt`, `.jsonl` and `.parquet` files, in the order given.

    A `.txt` file is one document, or several if it is large (see `split_bytes`); a
    line of a `.jsonl` file and a row of a `.parquet` file are one document each.

    Args:
      files: Paths or globs (`**` reaches subfolders); the files of a glob are sorted.
      field: What holds the text in a line of `.jsonl` and a row of `.parquet`.
      split_bytes: A larger `.txt` file is cut about every so many bytes, at a blank
        line where there is one: documents are what is shuffled and held out, and a
        corpus in one file would be a single one.
    """

    files: tuple[str, ...]
    field: str = "text"
    split_bytes: int = 65_536

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        file = bisect.bisect_right(self._ends, index)
        before = self._ends[file - 1] if file else 0
        return self._opened[file][index - before]

    @functools.cached_property
    def _opened(self) -> tuple[TextFile | JsonLinesFile | ParquetFile, ...]:
        if isinstance(self.files, str):
            raise UserError(
                f"Files.files [{self.files!r}] must be a tuple of paths;"
                f" write ({self.files!r},)."
            )
        return tuple(self._open(path) for name in self.files for path in _paths(name))

    @functools.cached_property
    def _ends(self) -> list[int]:
        """The number of documents up to the end of each file."""
        ends = list(itertools.accumulate(map(len, self._opened)))
        if not ends or not ends[-1]:
            raise UserError(
                f"Files.files [{', '.join(self.files)}] must hold at least one"
                " document; give the path of a file that has text in it."
            )
        return ends

    def _open(self, path: pathlib.Path) -> TextFile | JsonLinesFile | ParquetFile:
        match path.suffix:
            case ".txt":
                return TextFile(path, self.split_bytes)
            case ".jsonl":
                return JsonLinesFile(path, self.field)
            case ".parquet":
                return ParquetFile(path, self.field)
        raise UserError(
            f"Files.files [{path}] must end in .txt, .jsonl or .parquet; rename or"
            " convert it."
        )


def _paths(name: str) -> list[pathlib.Path]:
    path = pathlib.Path(name).expanduser()
    if path.is_file():
        return [path]
    found = sorted(map(pathlib.Path, glob.glob(str(path), recursive=True)))
    files = [path for path in found if path.is_file()]
    if not files:
        raise UserError(f"Files.files [{name}] matches no file; correct the path.")
    return files
