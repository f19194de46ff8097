"""Base of the formats of text files."""

import abc
from collections.abc import Collection, Iterable, Sequence

from maxfdl.data.fingerprint import Part
from maxfdl.data.sources.input_file import InputFile, Span


class DocumentFile(abc.ABC):
    """The documents of one file.

    Raises:
      BadDocumentError: From `[]`, if that document cannot be read.
      UserError: If the file cannot be read.
    """

    def __init__(self, file: InputFile):
        self.file = file

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> str: ...

    def spans_without(self, mended: Collection[int]) -> Sequence[Span]:
        """Returns the bytes that do not change when these documents are mended.

        That is the whole file, unless its format lets one document change alone.
        """
        return [(0, self.file.size)]

    def part(self, name: str, mended: Collection[int]) -> Part:
        """Returns what tells whether this is still the same file, under a name.

        Documents that may be mended are left out, where the format allows it.
        """
        if not mended:
            return Part(name, self.file.size, self.file.digest)
        spans = self.spans_without(mended)
        size = sum(stop - start for start, stop in spans)
        with self.file.open() as file:
            return Part(name, size, self.file.digest_of(spans, file))


def listed(names: Iterable[str], most: int = 200) -> str:
    """Returns names one after another, for errors; of many, those at the beginning."""
    printable = (name if name.isprintable() else ascii(name) for name in names)
    text = ", ".join(printable)
    return text if len(text) <= most else f"{text[:most]}..."
