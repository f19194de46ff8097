"""Tests that damage on disk, or a kill, never gives a state that was not saved."""

import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.errors import UserError
from tests.faults.damage import delete, empty, flip_a_bit, is_whole, truncate


@pytest.fixture
def save_run(tmp_path, make_state, make_data):
    """Returns a function that saves steps 1 and 2, whose data has come as far."""

    def save(name, seed=0):
        checkpointer = Checkpointer(directory=tmp_path / name)
        data = make_data()
        for step in (1, 2):
            next(data)
            checkpointer.save(step, make_state(step + seed), data, "{}")
        checkpointer.close()
        return tmp_path / name

    return save


@pytest.fixture
def saved(save_run):
    return save_run("saved")


@pytest.fixture
def restore_newest(make_state, make_data, abstract, assert_same):
    """Returns a function that restores, checks every bit, and says which step it is."""

    def restore(directory):
        data = make_data()
        checkpointer = Checkpointer(directory=directory)
        state = checkpointer.restore(2, abstract(make_state()), data)
        step = int(state["step"])
        assert_same(state, make_state(step))
        untouched = make_data()
        assert [next(untouched) for _ in range(step + 1)][-1] == next(data)
        return step

    return restore


@pytest.mark.parametrize("damage", [delete, truncate, empty, flip_a_bit])
def test_every_file_may_be_damaged(saved, tmp_path, restore_newest, capsys, damage):
    names = [p.relative_to(saved) for p in saved.glob("2/**/*") if p.is_file()]
    fell_back = 0
    for number, name in enumerate(names):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(saved, copy)
        damage(copy / name)
        step = restore_newest(copy)
        said = capsys.readouterr().err
        assert ("checkpoint step 2 is damaged" in said) == (step == 1)
        # It may also look at files that a restore does not need.
        assert step == 2 or not is_whole(copy / "2")
        fell_back += step == 1
    assert fell_back


def test_bit_flips_all_over_the_arrays_are_found(saved, restore_newest):
    file = max(saved.glob("2/state/d/*"), key=lambda path: path.stat().st_size)
    original = file.read_bytes()
    steps = []
    for position in range(0, len(original), len(original) // 25):
        flip_a_bit(file, position)
        steps.append(restore_newest(saved))
        file.write_bytes(original)
    assert 1 in steps
    assert restore_newest(saved) == 2


def test_an_empty_step_directory_is_passed_over(saved, restore_newest, capsys):
    shutil.rmtree(saved / "2")
    (saved / "2").mkdir()
    assert restore_newest(saved) == 1
    assert capsys.readouterr().err == (
        "checkpoint step 2 is damaged (its metadata is missing); trying step 1\n"
    )


def test_junk_beside_the_steps_is_passed_over(saved, restore_newest):
    (saved / "notes.txt").write_text("mine")
    (saved / "3").write_text("no directory")
    (saved / "4.orbax-checkpoint-tmp").mkdir()
    assert Checkpointer(directory=saved).latest() == 2
    assert restore_newest(saved) == 2


def test_a_damaged_step_can_be_saved_again(
    saved, make_state, make_data, abstract, restore_newest, capsys
):
    flip_a_bit(saved / "2" / "_CHECKPOINT_METADATA")
    checkpointer = Checkpointer(directory=saved)
    checkpointer.restore(2, abstract(make_state()), make_data())
    data = make_data()
    next(data), next(data)
    checkpointer.save(2, make_state(2), data, "{}")
    checkpointer.close()
    assert f"step 2 is moved to {saved / 'set_aside' / '2'}" in capsys.readouterr().err
    assert restore_newest(saved) == 2


def test_says_what_is_wrong_with_each_when_none_is_whole(
    saved, make_state, make_data, abstract
):
    for step in (1, 2):
        empty(saved / str(step) / "_CHECKPOINT_METADATA")
    with pytest.raises(UserError, match="step 2 is damaged .*; step 1 is damaged"):
        Checkpointer(directory=saved).restore(2, abstract(make_state()), make_data())


def test_a_damaged_experiment_is_not_returned(saved):
    metadata = saved / "2" / "_CHECKPOINT_METADATA"
    flip_a_bit(metadata, position=metadata.read_bytes().index(b"places") + 1)
    checkpointer = Checkpointer(directory=saved)
    with pytest.raises(UserError, match="metadata has changed since it was written"):
        checkpointer.graph(2)
    assert checkpointer.graphs() == {1: "{}"}


def put_in_place(source, target):
    """Replaces a file or a folder by another."""
    if source.is_dir():
        shutil.rmtree(target)
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


def parts_of(step):
    """Returns every file and folder of a step, as paths inside it."""
    return [path.relative_to(step) for path in step.rglob("*")]


@pytest.mark.parametrize("other", ["an older step", "another run"])
def test_nothing_of_a_step_can_stand_in_for_that_of_another(
    saved, save_run, tmp_path, restore_newest, capsys, other
):
    source = (
        saved / "1" if other == "an older step" else save_run("other", seed=5) / "2"
    )
    fell_back = set()
    for number, part in enumerate(parts_of(saved / "2")):
        if not (source / part).exists():
            continue
        copy = tmp_path / f"copy{number}"
        shutil.copytree(saved, copy)
        put_in_place(source / part, copy / "2" / part)
        step = restore_newest(copy)
        said = capsys.readouterr().err
        assert ("checkpoint step 2 is damaged" in said) == (step == 1)
        fell_back |= {str(part)} if step == 1 else set()
    assert {"state", "_CHECKPOINT_METADATA"} <= fell_back


def test_a_renamed_step_is_not_another_step(saved, restore_newest, capsys):
    (saved / "1").rename(saved / "3")
    checkpointer = Checkpointer(directory=saved)
    assert checkpointer.latest() == 3
    assert checkpointer.graphs() == {2: "{}"}
    assert restore_newest(saved) == 2
    shutil.rmtree(saved / "2")
    with pytest.raises(
        UserError, match=r"step 3 is damaged \(it was written as step 1"
    ):
        checkpointer.read(3, {})


SAVE_FOREVER = """
import itertools, sys
import grain, jax.numpy as jnp
from maxfdl.checkpoint.checkpointer import Checkpointer

data = iter(grain.MapDataset.range(9).to_iter_dataset())
checkpointer = Checkpointer(directory=sys.argv[1])
for step in itertools.count((checkpointer.latest() or 0) + 1):
    checkpointer.save(step, {"w": jnp.full((100, 1000), step)}, data, "{}")
    print(step, flush=True)
"""


def test_a_kill_while_saving_leaves_a_whole_step(tmp_path, make_data):
    shape = {"w": jax.ShapeDtypeStruct((100, 1000), jnp.int32)}
    chance = random.Random(0)
    last = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            for _ in range(3):
                begun = int(process.stdout.readline())
            time.sleep(chance.uniform(0, 0.12))
            process.send_signal(signal.SIGKILL)
        checkpointer = Checkpointer(directory=tmp_path)
        newest = checkpointer.latest()
        assert newest >= begun - 1 > last
        last = newest
        restored = checkpointer.restore(newest, shape, make_data())
        assert (restored["w"] == newest).all()
    # What the kills left is cleared away by the next run's first save.
    checkpointer.save(newest + 1, {"w": restored["w"]}, make_data(), "{}")
    checkpointer.close()
    assert len(list(pathlib.Path(tmp_path).iterdir())) == 3


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_goes_on_as_if_nothing_had_happened(
    tmp_path,
):
    """A share of `python -m tests.faults`."""
    words = ["--kills=3", "--steps=24", "--kinds=diloco", f"--folder={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *words, "--no-damage"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout.startswith("diloco: 3 kills, ")
