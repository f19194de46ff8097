"""Devices of TPU slices that are not here, to compile for.

libtpu (extra `tpu`) knows them by name and compiles for them on any machine. There is
nothing like it for GPUs.
"""

import importlib.util
import os
import re

import jax

from maxfdl.errors import UserError

_KINDS = ("v4", "v5e", "v5p", "v6e", "tpu7x")

# Else libtpu looks for the TPU of this machine and asks the metadata server of the
# cloud about it, and two processes may not use it at a time.
_WITHOUT_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices_of(topology: str, num_slices: int = 1) -> list[jax.Device]:
    """Returns the devices of `num_slices` slices of a topology such as `v5e:16x16`.

    Programs can be compiled for them, and nothing can run on them. It is for a process
    that needs no TPU of its own: JAX uses the CPU in it from here on.

    Raises:
      UserError: If libtpu is not installed, or knows no such topology.
    """
    _check_name(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={topology} needs libtpu, which compiles for TPUs on any"
            " machine; install the extra tpu: pip install 'maxfdl[tpu]'."
        )
    for name, value in _WITHOUT_A_TPU.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")

    from jax.experimental import topologies

    # A slice may be a part of a host, which libtpu takes to have 2x2 chips.
    sizes = map(int, topology.partition(":")[2].split("x"))
    of_host = [*map(min, sizes, (2, 2, 1)), 1][:3]
    try:
        described = topologies.get_topology_desc(
            platform="tpu",
            topology_name=topology,
            num_slices=num_slices,
            chips_per_host_bounds=of_host,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(
            f"--topology={topology} is refused by libtpu ({reason}); give the chips"
            " along each dim of a slice that exists, as in v5e:16x16 or v5p:4x4x8."
        ) from None
    return list(described.devices)


def _check_name(topology: str) -> None:
    kind, _, chips = topology.partition(":")
    if re.match(r"(?i)[abhl]\d+|gpu|cuda|nvidia|gb\d+|rtx", kind):
        raise UserError(
            f"--topology={topology} cannot be compiled for: JAX compiles ahead of time"
            " for slices of TPUs only; on a machine with such cards, leave --topology"
            " out to compile for those that are here."
        )
    dims = 2 if kind in ("v5e", "v6e") else 3
    sizes = chips.split("x")
    if kind not in _KINDS or not all(s.isdigit() and int(s) for s in sizes):
        raise UserError(
            f"--topology={topology} must be a TPU generation"
            f" ({', '.join(_KINDS)}), a colon, and the chips along each dim of a slice,"
            " as in v5e:16x16 or v5p:4x4x8."
        )
    if len(sizes) != dims:
        raise UserError(
            f"--topology={topology} must have {dims} dims, for a slice of {kind} is a"
            f" torus of {dims} dims, as in {kind}:{'x'.join(['4'] * dims)}."
        )
