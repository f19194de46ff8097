"""Which files the paths and globs of a user mean."""

import errno
import fnmatch
import glob
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from maxfdl.bucket import BucketPath
from maxfdl.errors import UserError
from maxfdl.paths import AnyPath, as_path, fetched

_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


def find_files(names: Iterable[str], suffixes: Sequence[str]) -> list[pathlib.Path]:
    """Returns the files that paths and globs name, each once.

    They come in the order of `names`, those of one glob sorted. A file that is reached
    again, through another name, glob or link, keeps its first place. `**` follows links
    to folders and enters each folder once, so links may form loops. As in a shell,
    wildcards match no name that begins with a dot.

    Args:
      names: Paths and globs.
      suffixes: How the names of files of text end, in small letters.

    Raises:
      UserError: If a name leads to no file, or to a folder.
    """
    found: dict[object, pathlib.Path] = {}
    for name in names:
        for path in _named(name, suffixes):
            found.setdefault(_identity(path), path)
    return list(found.values())


def _named(name: str, suffixes: Sequence[str]) -> list[pathlib.Path]:
    if "://" in name:
        return [fetched(each) for each in _in_bucket(as_path(name))]
    try:
        path = pathlib.Path(name).expanduser()
    except RuntimeError as error:  # no such user as in ~user
        raise UserError(
            f"Files.files [{shown(name)}] cannot be found: {error}."
        ) from None
    if os.path.lexists(path):
        if os.path.isdir(path):
            raise _is_folder(path, suffixes)
        return [path]
    start = pathlib.Path(path.anchor)
    matches = sorted(set(_matches(start, path.relative_to(start).parts)))
    files = []
    for match in matches:
        if not os.path.isdir(match):
            files.append(match)
        elif match.suffix.lower() in suffixes:
            raise _is_folder(match, suffixes)
    if not files:
        raise UserError(
            f"Files.files [{shown(name)}] matches no file; correct the path."
        )
    return files


def _in_bucket(path: AnyPath) -> list[AnyPath]:
    """Returns the objects that a URL names; `*` and `**` are as on disk."""
    assert isinstance(path, BucketPath)
    try:
        if path.is_file():
            return [path]
        if not glob.has_magic(path.key):
            raise UserError(
                f"Files.files [{shown(path)}] must be a file, but there is none by that"
                f" name; name the files of a folder, such as {shown(path)}/*.jsonl."
            )
        top = BucketPath(f"{path.scheme}://{path.bucket}")
        found = [each for each in top.glob(path.key) if each.is_file()]
    except OSError as error:
        raise UserError(
            f"Files.files [{shown(path)}] cannot be listed: {error.strerror}."
        ) from None
    if not found:
        raise UserError(
            f"Files.files [{shown(path)}] matches no file; correct the path."
        )
    return sorted(found)


def _is_folder(path: pathlib.Path, suffixes: Sequence[str]) -> UserError:
    suffix = path.suffix if path.suffix.lower() in suffixes else suffixes[0]
    return UserError(
        f"Files.files [{shown(path)}] must be a file, but is a folder; name the files"
        f" in it, such as {shown(path)}/**/*{suffix}."
    )


def _identity(path: pathlib.Path) -> object:
    """Returns what is equal for all names of one file."""
    try:
        found = os.stat(path)
    except OSError:
        return path
    # Some file systems number no files.
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(path)


def _matches(folder: pathlib.Path, parts: Sequence[str]) -> Iterator[pathlib.Path]:
    """Yields what in `folder` fits the rest of a pattern, one part for each level."""
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        for inner in _folders_below(folder):
            yield from _matches(inner, rest or ("*",))
    elif glob.has_magic(part):
        names = [entry.name for entry in _entries(folder)]
        for name in fnmatch.filter(names, part):
            if part.startswith(".") or not name.startswith("."):
                yield from _matches(folder / name, rest)
    elif os.path.lexists(folder / part):
        yield from _matches(folder / part, rest)


def _folders_below(top: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields `top` and every folder below it, each once, links followed."""
    pending, entered = [top], set()
    while pending:
        folder = pending.pop()
        if (identity := _identity(folder)) in entered:
            continue
        entered.add(identity)
        yield folder
        inner = [entry.name for entry in _entries(folder) if _is_open_folder(entry)]
        pending += [folder / name for name in sorted(inner, reverse=True)]


def _is_open_folder(entry: os.DirEntry) -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entries(folder: pathlib.Path) -> list[os.DirEntry]:
    """Returns what lies in a folder: nothing, if it is none."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        if error.errno in _NO_FOLDER:
            return []
        raise UserError(
            f"Files.files: folder [{shown(folder)}] cannot be listed"
            f" ({error.strerror}); give this user access to it."
        ) from None


def shown(path: str | os.PathLike[str]) -> str:
    """Returns a path for an error: what cannot be printed is escaped."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)
