"""What a checkpoint says about itself, beside its arrays, under one seal."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from typing import Any

from maxfdl.checkpoint.fingerprint import fingerprint
from maxfdl.checkpoint.processes import gather
from maxfdl.checkpoint.structure import Structure, structure_of
from maxfdl.errors import UserError
from maxfdl.paths import AnyPath

FORMAT_VERSION = 2

# Where Orbax keeps the custom metadata of a step. Read directly: importing Orbax takes
# half a second, and whoever only wants to know a run's graph need not wait for it.
_FILE, _KEY = "_CHECKPOINT_METADATA", "custom_metadata"


class DamagedCheckpointError(Exception):
    """A checkpoint that is not what was written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """All that belongs to the arrays of one step.

    Its seal covers every field and the arrays' checksums are among them, so nothing of
    one step can stand in for that of another step, or of another run.

    Args:
      step: Steps that were taken.
      graph: The experiment, as JSON values.
      places: Where each process is in its data, as JSON values.
      leaves: For each path of the state its `shape`, `dtype`, and fingerprint.
      versions: Of the packages that wrote it.
    """

    step: int
    graph: Any
    places: list[Any]
    leaves: dict[str, dict[str, Any]]
    versions: dict[str, str | None] = dataclasses.field(
        default_factory=lambda: {n: _version(n) for n in ("maxfdl", "jax", "flax")}
    )

    def sealed(self) -> dict[str, Any]:
        """Returns the record as JSON values, with its format and its seal."""
        values = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return {**values, "seal": _seal(values)}

    @property
    def not_finite(self) -> list[str]:
        """Paths of leaves that hold a NaN or an infinity."""
        return [path for path, leaf in self.leaves.items() if not leaf["finite"]]

    @property
    def structure(self) -> Structure:
        """Path, shape and dtype of every leaf."""
        return {
            path: (tuple(leaf["shape"]), leaf["dtype"])
            for path, leaf in self.leaves.items()
        }


def record_of(step: int, state: Any, data_iterator: Any, graph_json: str) -> Record:
    """Returns what belongs to the arrays of a step; all processes must call.

    Args:
      step: Number of steps that `state` has seen.
      state: Nested dict of jax arrays, whose keys are names.
      data_iterator: Gives the data position through `get_state`, as JSON values.
      graph_json: The experiment.
    """
    return Record(
        step=step,
        graph=json.loads(graph_json),
        places=gather(data_iterator.get_state()),
        leaves=describe_leaves(state),
    )


def describe_leaves(state: Any) -> dict[str, dict[str, Any]]:
    """Returns `Record.leaves` of a state."""
    described = zip(structure_of(state).items(), fingerprint(state), strict=True)
    return {
        path: {"shape": list(shape), "dtype": dtype, **found._asdict()}
        for (path, (shape, dtype)), found in described
    }


def read_record(directory: AnyPath) -> Record:
    """Returns the record of a step directory.

    Raises:
      DamagedCheckpointError: If it is missing, has changed, or is of another step.
      UserError: If an earlier or later version of maxfdl wrote it.
    """
    try:
        values = json.loads((directory / _FILE).read_text("utf-8"))[_KEY]
        is_format_1 = "checksum" in values and values["format_version"] == 1
        seal = values.pop("seal", None)
    except PermissionError as error:
        raise DamagedCheckpointError(
            f"its metadata cannot be read: {error.strerror}"
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise DamagedCheckpointError("its metadata is missing") from None
    if seal != _seal(values) and not is_format_1:
        raise DamagedCheckpointError("its metadata has changed since it was written")
    version = values.pop("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"Checkpoint {directory} has format {version}, and this maxfdl reads format"
            f" {FORMAT_VERSION}; use the maxfdl that wrote it"
            f" ({values['versions']['maxfdl']}), or start in another directory."
        )
    record = Record(**values)
    if str(record.step) != directory.name:
        raise DamagedCheckpointError(f"it was written as step {record.step}")
    return record


def check_arrays(record: Record, state: Any, *, allow_non_finite: bool) -> None:
    """Raises DamagedCheckpointError unless `state`, or a part, is what was saved, and
    finite if it must be."""
    for path, leaf in describe_leaves(state).items():
        check_leaf(record, path, leaf, allow_non_finite)


def check_leaf(
    record: Record, path: str, leaf: dict[str, Any], allow_non_finite: bool
) -> None:
    """Raises DamagedCheckpointError unless `leaf` describes the array that was saved
    under `path`, and it is finite if it must be."""
    if leaf != record.leaves[path]:
        raise DamagedCheckpointError(f"{path} has changed since it was written")
    if not (leaf["finite"] or allow_non_finite):
        raise DamagedCheckpointError(
            f"{path} holds values that are not finite; generate and convert read them"
            " with --allow_non_finite"
        )


def _seal(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@functools.cache  # reads the metadata of all packages
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
