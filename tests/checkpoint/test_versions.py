"""Checkpoints of every format that was released are read.

A folder `format_N` holds step 3 of `state()`, saved by the maxfdl that wrote format N.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.checkpoint.checkpointer import Checkpointer, NoData
from maxfdl.checkpoint.on_disk import one_step
from maxfdl.checkpoint.record import FORMAT_VERSION
from maxfdl.checkpoint.structure import structure_of

FOLDER = pathlib.Path(__file__).parents[1] / "goldens" / "checkpoints"
RELEASED = sorted(path.name for path in FOLDER.iterdir())


def state():
    return {
        "step": jnp.int32(3),
        "params": {
            "kernel": jnp.arange(12, dtype=jnp.float32).reshape(3, 4) / 7,
            "scale": jnp.asarray([1.5, -2.25], jnp.bfloat16),
        },
        "optimizer": [{"mu": jnp.full((3, 4), 0.125)}, None],
        "amax": jnp.asarray([0.5, 448.0], jnp.float8_e4m3fn),
        "seen": jnp.asarray([True, False]),
    }


def test_the_format_of_today_is_among_them():
    assert f"format_{FORMAT_VERSION}" in RELEASED


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_format_is_read_to_the_last_bit(name, assert_same):
    checkpointer = Checkpointer(directory=FOLDER / name)
    assert json.loads(checkpointer.graph(3)) == {"a": 1}
    shapes = jax.eval_shape(state)
    assert_same(checkpointer.restore(3, shapes, NoData()), state())


@pytest.mark.parametrize("name", RELEASED)
def test_tools_read_a_released_format_array_by_array(name):
    step = one_step(str(FOLDER / name), 3)
    step.check()
    arrays = jax.tree.leaves(state())
    assert len(arrays) == len(step.record.structure)
    for path, expected in zip(structure_of(state()), arrays, strict=True):
        found = step.array(path)
        assert found.dtype == expected.dtype
        assert found.tobytes() == np.asarray(expected).tobytes()
