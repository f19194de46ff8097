"""Parts of an array of a checkpoint are read alone, and checked all the same."""

import contextlib
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxfdl.checkpoint import chunks
from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.errors import UserError

SHAPE = (5, 512, 512)  # 1 MiB in each part


class Position:
    def get_state(self):
        return {}

    def set_state(self, state):
        assert state == {}


def save(folder, state, **how):
    checkpointer = Checkpointer(directory=folder)
    checkpointer.save(1, state, Position(), "{}", **how)
    checkpointer.close()


def reader(folder, state, **how):
    abstract = jax.eval_shape(lambda: state)
    return Checkpointer(directory=folder).reader(1, abstract, **how)


@pytest.fixture(scope="module")
def state():
    """Numbers that do not compress, in a stack, and fewer that no chunk is worth."""
    return {
        "stack": jax.random.normal(jax.random.key(0), SHAPE, jnp.float32),
        "narrow": jax.random.normal(jax.random.key(1), (3, 1024, 512), jnp.bfloat16),
        "small": jnp.arange(12.0).reshape(3, 4),
    }


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(folder, state)
    return folder


def test_large_parts_have_chunks_of_their_own_and_small_ones_do_not(saved, state):
    read = reader(saved, state)
    assert [read.is_in_parts([name]) for name in state] == [True, True, False]
    for name in ("stack", "narrow"):
        for i, expected in enumerate(state[name]):
            part = read.read_part([name], i)
            assert part.dtype == expected.dtype
            np.testing.assert_array_equal(part, expected)


def test_parts_are_read_without_memory_for_the_others(tmp_path):
    stack = {"stack": jax.random.normal(jax.random.key(0), (24, 1024, 512))}  # 48 MiB
    save(tmp_path, stack)
    read = reader(tmp_path, stack)
    read.read_part(["stack"], 0)
    with peak_of_memory() as bytes_more:
        for i in range(24):
            read.read_part(["stack"], i)
    assert bytes_more() < 24 * 2**20


@contextlib.contextmanager
def peak_of_memory():
    """Gives what tells how far the memory of this process has risen."""

    def of_process(name):
        text = pathlib.Path("/proc/self/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+) kB", text)[1]) * 1024

    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = of_process("VmRSS")
    yield lambda: of_process("VmHWM") - before


def test_shards_of_an_array_are_parts_too(state, tmp_path):
    mesh = Mesh(np.array(jax.devices()[:2]), ("fsdp",))
    place = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    wide = jax.device_put(jnp.tile(state["stack"][:2], (1, 2, 1)), place)
    save(tmp_path, {"wide": wide})
    read = reader(tmp_path, {"wide": wide})
    assert read.is_in_parts(["wide"])
    np.testing.assert_array_equal(read.read_part(["wide"], 1), wide[1])


def test_all_parts_together_are_checked(saved, state, tmp_path):
    read = reader(saved, state)
    order = (3, 0, 4, 1, 2)
    for i in order:
        read.read_part(["stack"], i)
    # The record of other numbers: the last part to be read tells.
    other = tmp_path / "other"
    save(other, state | {"stack": state["stack"].at[0, 0, 0].add(1.0)})
    shutil.rmtree(other / "1" / "state")
    shutil.copytree(saved / "1" / "state", other / "1" / "state")
    read = reader(other, state)
    for i in order[:-1]:
        read.read_part(["stack"], i)
    with pytest.raises(UserError, match="is damaged .stack has changed since it was"):
        read.read_part(["stack"], order[-1])


def test_a_part_that_is_not_finite_is_refused_unless_that_is_allowed(tmp_path, state):
    broken = {"stack": state["stack"].at[1, 2, 3].set(jnp.nan)}
    save(tmp_path, broken, allow_non_finite=True)
    read = reader(tmp_path, broken)
    read.read_part(["stack"], 0)
    with pytest.raises(UserError, match="stack holds values that are not finite"):
        read.read_part(["stack"], 1)
    read = reader(tmp_path, broken, allow_non_finite=True)
    for i in range(5):
        np.testing.assert_array_equal(read.read_part(["stack"], i), broken["stack"][i])


def test_an_array_that_was_saved_in_one_chunk_is_read_whole(
    tmp_path, state, monkeypatch
):
    monkeypatch.setattr(chunks, "_SMALLEST", 2**30)
    save(tmp_path, state)
    read = reader(tmp_path, state)
    assert not read.is_in_parts(["stack"])
    for name, expected in state.items():
        np.testing.assert_array_equal(read.read([name]), expected)
