"""One .parquet file, read by row groups."""

import bisect
import contextlib
import functools
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from maxfdl.data.bad_documents import BadDocumentError
from maxfdl.data.sources.document_file import DocumentFile, listed
from maxfdl.data.sources.input_file import InputFile
from maxfdl.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_ROW_GROUPS_KEPT = 4
_TEXT_TYPES = {
    "string",
    "large_string",
    "string_view",
    "binary",
    "large_binary",
    "binary_view",
}


class ParquetFile(DocumentFile):
    """The documents of a Parquet file: the string in column `field` of each row.

    The column holds strings, or bytes that are UTF-8, dictionary-encoded or not; it is
    no list and no part of a struct. A `null` makes a bad document.

    Reading one row decodes that column of its row group; the last few groups are
    kept. Files for shuffled reading should have small row groups (some 1,000 rows).
    Damage is noticed if the file holds checksums of its pages, and mostly if it is
    compressed.
    """

    def __init__(self, file: InputFile, field: str):
        super().__init__(file)
        self.field = field
        self._texts = functools.lru_cache(_ROW_GROUPS_KEPT)(self._read_row_group)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> str:
        group = bisect.bisect_right(self._ends, index)
        before = self._ends[group - 1] if group else 0
        texts = self._texts(group)
        if isinstance(texts, str):
            raise self._bad(index, f"cannot be read: {texts}")
        try:
            text = texts[index - before].as_py()
            if isinstance(text, bytes):
                text = text.decode("utf-8")
        except Exception as error:  # of many kinds, for what is damaged
            raise self._bad(index, f"cannot be read: {_gist(error)}") from None
        if text is None:
            raise self._bad(
                index, f"must have a string in {self.field!r}, but has null"
            )
        return text

    def _bad(self, index: int, problem: str) -> BadDocumentError:
        return BadDocumentError(
            f"Files.files [{self.file}] row {index + 1} {problem}",
            "write the file anew, for a new run",
        )

    @functools.cached_property
    def _ends(self) -> list[int]:
        """The number of rows up to the end of each row group."""
        with self._open() as file:
            metadata = file.metadata
            groups = map(metadata.row_group, range(metadata.num_row_groups))
            rows = [group.num_rows for group in groups]
            if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
                raise self._damaged(
                    f"its row groups have {sum(rows)} rows, and it says"
                    f" {metadata.num_rows}"
                )
            self._require_text(file.schema_arrow)
        return list(itertools.accumulate(rows))

    @contextlib.contextmanager
    def _open(self) -> "Iterator[pyarrow.parquet.ParquetFile]":
        try:
            import pyarrow.parquet
        except ImportError:
            raise UserError(
                f"Files.files [{self.file}] needs the package pyarrow; install it with:"
                " pip install 'maxfdl[corpora]'."
            ) from None
        with self.file.open() as opened:
            try:
                file = pyarrow.parquet.ParquetFile(
                    opened, page_checksum_verification=True
                )
            except Exception as error:  # of many kinds, for what is damaged
                _raise_if_unreadable(error)
                raise self._damaged(_gist(error)) from None
            yield file

    def _damaged(self, why: str) -> UserError:
        return UserError(
            f"Files.files [{self.file}] must be a Parquet file, but: {why}; write it"
            " anew."
        )

    def _require_text(self, schema: "pyarrow.Schema") -> None:
        columns = [column for column in schema if column.name == self.field]
        if len(columns) == 1 and _is_text(columns[0].type):
            return
        types = {column.name: str(column.type) for column in schema}
        shown = listed(f"{name}: {kind}" for name, kind in types.items())
        raise UserError(
            f"Files.files [{self.file}] must have one column of strings"
            f" {self.field!r}, but has [{shown}]; set Files.field."
            f"{did_you_mean(self.field, types)}"
        )

    def _read_row_group(self, group: int) -> "pyarrow.ChunkedArray | str":
        """Returns the texts of a row group, or why they cannot be read."""
        before = self._ends[group - 1] if group else 0
        with self._open() as file:
            try:
                column = file.read_row_group(
                    group, columns=[self.field], use_threads=False
                ).column(0)
            except Exception as error:  # of many kinds, for what is damaged
                _raise_if_unreadable(error)
                return _gist(error)
        if len(column) != self._ends[group] - before:
            return f"its row group has {len(column)} rows"
        return column


def _is_text(kind: "pyarrow.DataType") -> bool:
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind) in _TEXT_TYPES


def _raise_if_unreadable(error: Exception) -> None:
    """Raises `error` again if it says that the disk failed, and not the format."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _gist(error: Any, most: int = 200) -> str:
    """Returns the beginning of what PyArrow says, on one line that can be printed."""
    text = " ".join(str(error).split())
    return listed([text or type(error).__name__], most)
