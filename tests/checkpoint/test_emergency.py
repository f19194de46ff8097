"""Emergency checkpoints: of one process here, of two in `test_emergency_of_two`."""

import re
import shutil

import fiddle as fdl
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxfdl.checkpoint.checkpointer import Checkpointer, NoData
from maxfdl.checkpoint.courier import send
from maxfdl.checkpoint.emergency import Emergency, LocalSteps, _Exchange, _rounds
from maxfdl.checkpoint.pieces import (
    Piece,
    PieceFile,
    assembled,
    from_bytes,
    held_here,
    pieces_of,
    to_bytes,
    write_pieces,
)
from maxfdl.checkpoint.record import DamagedCheckpointError
from maxfdl.errors import UserError
from maxfdl.launch import _newest
from maxfdl.run.directory import RunDirectory
from maxfdl.run.saves import Progress, Saves


@pytest.fixture
def state(row_sharding):
    """Arrays that are cut, replicated, of one element, and of narrow types."""
    rows, all_ = row_sharding(4), row_sharding(4).update(spec=PartitionSpec())
    return {
        "cut": jax.device_put(jnp.arange(32.0).reshape(8, 4), rows),
        "same": jax.device_put(jnp.arange(6, dtype=jnp.bfloat16), all_),
        "step": jax.device_put(jnp.int32(7), all_),
        "codes": jax.device_put(jnp.arange(8).astype(jnp.float8_e4m3fn), rows),
    }


def test_pieces_are_what_devices_hold_each_once(state, abstract, assert_same):
    names = pieces_of(abstract(state), 0)
    assert names == list(held_here(state)) and len(set(names)) == len(names) == 10
    assert not pieces_of(state, 1)
    pieces = held_here(state)
    again = from_bytes(to_bytes(pieces, names), names)
    assert_same(assembled(abstract(state), again), state)


def test_pieces_know_their_place_on_a_mesh_of_two_axes(abstract, assert_same):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    place = NamedSharding(mesh, PartitionSpec("b", "a"))
    state = {"w": jax.device_put(jnp.arange(24.0).reshape(4, 6), place)}
    assert_same(assembled(abstract(state), held_here(state)), state)


def test_a_flipped_bit_of_a_file_is_noticed_where_it_is(state, tmp_path):
    file, pieces = tmp_path / "own.pieces", held_here(state)
    write_pieces(file, {"step": 7}, pieces)
    whole = file.read_bytes()
    first, *others = pieces
    at = len(whole) - sum(piece.num_bytes for piece in pieces)
    for place, damages in ((at, {first}), (len(whole) - 1, {others[-1]})):
        file.write_bytes(_flipped(whole, place))
        damaged = {piece for piece in pieces if not _is_whole(PieceFile(file), piece)}
        assert damaged == damages
    for broken in (_flipped(whole, 20), whole[: at // 2], b"", b"[]"):
        file.write_bytes(broken)
        with pytest.raises(DamagedCheckpointError):
            PieceFile(file)


def _flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _is_whole(file, piece):
    try:
        file.read(piece)
    except DamagedCheckpointError:
        return False
    return True


def test_who_lacks_a_share_gets_it_from_who_has_it():
    assert [*_rounds({0: 1}, [[], [0]])] == [[(1, 0)]]
    assert [*_rounds({0: 1, 2: 1}, [[], [0, 2], []])] == [[(1, 0)], [(1, 2)]]
    assert [*_rounds({0: 1, 1: 1}, [[1], [0]])] == [[(1, 0), (0, 1)]]
    with pytest.raises(DamagedCheckpointError, match="what process 2 held is left on"):
        next(_rounds({0: 1, 2: 1}, [[], [0], []]))


def test_a_peer_keeps_what_it_does_not_hold_itself(monkeypatch):
    own = [Piece("w", ((i, i + 1),), "float32") for i in range(4)]
    same = Piece("scale", ((0, 8),), "float32")
    held = {process: [own[process], same] for process in range(4)}
    monkeypatch.setattr("maxfdl.checkpoint.emergency.pieces_of", lambda _, p: held[p])
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    exchange = _Exchange(None, held[1])
    assert (exchange.given, exchange.taken) == ([own[1]], [own[3]])
    held = dict.fromkeys(held, [same])  # replicas need no copy
    exchange = _Exchange(None, held[1])
    assert not exchange.given and not exchange.taken


@pytest.mark.parametrize("size", [0, 1, 40_000, 100_001])
def test_bytes_arrive_whole_in_chunks_of_any_number(size, monkeypatch):
    monkeypatch.setattr("maxfdl.checkpoint.courier._CHUNK", 4096)
    data = np.random.default_rng(size).bytes(size)
    assert send(data, [(0, 0)]) == data


@pytest.fixture
def start(tmp_path):
    """Returns a function that makes the saves of a run, as a start of it does."""

    def saves(every_steps=4, emergency_every=1, only_emergency=False):
        directory = RunDirectory(tmp_path / "run")
        folder = str(tmp_path / "disk")
        options = Emergency(folder=folder, every_steps=emergency_every)
        checkpointer = Checkpointer(every_steps, directory=directory.checkpoints)
        if only_emergency:
            checkpointer = None
        local = LocalSteps(options, directory.path)
        return Saves(checkpointer, "{}", local, directory)

    return saves


@pytest.fixture
def files(tmp_path):
    """Returns a function that lists the files of emergency checkpoints, of a step."""
    return lambda step="*": [*tmp_path.glob(f"disk/*/process_*/{step}/*")]


def train(saves, state, steps):
    """Saves as the loop does, of a run that is killed after the last of `steps`."""
    for step in steps:
        now = state | {"step": jnp.full_like(state["step"], step)}
        saves.save_locally(Progress(step, now, NoData()))
        if saves.due(step):
            saves.save(Progress(step, now, NoData()))
    saves.wait()
    saves._local.wait()


def test_a_run_goes_on_from_the_newest_step_of_any_kind(start, files, state, abstract):
    train(start(), state, range(1, 8))
    again = start()
    assert (again.latest, again.newest()) == (4, 7)
    restored = again.restore(7, abstract(state), NoData())
    assert int(restored["step"]) == 7
    again.save(Progress(7, restored, NoData()))  # no checkpoint has this step yet
    again.close()
    assert start().latest == start().newest() == 7
    assert not files()  # the checkpoint has it all


def test_a_damaged_step_is_passed_over(start, files, state, abstract, capsys):
    train(start(), state, range(1, 8))
    for file in files(7):
        file.write_bytes(_flipped(file.read_bytes(), -3))
    assert int(start().restore(7, abstract(state), NoData())["step"]) == 6
    for file in files(6):
        file.unlink()
    assert int(start().restore(7, abstract(state), NoData())["step"]) == 4
    errors = capsys.readouterr().err
    assert "step has changed since it was written" in errors
    assert "step 7 is passed over: what process 0 held is left on no disk" in errors


def test_a_run_without_any_whole_step_begins_anew(
    start, files, state, abstract, capsys
):
    train(start(), state, range(1, 3))
    for file in files():
        file.write_bytes(b"")
    assert start().restore(2, abstract(state), NoData()) is None
    assert "step 1 is passed over: no disk holds its record" in capsys.readouterr().err


def test_another_mesh_goes_on_from_the_checkpoint(start, state, abstract, row_sharding):
    train(start(), state, range(1, 7))
    fewer = abstract({"cut": state["cut"]}, row_sharding(2))
    wanted = abstract(state) | fewer
    assert int(start().restore(6, wanted, NoData())["step"]) == 4


def test_a_run_that_went_back_leaves_no_future_behind(start, state, abstract):
    train(start(), state, (5, 6, 3))
    assert start().newest() == 3
    saves = start(every_steps=2)
    train(saves, state, range(1, 8))
    assert int(saves.restore_before(4, abstract(state))["step"]) == 2
    assert start().newest() == start().latest == 2
    train(start(), state, (6,))
    train(start(emergency_every=9), state, (4,))  # a checkpoint alone is newer
    assert start().newest() == 4


def test_a_state_of_another_experiment_is_refused(start, state, abstract):
    train(start(), state, (1, 2))
    del state["same"]
    with pytest.raises(UserError, match="is of another experiment: .*same"):
        start().restore(2, abstract(state), NoData())


def test_a_run_that_saves_nothing_else_keeps_its_emergency_checkpoints(start, state):
    saves = start(only_emergency=True)
    train(saves, state, (1, 2))
    saves.close()
    assert "from the newest emergency checkpoint" in saves.how_to_continue("SIGTERM")
    assert start(only_emergency=True).newest() == 2


def test_steps_of_a_run_that_had_this_directory_before_are_not_seen(
    start, state, tmp_path
):
    train(start(), state, (1, 2))
    (tmp_path / "run" / "emergency.id").unlink()
    assert start().newest() is None


def test_a_copy_of_a_run_does_not_touch_the_steps_of_the_run(start, state, tmp_path):
    train(start(), state, (1, 2))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    options = Emergency(folder=str(tmp_path / "disk"))
    assert LocalSteps(options, tmp_path / "copy").steps() == []
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert LocalSteps(options, tmp_path / "link").steps() == [1, 2]


def test_a_run_has_results_once_an_emergency_checkpoint_is_made(start, state, tmp_path):
    saves = start()
    assert not RunDirectory(tmp_path / "run").has_results()
    train(saves, state, (1,))
    assert RunDirectory(tmp_path / "run").has_results()


def test_a_schedule_counts_the_steps_of_emergency_checkpoints(start, state, tmp_path):
    train(start(), state, range(1, 7))
    emergency = fdl.Config(Emergency, folder=str(tmp_path / "disk"))
    directory = RunDirectory(tmp_path / "run")
    assert (_newest(directory, None), _newest(directory, emergency)) == (4, 6)


def test_steps_of_a_process_that_had_another_number_go_in_time(start, files, state):
    train(start(), state, (2, 3, 9))
    (here,) = {file.parents[1] for file in files()}
    here.rename(here.with_name("process_5"))
    saves = start(every_steps=100)
    assert saves.newest() == 9
    train(saves, state, (4, 5, 6))
    assert {file.parent.name for file in files()} == {"5", "6"}
    train(saves, state, (7,))
    here.rename(here.with_name("process_5"))
    start().close()
    assert not files()


def test_a_disk_that_is_full_does_not_stop_a_run(start, state, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maxfdl.checkpoint.emergency.write_pieces", full)
    train(start(), state, (1,))
    assert "step 1 cannot be written to " in capsys.readouterr().err
    assert start().newest() is None


def test_what_a_save_takes_is_said_and_must_find_room(
    start, state, abstract, monkeypatch, capsys
):
    start().check_room(abstract(state))
    said = capsys.readouterr().out
    assert "every 1 steps in " in said and "0.2 kB for each process, of which" in said
    full = shutil.disk_usage(".")._replace(free=100)
    monkeypatch.setattr("maxfdl.checkpoint.emergency.shutil.disk_usage", lambda _: full)
    with pytest.raises(UserError, match="3 checkpoints of 0.2 kB are to be there at"):
        start()._local.check_room(abstract(state))
    train(start(), state, (1, 2))  # which make room, when the run is started again
    start()._local.check_room(abstract(state))


def test_states_that_are_not_finite_are_passed_over(start, state):
    state["cut"] = state["cut"] * jnp.nan
    train(start(), state, (1,))
    assert start().newest() is None


def test_a_folder_by_a_variable_that_is_not_set_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DISK", str(tmp_path / "disk"))
    LocalSteps(Emergency(folder="$DISK/here"), tmp_path / "run")
    assert [*tmp_path.glob("disk/*")] == [tmp_path / "disk" / "here"]
    with pytest.raises(UserError, match="names a variable that is not set"):
        LocalSteps(Emergency(folder="$NO_SUCH_DISK/here"), tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"every_steps": 0}, "every_steps .0. must be at least 1"),
        ({"keep": 1}, "keep .1. must be at least 2: while a step is written"),
        ({"folder": "gs://bucket/a"}, "must be on a disk of each machine"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, words):
    options = Emergency(**({"folder": "/dev/shm/x"} | fields))
    (problem,) = Emergency.check_config(options)
    assert re.search(words, problem)
