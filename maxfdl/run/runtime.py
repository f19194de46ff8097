"""What a process sets in JAX before it trains."""

import collections
import os
import socket

import jax

from maxfdl.errors import UserError
from maxfdl.files import cache_directory
from maxfdl.run.processes import ending
from maxfdl.run.processes.peers import Peers
from maxfdl.run.processes.relay import Relay

# JAX's own watch over the processes would end them with a page from C++, and those
# that are merely stopped as well. `Peers` watches instead.
_HEARTBEAT_TIMEOUT_SECONDS = 24 * 3600


def start(*, compilation_cache: bool) -> None:
    """Joins JAX's processes, if this one is not alone, and sets up compilation.

    Raises:
      UserError: If the processes do not have equally many devices.
    """
    if compilation_cache and not jax.config.values["jax_compilation_cache_dir"]:
        cache = cache_directory() / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    peers = ending.current()
    if peers is not None:
        _initialize(peers)
    _check_devices(peers)
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        # XLA:CPU does not store the order of collectives: devices that run a stored
        # program wait for each other for ever (jaxlib 0.10.2 and 0.12.0).
        jax.config.update("jax_enable_compilation_cache", False)


def _initialize(peers: Peers) -> None:
    """Starts JAX's coordination service in process 0, and connects all to it."""
    place = peers.place
    is_first = place.process_id == 0
    host = "localhost" if place.on_one_machine else "[::]"
    # Process 0 listens at the coordinator's port itself, see `Hub`.
    port = peers.meet("port of JAX", _free_port() if is_first else None)
    client_port = port if is_first else _relay_port(peers, port)
    # All connections are to this machine, where no proxy leads.
    os.environ.setdefault("no_grpc_proxy", "127.0.0.1")
    jax.config.update("jax_check_proxy_envs", False)
    # Orbax, too, can do without the service, which would keep SIGTERM to itself.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        f"127.0.0.1:{client_port}",
        place.num_processes,
        place.process_id,
        place.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=int(place.timeout) + 60,
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_SECONDS,
        coordinator_bind_address=f"{host}:{port}",
    )


def _relay_port(peers: Peers, port: int) -> int:
    """Returns a port of this machine that leads to JAX's service in process 0."""
    place = peers.place

    def give_up(problem: str) -> None:
        peers.end_all(
            f"process {place.process_id} cannot reach JAX in process 0 at"
            f" {place.host}, port {port} ({problem}); open all ports between the"
            " machines of a run.",
            code=2,
        )

    return Relay((place.host, port), place.timeout, give_up).port


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def _check_devices(peers: Peers | None) -> None:
    counts = collections.Counter(device.process_index for device in jax.devices())
    if peers is None and len(counts) > 1:
        raise UserError(
            f"this process shares a TPU with {len(counts) - 1} others that it cannot"
            " talk to; give each process --coordinator, --num_processes and"
            " --process_id."
        )
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"process {i} has {n}" for i, n in sorted(counts.items()))
        raise UserError(
            f"all processes must have equally many devices, but {listed}; see what"
            " CUDA_VISIBLE_DEVICES, JAX_LOCAL_DEVICE_IDS and XLA_FLAGS say in each."
        )
