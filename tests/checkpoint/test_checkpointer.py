"""Tests of saving and restoring a run."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.checkpoint.steps import check_room
from maxfdl.errors import UserError

GRAPH = '{"name": "tiny"}'


@pytest.fixture
def checkpointer(tmp_path):
    checkpointer = Checkpointer(directory=tmp_path / "checkpoints")
    yield checkpointer
    checkpointer.close()


def test_importing_it_does_not_import_orbax():
    code = "import sys, maxfdl.checkpoint.checkpointer as _;"
    code += "assert not [m for m in sys.modules if m.startswith(('orbax', 'grain'))]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_state_comes_back_to_the_last_bit(
    checkpointer, make_state, make_data, abstract, assert_same
):
    state = make_state(3)
    checkpointer.save(3, state, make_data(), GRAPH)
    checkpointer.wait()
    restored = checkpointer.restore(3, abstract(state), make_data())
    assert_same(restored, state)
    assert checkpointer.graph(3) == GRAPH


def test_the_arrays_may_be_donated_as_soon_as_save_returns(
    checkpointer, make_data, abstract, assert_same
):
    @functools.partial(jax.jit, donate_argnums=0)
    def train(state):
        return jax.tree.map(lambda x: x * 2 + 1, state)

    # Large enough that writing is still under way when the next steps run.
    state = {"w": jax.random.normal(jax.random.key(0), (1024, 2048))}
    for step in (1, 2, 3):
        expected = jax.tree.map(np.array, state)
        checkpointer.save(step, state, make_data(), GRAPH)
        for _ in range(5):
            state = train(state)
        restored = checkpointer.restore(step, abstract(state), make_data())
        assert_same(restored, expected)
    # That it was put to the test: this step does donate.
    before, _ = state, train(state)
    assert before["w"].is_deleted()


def test_the_data_iterator_continues_where_it_was(
    checkpointer, make_state, make_data, abstract
):
    data = make_data()
    for _ in range(7):
        next(data)
    checkpointer.save(7, make_state(), data, GRAPH)
    expected = [next(data) for _ in range(60)]
    fresh = make_data()
    checkpointer.restore(7, abstract(make_state()), fresh)
    assert [next(fresh) for _ in range(60)] == expected


@pytest.mark.parametrize("saved_on, restored_on", [(8, 1), (1, 8), (8, 2), (2, 4)])
def test_restores_onto_another_mesh(
    checkpointer,
    make_data,
    abstract,
    assert_same,
    row_sharding,
    saved_on,
    restored_on,
):
    saved_on, restored_on = (
        min(n, jax.device_count()) for n in (saved_on, restored_on)
    )
    values = {"w": jax.random.normal(jax.random.key(0), (16, 8))}
    state = jax.device_put(values, row_sharding(saved_on))
    checkpointer.save(1, state, make_data(), GRAPH)
    target = abstract(state, row_sharding(restored_on))
    restored = checkpointer.restore(1, target, make_data())
    assert_same(restored, state)
    assert restored["w"].sharding == row_sharding(restored_on)


def test_a_second_process_finds_the_newest_step(
    checkpointer, make_state, make_data, abstract, assert_same
):
    assert checkpointer.latest() is None
    for step in (2, 4):
        checkpointer.save(step, make_state(step), make_data(), GRAPH)
    checkpointer.close()
    other = Checkpointer(directory=checkpointer.directory)
    assert other.latest() == 4
    restored = other.restore(4, abstract(make_state()), make_data())
    assert_same(restored, make_state(4))


def test_only_the_newest_steps_are_kept(tmp_path, make_state, make_data):
    checkpointer = Checkpointer(keep=2, directory=tmp_path)
    for step in (1, 2, 3, 4):
        checkpointer.save(step, make_state(step), make_data(), GRAPH)
    checkpointer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_a_save_is_due_every_so_many_steps(tmp_path):
    checkpointer = Checkpointer(every_steps=3, directory=tmp_path)
    assert [s for s in range(10) if checkpointer.wants(s)] == [3, 6, 9]


def test_saving_a_step_twice_writes_it_once(checkpointer, make_state, make_data):
    for _ in range(2):
        checkpointer.save(1, make_state(), make_data(), GRAPH)
    checkpointer.close()
    assert [path.name for path in checkpointer.directory.iterdir()] == ["1"]


def test_a_finished_run_started_again_writes_nothing(
    checkpointer, make_state, make_data, abstract, capsys
):
    checkpointer.save(1, make_state(), make_data(), GRAPH)
    checkpointer.close()
    again = Checkpointer(directory=checkpointer.directory)
    state = again.restore(1, abstract(make_state()), make_data())
    again.save(1, state, make_data(), GRAPH)
    again.close()
    assert [path.name for path in again.directory.iterdir()] == ["1"]
    assert not capsys.readouterr().err


def test_part_of_a_state_can_be_read(
    checkpointer, make_state, make_data, abstract, assert_same
):
    state = make_state(5)
    checkpointer.save(5, state, make_data(), GRAPH)
    part = checkpointer.read(5, {"params": abstract(state)["params"]})
    assert_same(part, {"params": state["params"]})


def test_going_back_sets_the_later_steps_aside(
    checkpointer, make_state, make_data, abstract, assert_same, capsys
):
    for step in (1, 2, 3):
        checkpointer.save(step, make_state(step), make_data(), GRAPH)
    state = checkpointer.restore(1, abstract(make_state()), make_data())
    checkpointer.save(2, state, make_data(), GRAPH)
    checkpointer.wait()
    assert checkpointer.latest() == 2
    assert "step 3 is moved to" in capsys.readouterr().err
    restored = checkpointer.restore(2, abstract(make_state()), make_data())
    assert_same(restored, make_state(1))


def test_another_structure_is_refused_leaf_by_leaf(
    checkpointer, make_state, make_data, abstract
):
    state = make_state()
    checkpointer.save(1, state, make_data(), GRAPH)
    wanted = abstract(state)
    del wanted["seen"]
    wanted["extra"] = jax.ShapeDtypeStruct((), jnp.int32)
    wanted["params"] = {
        "kernel": jax.ShapeDtypeStruct((16, 25), jnp.float32),
        "scale": jax.ShapeDtypeStruct((8,), jnp.float32),
    }
    with pytest.raises(UserError) as error:
        checkpointer.restore(1, wanted, make_data())
    assert (
        "is of another experiment: it lacks extra; it holds also seen; other shapes:"
        " params.kernel [16, 24] (here [16, 25]); other dtypes: params.scale bfloat16"
        " (here float32);"
    ) in str(error.value)


def test_a_step_that_is_not_there_is_named(checkpointer, make_state, make_data):
    checkpointer.save(1, make_state(), make_data(), GRAPH)
    with pytest.raises(UserError, match="has no step 2; it holds 1"):
        checkpointer.restore(2, {}, make_data())


def test_other_data_is_refused(checkpointer, make_state, make_data, abstract):
    class OtherData:
        def set_state(self, state):
            raise KeyError("epoch")

    checkpointer.save(1, make_state(), make_data(), GRAPH)
    with pytest.raises(
        UserError, match="data of this experiment cannot take the place"
    ):
        checkpointer.restore(1, abstract(make_state()), OtherData())


def test_a_later_format_is_refused(
    checkpointer, make_state, make_data, abstract, monkeypatch
):
    monkeypatch.setattr("maxfdl.checkpoint.record.FORMAT_VERSION", 3)
    checkpointer.save(1, make_state(), make_data(), GRAPH)
    checkpointer.wait()
    monkeypatch.undo()
    with pytest.raises(UserError, match="has format 3, and this maxfdl reads format 2"):
        checkpointer.restore(1, abstract(make_state()), make_data())


@pytest.mark.parametrize("bad", [jnp.nan, -jnp.inf])
@pytest.mark.parametrize("part", ["params", "optimizer"])
def test_what_is_not_finite_is_never_saved(
    checkpointer, make_state, make_data, part, bad
):
    checkpointer.save(1, make_state(), make_data(), GRAPH)
    state = make_state(2)
    leaves, tree = jax.tree.flatten(state[part])
    leaves = [leaf.at[..., -1].set(bad) if leaf.ndim else leaf for leaf in leaves]
    broken = state | {part: jax.tree.unflatten(tree, leaves)}
    message = rf"hold values that are not finite: {part}\.\S*kernel.*\(step 1 is comp"
    with pytest.raises(UserError, match=message):
        checkpointer.save(2, broken, make_data(), GRAPH)
    checkpointer.save(2, state, make_data(), GRAPH)
    checkpointer.close()
    assert checkpointer.latest() == 2


def test_weights_that_are_not_finite_are_not_read_unless_allowed(
    checkpointer, make_state, make_data, abstract, assert_same
):
    state = make_state()
    state["params"]["kernel"] = state["params"]["kernel"].at[3, 4].set(jnp.nan)
    checkpointer.save(1, state, make_data(), GRAPH, allow_non_finite=True)
    params = {"params": abstract(state)["params"]}
    with pytest.raises(UserError, match="params.kernel holds values that are not fin"):
        checkpointer.read(1, params)
    assert_same(
        checkpointer.read(1, params, allow_non_finite=True), {"params": state["params"]}
    )


def test_a_directory_that_cannot_take_a_checkpoint_is_refused_before_training(tmp_path):
    state = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
    check_room(tmp_path / "new", state)
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot be written to \S+ \(Not a directory\)"
    ):
        check_room(tmp_path / "file" / "new", state)
    huge = {"w": jax.ShapeDtypeStruct((10**9, 10**9), jnp.float32)}
    with pytest.raises(
        UserError, match=r"take 4,000,000.0 TB each, and \S+ has \S+ .B free"
    ):
        check_room(tmp_path, huge)


@pytest.mark.parametrize("field", ["every_steps", "keep"])
def test_intervals_must_be_positive(tmp_path, field):
    with pytest.raises(UserError, match=rf"{field} \(0\) must be at least 1"):
        Checkpointer(**{field: 0}, directory=tmp_path)


def test_a_directory_that_cannot_be_made_is_one_sentence(
    tmp_path, make_state, make_data
):
    (tmp_path / "file").write_text("")
    checkpointer = Checkpointer(directory=tmp_path / "file" / "checkpoints")
    with pytest.raises(
        UserError, match="step 1 cannot be written to .*make room there"
    ):
        checkpointer.save(1, make_state(), make_data(), GRAPH)
    checkpointer.close()


FULL_DISK = """
import resource, sys, json
import grain, jax, jax.numpy as jnp
from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.checkpoint.steps import check_room
from maxfdl.errors import UserError

data = iter(grain.MapDataset.range(9).to_iter_dataset())
state = {"w": jax.random.normal(jax.random.key(0), (300, 300))}
checkpointer = Checkpointer(directory=sys.argv[1])
checkpointer.save(1, state, data, "{}")
checkpointer.wait()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
try:
    checkpointer.save(2, state, data, "{}")
    checkpointer.wait()
except UserError as error:
    print(error)
checkpointer.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
again = Checkpointer(directory=sys.argv[1])
assert [path.name for path in again.directory.iterdir()] == ["1"]
restored = again.restore(1, jax.eval_shape(lambda: state), data)
assert jnp.array_equal(restored["w"], state["w"])
again.save(2, state, data, "{}")
again.close()
assert again.latest() == 2
for file in (again.directory / "2" / "state" / "d").iterdir():
    file.write_bytes(file.read_bytes()[:-100])
again.restore(2, jax.eval_shape(lambda: state), data)
"""


def test_a_full_disk_is_one_sentence_and_leaves_the_last_step_whole(tmp_path):
    """And so is a damaged step: nothing comes from Orbax, before or after it."""
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == (
        f"Checkpoint step 2 cannot be written to {tmp_path} (File too large); make room"
        " there or give another directory with --run_dir (step 1 is complete).\n"
    )
    line, *others = run.stderr.splitlines()
    assert not others, run.stderr
    assert line.startswith("checkpoint step 2 is damaged (ValueError: ")
    assert line.endswith("); trying step 1")
