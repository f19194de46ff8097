"""Checkpoints move between meshes and numbers of processes, to the last bit.

    python -m tests.resharding                                     all 9 x 9 directions
    python -m tests.resharding --processes=1,2 --meshes=8,2x2x2    16 of them

A layout is a number of processes and a mesh over their 8 devices. Each saves the state
of a training run, FP8 scales and 8-bit moments among it, and restores what every layout
has saved. Processes are started once, and no step is compiled.
"""

import argparse
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from typing import Any

import jax
import numpy as np

from maxfdl.checkpoint.checkpointer import Checkpointer, NoData
from maxfdl.hush import hush
from maxfdl.mutations import enable_fp8, mesh, moment_storage
from tests import tiny

DEVICES, STEP = 8, 3

MESHES: dict[str, dict[str, Any]] = {
    "8": {"fsdp": 8},
    "4x2": {"fsdp": 4, "tensor": 2},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", default="1,2,4", help="with commas")
    parser.add_argument("--meshes", default=",".join(MESHES), help="with commas")
    parser.add_argument("--member", help="for the processes that this one starts")
    asked = parser.parse_args()
    counts = [int(count) for count in asked.processes.split(",")]
    meshes = asked.meshes.split(",")
    if asked.member:
        count, index, port, folder = asked.member.split(",", 3)
        _join(int(count), int(index), port)
        sys.exit(_save_and_restore(int(count), counts, meshes, pathlib.Path(folder)))
    with tempfile.TemporaryDirectory() as folder:
        wrong = _run_all(counts, sys.argv[1:], folder)
    layouts = len(counts) * len(meshes)
    print(f"{layouts} x {layouts} directions: {wrong or 'every bit is the same'}")
    sys.exit(bool(wrong))


def _run_all(counts: list[int], words: list[str], folder: str) -> str:
    """Starts all processes, and returns what went wrong in them."""
    with contextlib.ExitStack() as stack:
        started = []
        for count in counts:
            with socket.create_server(("localhost", 0)) as server:
                port = server.getsockname()[1]
            flag = f"--xla_force_host_platform_device_count={DEVICES // count}"
            environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
            for index in range(count):
                member = f"--member={count},{index},{port},{folder}"
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.resharding", *words, member],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                stack.enter_context(process)
                stack.callback(process.kill)
                started.append(process)
        while all(process.poll() in (None, 0) for process in started):
            if all(process.poll() == 0 for process in started):
                return ""
            time.sleep(0.05)
        failed = [process for process in started if process.poll()]
        return "\n".join(process.communicate()[0] for process in failed)


def _join(count: int, index: int, port: str) -> None:
    hush("orbax", "tensorstore", "uvloop")
    if count > 1:
        jax.distributed.initialize(f"localhost:{port}", count, index)


def _save_and_restore(
    mine: int, counts: list[int], meshes: list[str], folder: pathlib.Path
) -> int:
    """Saves on each mesh, restores what every layout saved, and returns how many were
    not as they were saved."""
    abstract = {name: _abstract_state(name) for name in meshes}
    for name in meshes:
        checkpointer = Checkpointer(directory=folder / f"{mine}x{name}")
        checkpointer.save(STEP, _filled(abstract[name]), NoData(), "{}")
        checkpointer.close()
    wrong = 0
    for saved in [f"{count}x{name}" for count in counts for name in meshes]:
        while not (folder / saved / str(STEP)).is_dir():
            time.sleep(0.05)
        for name in meshes:
            checkpointer = Checkpointer(directory=folder / saved)
            state = checkpointer.restore(STEP, abstract[name], NoData())
            if differ := _differences(state):
                wrong += 1
                print(f"{saved} on {mine}x{name}: {', '.join(differ)}")
    return wrong


def _abstract_state(name: str) -> Any:
    config = tiny.experiment(
        lambda config: enable_fp8(config, recipe="delayed"),
        lambda config: moment_storage(config, kind="eight_bit"),
        lambda config: mesh(config, **MESHES[name]),
    )
    return tiny.program(config, DEVICES).abstract_state()


def _filled(abstract: Any) -> Any:
    def fill(path: Any, leaf: Any) -> jax.Array:
        values = _values(path, leaf)
        return jax.make_array_from_callback(
            leaf.shape, leaf.sharding, lambda index: values[index]
        )

    return jax.tree_util.tree_map_with_path(fill, abstract)


def _values(path: Any, leaf: Any) -> np.ndarray:
    """Returns random values of an array, always the same at a path."""
    draw = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
    return draw.integers(-100, 100, leaf.shape).astype(leaf.dtype)


def _differences(state: Any) -> list[str]:
    """Returns the paths of arrays of which a shard here is not as it was saved."""
    differ = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        values = _values(path, leaf)
        for shard in leaf.addressable_shards:
            expected = np.ascontiguousarray(values[shard.index])
            if np.asarray(shard.data).tobytes() != expected.tobytes():
                differ.append(jax.tree_util.keystr(path))
                break
    return differ


if __name__ == "__main__":
    main()
