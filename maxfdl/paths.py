"""What a user gives as a path: a file or folder of this machine, or in a bucket.

Every path of a user becomes one here. `gs://bucket/name` and `s3://bucket/name` are
accepted wherever a path is. What must lie on a disk to be read, such as weights that
are mapped into memory, is copied into the cache first (`fetched`); what is written as
one folder is made on disk and then uploaded (`maxfdl.tensors.staging`).
"""

import os
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from maxfdl.bucket import PACKAGES, BucketPath
from maxfdl.errors import UserError
from maxfdl.files import cache_directory, on_this_machine

AnyPath = pathlib.Path | BucketPath


def as_path(text: str | os.PathLike[str]) -> AnyPath:
    """Returns the path that a user means; `~` is the home directory.

    Raises:
      UserError: If it is a URL of another kind, one without a bucket, one with a single
        slash, or one with `..`; or in the home directory of a user who is not known.
    """
    name = os.fspath(text)
    scheme, mark, rest = name.partition("://")
    if not mark or "/" in scheme:
        _refuse_one_slash(name)
        return on_this_machine(name)
    if scheme not in PACKAGES:
        kinds = ", ".join(f"{known}://" for known in PACKAGES)
        raise UserError(
            f"Path {name} must be one of this machine, or begin with one of {kinds}."
        )
    if not rest.strip("/"):
        raise UserError(f"Path {name} must name a bucket: {scheme}://BUCKET/NAME.")
    path = BucketPath(name)
    _refuse_to_go_up(path)
    return path


def _refuse_to_go_up(path: BucketPath) -> None:
    if ".." in path.parts:
        raise UserError(
            f"Path {path} must not have '..' in it: in a bucket that is a name as any"
            " other, and its copy on disk would lie elsewhere."
        )


def _refuse_one_slash(name: str) -> None:
    scheme, mark, rest = name.partition(":/")
    if mark and scheme in PACKAGES:
        raise UserError(
            f"Path {name} must have two slashes to be in a bucket: {scheme}://{rest}"
            f" (a string, for pathlib.Path drops one), or be ./{name} on this machine."
        )


def is_remote(text: str | os.PathLike[str]) -> bool:
    """Says whether a path is in a bucket."""
    return isinstance(as_path(text), BucketPath)


def fetched(
    text: str | os.PathLike[str], only: Sequence[str] = ("**",)
) -> pathlib.Path:
    """Returns where a file or folder lies on disk.

    That of a bucket is copied into the cache. Files that are there already, with the
    size and time of the objects, are not copied again; those of which there is no
    object any more are removed.

    Args:
      text: The path.
      only: Patterns of the files of a folder that are wanted; `**` is all.

    Raises:
      UserError: If it cannot be copied. What does not exist is left to the caller.
    """
    path = as_path(text)
    if isinstance(path, pathlib.Path):
        return path
    copy = cache_directory() / "buckets" / path.scheme / path.bucket / path.key
    try:
        _copy(path, copy, only)
    except OSError as error:
        raise UserError(
            f"{path} cannot be copied to {copy}: {error.strerror}."
        ) from error
    return copy


def _copy(path: BucketPath, copy: pathlib.Path, only: Sequence[str]) -> None:
    if path.is_file():
        targets = {copy: path}
    else:
        found = path.files() if path.is_dir() else []
        for each in found:
            _refuse_to_go_up(each)
        inside = {each.relative_to(path): each for each in found}
        targets = {copy / x: each for x, each in inside.items() if _fits(x, only)}
        for old in files_in(copy):
            if old not in targets and _fits(old.relative_to(copy), only):
                old.unlink()
    pending = {t: each for t, each in targets.items() if not _is_copy(t, each)}
    if pending:
        print(f"copying {path} to {copy}", file=sys.stderr, flush=True)
    for target, each in pending.items():
        each.download(target)


def _fits(name: pathlib.PurePath, patterns: Sequence[str]) -> bool:
    return any(
        pattern == "**" or name.match(pattern) and len(name.parts) == depth
        for pattern in patterns
        for depth in [pattern.count("/") + 1]
    )


def _is_copy(file: pathlib.Path, of: BucketPath) -> bool:
    if not file.is_file():
        return False
    here, there = file.stat(), of.stat()
    return (here.st_size, here.st_mtime) == (there.st_size, there.st_mtime)


def lexists(path: AnyPath) -> bool:
    """Says whether there is something by that name, be it a link to nothing."""
    return path.exists() if isinstance(path, BucketPath) else os.path.lexists(path)


def files_in(folder: AnyPath) -> list[AnyPath]:
    """Returns every file of a folder and of those in it."""
    if isinstance(folder, BucketPath):
        return [*folder.files()]
    return [path for path in folder.rglob("*") if path.is_file()]


def remove_folder(path: AnyPath) -> None:
    """Removes what can be removed of a folder, if there is one."""
    if isinstance(path, pathlib.Path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.rmtree()


def move(source: AnyPath, target: AnyPath) -> None:
    """Gives a file or folder another name, on the same disk or in the same store."""
    if isinstance(source, BucketPath) and isinstance(target, BucketPath):
        source.rename(target)
    else:
        assert isinstance(source, pathlib.Path)
        source.rename(target)


def kvstore(folder: AnyPath) -> dict[str, Any]:
    """Returns what TensorStore calls a folder.

    `AWS_ENDPOINT_URL` names another server that speaks S3, as it does for all clients.
    """
    if isinstance(folder, pathlib.Path):
        return {"driver": "file", "path": f"{folder.absolute()}/"}
    return bucket_kvstore(f"{folder}/")


def bucket_kvstore(url: str) -> dict[str, Any]:
    """Returns what TensorStore calls the objects whose URLs begin with `url`."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme == "gs":
        driver = os.environ.get("TENSORSTORE_GCS_BACKEND", "gcs")
        return {"driver": driver, "bucket": bucket, "path": key}
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get(
        "AWS_ENDPOINT_URL"
    )
    if endpoint:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        spec |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
    if "AWS_ACCESS_KEY_ID" in os.environ:
        spec["aws_credentials"] = {"type": "environment"}
    return spec
