"""Which of the processes of a run this one is: from flags, environment or cluster."""

import dataclasses
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from maxfdl.errors import UserError

VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
"""The environment variable that stands for each flag that is not given."""

_TIMEOUT, _HEARTBEAT = "initialization_timeout", "heartbeat_timeout"


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of this process among the processes of a run.

    Args:
      host: Machine of process 0.
      port: Where process 0 waits there for the others.
      process_id: Number of this process, from 0.
      num_processes: Number of all processes.
      timeout: Seconds to wait for the others at the start.
      local_device_ids: Devices of this machine that this process uses; None for all.
      heartbeat: Seconds after which a process that does not answer ends the run; that
        of process 0 counts.
    """

    host: str
    port: int
    process_id: int
    num_processes: int
    timeout: float
    local_device_ids: tuple[int, ...] | None = None
    heartbeat: float = 60.0

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def on_one_machine(self) -> bool:
        """Returns whether `host` names the machine that asks, such as localhost."""
        return is_loopback(self.host)


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags that `read_place` reads, once."""
    if "coordinator" in flag_values:
        return
    texts = {
        "coordinator": "HOST:PORT where process 0 of several waits for the others.",
        "num_processes": "How many processes train together.",
        "process_id": "Which of them this is, from 0.",
        _TIMEOUT: "Seconds to wait for the other processes at the start; default 60"
        " where all are on one machine, else 300.",
        _HEARTBEAT: "Seconds after which a process that does not answer, because it is"
        " stopped or hangs, ends the run; default 60.",
    }
    for name, text in texts.items():
        variable = VARIABLES.get(name)
        instead = f" Without it, {variable} counts." if variable else ""
        flags.DEFINE_string(name, None, text + instead, flag_values=flag_values)


def read_place(argv: Sequence[str], environment: Mapping[str, str]) -> Place | None:
    """Returns the place of this process, or None if it trains alone.

    A flag goes before its environment variable. What neither gives comes from the
    cluster that started the process, as JAX detects it: Slurm, Open MPI, TPU pods.
    Other flags are not looked at: they may be wrong, and the others are told.

    Raises:
      UserError: If something is missing or makes no sense.
    """
    given, timeout, heartbeat = _given(argv, environment)
    local_device_ids = None
    if len(given) < len(VARIABLES) and _is_one_of_many(environment):
        found, local_device_ids = _of_cluster(given.get("coordinator"))
        given = found | given
    if not given:
        return None
    if missing := [name for name in VARIABLES if name not in given]:
        raise UserError(
            f"{_listed(given)} is given but {_listed(missing)} is not; several"
            " processes need all three, for example --coordinator=localhost:1234"
            " --num_processes=2 --process_id=0."
        )
    host, port = _host_and_port(given["coordinator"])
    num_processes = _integer("num_processes", given["num_processes"])
    process_id = _integer("process_id", given["process_id"])
    if num_processes < 1:
        raise UserError(f"--num_processes={num_processes} must be positive.")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must be from 0 to {num_processes - 1}, for"
            f" there are --num_processes={num_processes}."
        )
    if num_processes == 1:
        return None
    return Place(
        host=host,
        port=port,
        process_id=process_id,
        num_processes=num_processes,
        timeout=_seconds(_TIMEOUT, timeout, 60.0 if is_loopback(host) else 300.0),
        heartbeat=_seconds(_HEARTBEAT, heartbeat, Place.heartbeat),
        local_device_ids=local_device_ids,
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _given(
    argv: Sequence[str], environment: Mapping[str, str]
) -> tuple[dict[str, Any], str | None, str | None]:
    values = flags.FlagValues()
    define_flags(values)
    try:
        values(argv, known_only=True)
    except flags.Error as error:
        raise UserError(str(error)) from None
    texts = {
        name: environment.get(variable)
        if values[name].value is None
        else values[name].value
        for name, variable in VARIABLES.items()
    }
    given = {name: text for name, text in texts.items() if text is not None}
    return given, values[_TIMEOUT].value, values[_HEARTBEAT].value


def _listed(names: Any) -> str:
    """Returns names of flags with the variables that may stand for them."""
    return " and ".join(f"--{name} (or {VARIABLES[name]})" for name in names)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator={address} must be HOST:PORT of process 0, such as"
            " localhost:1234."
        )
    return host, int(port)


def _integer(name: str, value: Any) -> int:
    try:
        return int(value)
    except ValueError:
        raise UserError(f"--{name}={value} must be an integer.") from None


def _seconds(flag: str, text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UserError(f"--{flag}={text} must be a positive number of seconds.")
    return seconds


def _is_one_of_many(environment: Mapping[str, str]) -> bool:
    """Returns whether a cluster has started more processes than this one.

    Inside an allocation of Slurm, only what `srun` starts is one of many.
    """
    sizes = [environment.get("OMPI_COMM_WORLD_SIZE", "1")]
    if "SLURM_STEP_NODELIST" in environment:
        sizes.append(environment.get("SLURM_NTASKS", "1"))
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return len(hosts) > 1 or any(size not in ("", "1") for size in sizes)


def _of_cluster(
    coordinator: str | None,
) -> tuple[dict[str, Any], tuple[int, ...] | None]:
    """Returns what JAX detects of the cluster, and the devices that are ours there."""
    # Has no public name: `jax.distributed.initialize` alone uses it.
    from jax._src.clusters import ClusterEnv

    try:
        *found, devices = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, None, None, None, None, 300
        )
    except Exception as error:
        raise UserError(
            "this seems to be one of several processes, but JAX cannot tell which"
            f" ({type(error).__name__}: {error}); give --coordinator, --num_processes"
            " and --process_id."
        ) from error
    names = zip(VARIABLES, found, strict=True)
    return (
        {name: value for name, value in names if value is not None},
        None if devices is None else tuple(devices),
    )
