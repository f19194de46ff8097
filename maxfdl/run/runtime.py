"""What a process sets in JAX before it trains."""

import os

import jax

from maxfdl.files import cache_directory


def start(*, compilation_cache: bool) -> None:
    """Joins the other processes of the run, if any, and sets up compilation.

    A process belongs to a larger run if its environment says so, as TPU pods, Slurm
    and Open MPI do, or `JAX_COORDINATOR_ADDRESS`.
    """
    if compilation_cache and not jax.config.values["jax_compilation_cache_dir"]:
        cache = cache_directory() / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if _is_one_of_many():
        jax.distributed.initialize()
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        # XLA:CPU does not store the order of collectives: devices that run a stored
        # program wait for each other for ever (jaxlib 0.10.2 and 0.12.0).
        jax.config.update("jax_enable_compilation_cache", False)


def _is_one_of_many() -> bool:
    env = os.environ
    return (
        "JAX_COORDINATOR_ADDRESS" in env
        or int(env.get("SLURM_NTASKS", "1")) > 1
        or int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
        or len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    )
