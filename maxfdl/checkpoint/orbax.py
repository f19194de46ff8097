"""Orbax, which writes the arrays of a checkpoint."""

from typing import Any

from maxfdl.bucket import BucketPath
from maxfdl.errors import UserError
from maxfdl.hush import hush
from maxfdl.paths import AnyPath, bucket_kvstore


def import_orbax() -> Any:
    """Returns `orbax.checkpoint.v1`, which takes half a second to import."""
    from orbax.checkpoint import v1

    hush("orbax", "tensorstore", "uvloop")
    return v1


def orbax_context(path: AnyPath) -> Any:
    """Returns a new Orbax context for what lies at `path`.

    Orbax knows `gs://`; what it must be told of `s3://` is said here: that a step is
    whole when it holds a marker, and where TensorStore finds it.
    """
    context = import_orbax().Context()
    if isinstance(path, BucketPath) and path.scheme == "s3":
        from orbax.checkpoint import options

        _let_orbax_use_s3()
        context.atomicity.mode = options.AtomicityMode.COMMIT_FILE
    return context


def _let_orbax_use_s3() -> None:
    """Extends the functions by which Orbax finds a TensorStore driver.

    Orbax 0.12 has a driver for `gs://` alone, and no place to register another. It
    takes every other URL for a path of this machine, and refuses it as a relative one.
    """
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    names = ("_use_gcs_driver", "_normalize_path")
    if not all(hasattr(tensorstore_utils, name) for name in names):
        raise UserError(
            "Checkpoints cannot be in s3:// with this version of orbax-checkpoint; use"
            " 0.12, or a folder of this machine."
        )
    if tensorstore_utils._use_gcs_driver("s3://bucket"):
        return
    of_gcs, normalised = (
        gcs_utils.get_kvstore_for_gcs,
        tensorstore_utils._normalize_path,
    )

    def kvstore(url: str) -> dict[str, Any]:
        return bucket_kvstore(url) if url.startswith("s3://") else of_gcs(url)

    def normalise(url: str) -> str:
        return normalised(url).replace("s3:/", "s3://")

    gcs_utils.get_kvstore_for_gcs = kvstore
    tensorstore_utils._normalize_path = normalise
    tensorstore_utils._use_gcs_driver = lambda url: url.startswith(("gs://", "s3://"))
