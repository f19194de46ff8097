"""The flags `--topology` and `--num_slices`, which `aot` and `show` share."""

from typing import Any

from absl import flags

from maxfdl.errors import UserError

FLAGS = flags.FLAGS

if "topology" not in FLAGS:
    flags.DEFINE_string(
        "topology", None, "TPUs that are elsewhere, such as v5e:16x16 or v5p:4x4x8."
    )
    flags.DEFINE_integer(
        "num_slices", 1, "How many slices of that topology.", lower_bound=1
    )


def check_flags() -> None:
    """Raises UserError if slices are counted of no topology."""
    if FLAGS["num_slices"].present and FLAGS.topology is None:
        raise UserError("--num_slices has no meaning without --topology; add that.")


def devices() -> list[Any] | None:
    """Returns the devices that the flags name, or None if they name none.

    Raises:
      UserError: If libtpu is not installed, or knows no such topology.
    """
    from maxfdl.run.topology import devices_of

    if FLAGS.topology is None:
        return None
    return devices_of(FLAGS.topology, FLAGS.num_slices)
