"""Eight virtual devices on the CPU, programs compiled in haste, shapes of ops checked.

JAX reads the environment when it is imported, and jaxtyping checks what is imported
after its hook is in place: both come before any import of the library.
"""

import gc
import importlib.metadata
import os
import pathlib

import jaxtyping

_PLACE_OF_CACHE = os.environ.get("MAXFDL_CACHE") or (
    pathlib.Path(__file__).parents[1] / ".pytest_cache"
)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and run little: code that is not optimized takes half the time.
_XLA_FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    # Devices that wait for one another on a busy machine are no deadlock yet.
    "--xla_cpu_collective_call_terminate_timeout_seconds=300",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # Later ones lack it.

os.environ.setdefault("XLA_FLAGS", " ".join(_XLA_FLAGS))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{_PLACE_OF_CACHE}/xla")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

jaxtyping.install_import_hook("maxfdl.ops", "beartype.beartype")

# Programs of several CPU devices deadlock when they come from the cache, see
# maxfdl/run/runtime.py; commands that tests start on one device use it.
import jax  # noqa: E402
import pytest  # noqa: E402

from tests.executables import Executables  # noqa: E402
from tests.times import CpuTimes  # noqa: E402

jax.config.update("jax_enable_compilation_cache", False)
Executables().install()

# Tracing a step makes a million objects that are no garbage, and the collector looked
# through them and the rest of the heap a dozen times: 6 % of the suite's time.
gc.set_threshold(10_000)


def pytest_configure(config):
    config.pluginmanager.register(CpuTimes())


@pytest.fixture(autouse=True, scope="module")
def frozen_heap():
    """What earlier tests left is cached for later ones; the collector need not look.

    With the whole suite in one process a full collection takes a second, and a restore
    of a damaged checkpoint asks for one.
    """
    gc.freeze()
