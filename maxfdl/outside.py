"""Files that other programs wrote: model folders, tokenizers, data.

Every failure to read one is a UserError: one sentence that names the file, the key if
there is one, what was found and what must be there. Files are checked before they are
opened, because opening a FIFO or a device can block forever.

    values = outside.read_object(folder / "config.json")
    layers = values.take("num_hidden_layers", Integer(least=1))
    theta = values.within("rope_parameters").take("rope_theta", Number(above=0))
"""

import dataclasses
import json
import math
import os
import stat
from collections.abc import Mapping
from typing import Any, Protocol

from maxfdl.bucket import BucketPath
from maxfdl.errors import UserError
from maxfdl.paths import as_path

MOST_BYTES = 2**28
"""Size up to which a text or JSON file is read; published ones stay below 2**26."""

_REQUIRED: Any = object()
_LONGEST_SHOWN = 60  # characters of a value in an error
_SPECIAL_FILES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_file(path: str | os.PathLike[str], most_bytes: int | None = None) -> None:
    """Refuses, without opening it, what cannot be read as a file.

    Call it before a library opens the file by its path.

    Args:
      path: The file.
      most_bytes: The largest size that makes sense; None sets no limit.

    Raises:
      UserError: If there is no file, if it is a folder, a FIFO, a socket or a device,
        if this user may not read it, or if it is larger than `most_bytes`.
    """
    where = as_path(path)
    if isinstance(where, BucketPath):
        return _check_object(where, most_bytes)
    try:
        found = os.stat(path)
        may_read = os.access(path, os.R_OK)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(path, error) from None
    for is_kind, kind in _SPECIAL_FILES:
        if is_kind(found.st_mode):
            raise UserError(f"{_shown(path)} must be a file, but it is {kind}.")
    if not may_read:
        raise UserError(f"{_shown(path)} cannot be read: permission denied.")
    _check_size(path, found.st_size, most_bytes)


def _check_object(path: BucketPath, most_bytes: int | None) -> None:
    try:
        size = path.stat().st_size
        is_file = path.is_file()
    except OSError as error:
        raise _unreadable(path, error) from None
    if not is_file:
        raise UserError(f"{_shown(path)} must be a file, but it is a folder.")
    _check_size(path, size, most_bytes)


def _check_size(
    path: str | os.PathLike[str], size: int, most_bytes: int | None
) -> None:
    if most_bytes is not None and size > most_bytes:
        raise UserError(
            f"{_shown(path)} has {size:,} bytes, and may have {most_bytes:,} at most;"
            " it cannot be what its name says."
        )


def read_bytes(
    path: str | os.PathLike[str], most_bytes: int | None = MOST_BYTES
) -> bytes:
    """Returns what a file holds; raises as `check_file`."""
    check_file(path, most_bytes)
    try:
        return as_path(path).read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def read_text(path: str | os.PathLike[str], most_bytes: int | None = MOST_BYTES) -> str:
    """Returns the text of a file in UTF-8; a byte order mark at its start is dropped.

    Raises:
      UserError: As `check_file`, or if the file is not UTF-8.
    """
    return decode(read_bytes(path, most_bytes), str(path))


def read_json(path: str | os.PathLike[str], most_bytes: int | None = MOST_BYTES) -> Any:
    """Returns the JSON value in a file; raises as `read_text` and `parse_json`."""
    return parse_json(read_text(path, most_bytes), str(path))


def read_object(path: str | os.PathLike[str]) -> "Values":
    """Returns the JSON object in a file.

    Raises:
      UserError: As `read_json`, or if the file holds another JSON value.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(
            f"{_shown(path)} must hold a JSON object, but it holds {shown(content)}."
        )
    return Values(str(path), content)


def decode(data: bytes, where: str) -> str:
    """Returns `data` as UTF-8 text without its byte order mark; `where` names it."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{_shown(where)} must be UTF-8, but byte {error.start} is"
            f" 0x{data[error.start]:02x}; convert it, or fetch it again."
        ) from None


def parse_json(text: str, where: str) -> Any:
    """Returns the JSON value of `text`; `where` names it in errors.

    Of a key that comes twice the last value counts, and NaN and Infinity are numbers,
    as for the programs that write and read such files.

    Raises:
      UserError: If the text is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except ValueError as error:  # also a number of more than 4,300 digits
        problem = str(error)
    except RecursionError:
        problem = "it is nested too deeply"
    raise UserError(
        f"{_shown(where)} is not JSON that can be read: {problem}; mend it, or fetch it"
        " again."
    )


class Kind(Protocol):
    """What a value may be; its `str` completes the sentence `x must be ...`."""

    def fits(self, value: Any) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Integer:
    """A whole number; neither 2.0 nor true is one."""

    least: int = 0
    most: int = 2**31 - 1

    def fits(self, value: Any) -> bool:
        return _is_int(value) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}"


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number, in the range given.

    Args:
      least, most: The smallest and largest that are allowed.
      above: A bound that the number must exceed.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf

    def fits(self, value: Any) -> bool:
        if not (_is_int(value) or isinstance(value, float)):
            return False
        # An int beyond the largest float is compared, and never converted.
        finite = -_LARGEST <= value <= _LARGEST
        return finite and self.least <= value <= self.most and value > self.above

    def __str__(self) -> str:
        bounds = (
            f" above {self.above:g}" if self.above > -math.inf else "",
            f" of at least {self.least:g}" if self.least > -math.inf else "",
            f" of at most {self.most:g}" if self.most < math.inf else "",
        )
        return f"a finite number{' and'.join(filter(None, bounds))}"


_LARGEST = 3.4e38  # what float32 holds


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or false; neither 1 nor "true"."""

    def fits(self, value: Any) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclasses.dataclass(frozen=True)
class Text:
    """A string, of at least `least` characters."""

    least: int = 0

    def fits(self, value: Any) -> bool:
        return isinstance(value, str) and len(value) >= self.least

    def __str__(self) -> str:
        return "a string that is not empty" if self.least else "a string"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several strings."""

    options: tuple[str, ...]

    def fits(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.options

    def __str__(self) -> str:
        return f"one of {', '.join(self.options)}"


@dataclasses.dataclass(frozen=True)
class Listing:
    """A list of one kind of values, of `length` if that is given."""

    of: Kind
    length: int | None = None

    def fits(self, value: Any) -> bool:
        if not isinstance(value, list):
            return False
        has_length = self.length is None or len(value) == self.length
        return has_length and all(self.of.fits(each) for each in value)

    def __str__(self) -> str:
        length = "" if self.length is None else f" of length {self.length}"
        return f"a list{length}, each entry {self.of}"


@dataclasses.dataclass(frozen=True)
class Object:
    """A JSON object, with anything in it: `Values.within` looks inside."""

    def fits(self, value: Any) -> bool:
        return isinstance(value, dict)

    def __str__(self) -> str:
        return "an object"


class Either:
    """A value of one of several kinds."""

    def __init__(self, *kinds: Kind):
        self.kinds = kinds

    def fits(self, value: Any) -> bool:
        return any(kind.fits(value) for kind in self.kinds)

    def __str__(self) -> str:
        return ", or ".join(map(str, self.kinds))


@dataclasses.dataclass(frozen=True)
class Values:
    """A JSON object of a file, whose values are taken by kind.

    Args:
      file: Name of the file, for errors.
      content: The object.
      prefix: Where in the file it is, such as `text_config.`.
    """

    file: str
    content: Mapping[str, Any]
    prefix: str = ""

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def take(self, key: str, kind: Kind, default: Any = _REQUIRED) -> Any:
        """Returns the value of `key`, or `default` if the key is missing.

        `null` counts as missing where `default` is None, and is refused elsewhere.

        Raises:
          UserError: If the value does not fit `kind`, or the key is missing and there
            is no default.
        """
        if key not in self.content:
            if default is _REQUIRED:
                raise self.wrong(f"{key} is missing, and must be {kind}")
            return default
        value = self.content[key]
        if value is None and default is None:
            return None
        if not kind.fits(value):
            raise self.wrong(f"{key} ({_misfit(value, kind)}) must be {kind}")
        return value

    def within(self, key: str) -> "Values":
        """Returns the object at `key`, an empty one if it is missing or null."""
        content = self.take(key, Object(), default=None)
        return Values(self.file, content or {}, f"{self.prefix}{key}.")

    def wrong(self, problem: str) -> UserError:
        """Returns the error that says `problem`, which starts with the key at fault."""
        return UserError(f"{_shown(self.file)}: {self.prefix}{problem}.")


def shown(value: Any) -> str:
    """Returns a short description of a JSON value, as it stands in the file."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _misfit(value: Any, kind: Kind) -> str:
    """Describes a value that does not fit; of a list, the first entry at fault."""
    if isinstance(kind, Listing) and isinstance(value, list):
        for number, each in enumerate(value):
            if not kind.of.fits(each):
                return f"{shown(value)}, whose entry {number} is {shown(each)}"
    return shown(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _unreadable(path: str | os.PathLike[str], error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"{_shown(path)} cannot be read: {reason.lower()}.")


def _shown(path: str | os.PathLike[str]) -> str:
    """Returns a file's name with what cannot be printed escaped."""
    name = os.fspath(path)
    return name if name.isprintable() else ascii(name)
