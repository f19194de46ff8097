"""What a checkpoint says about itself, beside its arrays."""

import importlib.metadata
import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax

from maxfdl.checkpoint.fingerprint import fingerprint
from maxfdl.checkpoint.structure import Structure, structure_of
from maxfdl.errors import UserError

FORMAT_VERSION = 1


class DamagedCheckpointError(Exception):
    """A checkpoint that is not what was written."""


def make_record(state: Any) -> dict[str, Any]:
    """Returns what is stored beside `state`: its leaves with their fingerprints.

    It also holds the versions of what wrote it, and a checksum of itself.
    """
    leaves = {
        path: {"shape": list(shape), "dtype": dtype, "fingerprint": value}
        for (path, (shape, dtype)), value in zip(
            structure_of(state).items(), fingerprint(state), strict=True
        )
    }
    record = {
        "format_version": FORMAT_VERSION,
        "versions": {name: _version(name) for name in ("maxfdl", "jax", "flax")},
        "processes": jax.process_count(),
        "leaves": leaves,
    }
    return {**record, "checksum": _checksum(record)}


def check_record(record: Any) -> Mapping[str, Any]:
    """Returns `record` as it was made.

    Raises:
      DamagedCheckpointError: If it is missing or has changed.
      UserError: If a later version of maxfdl wrote it.
    """
    if not isinstance(record, dict):
        raise DamagedCheckpointError("its metadata is missing")
    stored = {key: value for key, value in record.items() if key != "checksum"}
    if record.get("checksum") != _checksum(stored):
        raise DamagedCheckpointError("its metadata has changed since it was written")
    if stored["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"The checkpoint has format {stored['format_version']}, and this maxfdl"
            f" reads up to {FORMAT_VERSION}; use the maxfdl that wrote it"
            f" ({stored['versions']['maxfdl']}) or a later one."
        )
    return stored


def saved_structure(record: Mapping[str, Any]) -> Structure:
    """Returns path, shape and dtype of every leaf that was saved."""
    return {
        path: (tuple(leaf["shape"]), leaf["dtype"])
        for path, leaf in record["leaves"].items()
    }


def check_fingerprints(record: Mapping[str, Any], state: Any) -> None:
    """Raises DamagedCheckpointError if a leaf of `state` is not what was saved."""
    for path, value in zip(structure_of(state), fingerprint(state), strict=True):
        if value != record["leaves"][path]["fingerprint"]:
            raise DamagedCheckpointError(f"{path} has changed since it was written")


def _checksum(record: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
