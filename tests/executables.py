"""Each program is compiled once in a process, whoever compiles it.

Tests build the same program again and again: the plain run that each compares with, or
a network in NNX and in Linen, whose programs are equal. XLA takes half of the time of
the suite. JAX's own cache of this kind lies on disk, where the programs of several CPU
devices deadlock when they are read back (maxfdl/run/runtime.py).

Programs are equal if JAX's cache key is: names and lines of the source are left out.
"""

import time
from collections import OrderedDict
from typing import Any

import numpy as np
from jax._src import cache_key, compiler

WORTH_KEEPING = 0.05
"""CPU seconds: programs that compile faster would only push out others."""
KEPT = 32
"""Programs, of a few MB each."""


class Executables:
    """The executables that were used last, by their cache keys."""

    def __init__(self):
        self._compile = compiler.backend_compile_and_load
        self._kept = OrderedDict[str, Any]()

    def install(self) -> None:
        """Makes JAX compile through `self`."""
        compiler.backend_compile_and_load = self.compile_and_load

    def compile_and_load(
        self,
        backend: Any,
        module: Any,
        executable_devices: Any,
        options: Any,
        host_callbacks: Any,
    ) -> Any:
        """Stands for JAX's function of this name, with its arguments."""
        args = (backend, module, executable_devices, options, host_callbacks)
        # A callback belongs to one call; programs for TPUs are made to be read.
        if host_callbacks or backend.platform != "cpu":
            return self._compile(*args)
        devices = np.array(list(executable_devices))
        key = cache_key.get(module, devices, options, backend)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        began = time.process_time()
        executable = self._compile(*args)
        if time.process_time() - began > WORTH_KEEPING:
            self._kept[key] = executable
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return executable
