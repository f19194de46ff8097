"""Eight virtual devices on the CPU, compiled programs kept, shapes of ops checked.

JAX reads the environment when it is imported, and jaxtyping checks what is imported
after its hook is in place: both come before any import of the library.
"""

import os
import pathlib

import jaxtyping

_PLACE_OF_CACHE = os.environ.get("MAXFDL_CACHE") or (
    pathlib.Path(__file__).parents[1] / ".pytest_cache"
)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{_PLACE_OF_CACHE}/xla")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

jaxtyping.install_import_hook("maxfdl.ops", "beartype.beartype")

# Programs of several CPU devices deadlock when they come from the cache, see
# maxfdl/train/runtime.py; commands that tests start on one device use it.
import jax  # noqa: E402

jax.config.update("jax_enable_compilation_cache", False)
