"""Tests of saving and restoring in two processes."""

import os
import socket
import subprocess
import sys

import pytest

TWO_PROCESSES = """
import sys

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

process = int(sys.argv[1])
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, process)
from maxfdl.checkpoint.checkpointer import Checkpointer

sharding = NamedSharding(Mesh(np.array(jax.devices()), "x"), PartitionSpec("x"))
values = np.arange(40.0, dtype=np.float32).reshape(8, 5)
state = {"w": jax.make_array_from_callback((8, 5), sharding, lambda i: values[i])}
shapes = {"w": jax.ShapeDtypeStruct((8, 5), np.float32, sharding=sharding)}

def rows():
    return iter(grain.MapDataset.range(100)[process::2].to_iter_dataset())

data = rows()
checkpointer = Checkpointer(keep=2, directory=sys.argv[3])
for step in (1, 2, 3):
    next(data)
    checkpointer.save(step, state, data, "{}")
fresh = rows()
restored = checkpointer.restore(3, shapes, fresh)
assert next(fresh) == next(data)
for shard in restored["w"].addressable_shards:
    assert (np.asarray(shard.data) == values[shard.index]).all()
checkpointer.restore(2, shapes, fresh)
checkpointer.save(3, restored, fresh, "{}")
checkpointer.close()
assert checkpointer.latest() == 3
"""


@pytest.mark.slow
def test_two_processes_save_and_restore_their_shards_and_their_data(tmp_path):
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [sys.executable, "-c", TWO_PROCESSES]
    processes = [
        subprocess.Popen(
            [*command, str(index), str(port), str(tmp_path)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], errors
    assert errors[0].count("step 3 is moved to") == 1
    assert "is moved to" not in errors[1]


@pytest.mark.slow
def test_a_checkpoint_is_restored_on_other_meshes_and_numbers_of_processes():
    """A share of `python -m tests.resharding`."""
    words = ["--processes=1,2", "--meshes=8,2x2x2"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.resharding", *words],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout == "4 x 4 directions: every bit is the same\n"
