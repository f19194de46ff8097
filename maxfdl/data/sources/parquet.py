"""One .parquet file, read by row groups."""

import bisect
import functools
import itertools
import pathlib

from maxfdl.errors import UserError, did_you_mean

_ROW_GROUPS_KEPT = 4


class ParquetFile:
    """The documents of a Parquet file: the string in column `field` of each row.

    Reading one row decodes that column of its row group; the last few groups are
    kept. Files for shuffled reading should have small row groups (some 1,000 rows).
    """

    def __init__(self, path: pathlib.Path, field: str):
        self.path = path
        self.field = field
        self._texts = functools.lru_cache(_ROW_GROUPS_KEPT)(self._read_row_group)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> str:
        group = bisect.bisect_right(self._ends, index)
        before = self._ends[group - 1] if group else 0
        return self._texts(group)[index - before].as_py() or ""

    @functools.cached_property
    def _ends(self) -> list[int]:
        """The number of rows up to the end of each row group."""
        with self._open() as file:
            groups = range(file.metadata.num_row_groups)
            rows = [file.metadata.row_group(group).num_rows for group in groups]
        return list(itertools.accumulate(rows))

    def _open(self):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise UserError(
                f"Files.files [{self.path}] needs the package pyarrow; install it with:"
                " pip install 'maxfdl[corpora]'."
            ) from None
        try:
            file = pyarrow.parquet.ParquetFile(self.path)
        except pyarrow.ArrowInvalid as error:
            raise UserError(
                f"Files.files [{self.path}] must be a Parquet file, but: {error}"
            ) from None
        self._require_text(file)
        return file

    def _require_text(self, file) -> None:
        types = {column.name: str(column.type) for column in file.schema_arrow}
        if types.get(self.field) in ("string", "large_string", "string_view"):
            return
        columns = ", ".join(f"{name}: {kind}" for name, kind in types.items())
        raise UserError(
            f"Files.files [{self.path}] must have a column of strings {self.field!r},"
            f" but has [{columns}]; set Files.field.{did_you_mean(self.field, types)}"
        )

    def _read_row_group(self, group: int):
        with self._open() as file:
            return file.read_row_group(group, columns=[self.field]).column(0)
