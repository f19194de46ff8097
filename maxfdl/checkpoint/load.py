"""Loading one step, with every check that it is what was saved and what is wanted."""

import contextlib
import gc
import logging
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from maxfdl.checkpoint.record import (
    DamagedCheckpointError,
    check_fingerprints,
    check_record,
    saved_structure,
)
from maxfdl.checkpoint.sealed_text import SealedText
from maxfdl.checkpoint.structure import differences, structure_of
from maxfdl.errors import UserError


def load_step(
    path: pathlib.Path, abstract: Any, items: Mapping[str, SealedText]
) -> Any:
    """Returns the state in the step directory `path`, and sets the text of `items`.

    Without `items`, `abstract` may leave out top-level entries of the state.

    Raises:
      UserError: If what was saved is not what `abstract` describes.
      DamagedCheckpointError: If it cannot be read, or is not what was written.
    """
    problem = None
    with _hushed():
        try:
            return _load(path, abstract, items)
        except (UserError, DamagedCheckpointError):
            raise
        except Exception as error:
            problem = gist(error)
        # Frees what was loaded before the older step needs the room.
        gc.collect()
    raise DamagedCheckpointError(problem)


def _load(path: pathlib.Path, abstract: Any, items: Mapping[str, SealedText]) -> Any:
    if not (path / "state").is_dir():
        raise DamagedCheckpointError("it holds no state")
    ocp = import_orbax()
    record = check_record(ocp.metadata(path).custom_metadata)
    _check_fits(path, record, abstract, whole=bool(items))
    context = ocp.Context()
    context.pytree.loading.partial_load = not items
    with context:
        for name, item in items.items():
            ocp.load_checkpointables(path, {name: item})
        state = ocp.load_checkpointables(path, {"state": _placed(abstract)})["state"]
    check_fingerprints(record, state)
    return state


def _check_fits(
    path: pathlib.Path, record: Mapping[str, Any], abstract: Any, whole: bool
) -> None:
    """Raises UserError unless the saved leaves are just those of `abstract`."""
    saved = saved_structure(record)
    if not whole:
        saved = {
            key: leaf for key, leaf in saved.items() if key.split(".")[0] in abstract
        }
    if problems := differences(saved, structure_of(abstract)):
        raise UserError(
            f"Checkpoint {path} is of another experiment: {problems}; restore the"
            " experiment that was saved, or give another directory."
        )
    if whole and record["processes"] != jax.process_count():
        raise UserError(
            f"Checkpoint {path} was saved by {record['processes']} processes, and there"
            f" are {jax.process_count()}; continue with as many, for each saved its own"
            " place in the data."
        )


def _placed(abstract: Any) -> Any:
    """Returns `abstract` with leaves that name no sharding put on one device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding or device
        ),
        abstract,
    )


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keeps back what Python prints about work that Orbax leaves behind.

    When one of its concurrent reads fails, Orbax raises and abandons the others: pages
    of "exception was never retrieved" and "Exception ignored in".
    """
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    finally:
        sys.unraisablehook = hook
        logger.setLevel(level)


def import_orbax() -> Any:
    """Returns `orbax.checkpoint.v1`, which takes half a second to import."""
    from orbax.checkpoint import v1

    return v1


def gist(error: BaseException) -> str:
    """Returns one short line of `error`; those of Orbax wrap others and fill pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(".: ")
