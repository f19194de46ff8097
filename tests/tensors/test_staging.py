"""An export takes the place of an older one whole, or not at all."""

import fcntl
import os
import pathlib

import pytest

from maxfdl.errors import UserError
from maxfdl.tensors.staging import swapped_in

OWNED = ("config.json", "model*.bin", "index", "old_parts/*", "new_parts/*")
OLD = {"config.json": "old", "model-1.bin": "old 1", "old_parts/a": "old a"}
NEW = {"config.json": "new", "model.bin": "new whole", "new_parts/b": "new b"}
USERS = {"README.md": "mine", "notes.txt": "mine too"}


def holds(folder) -> dict[str, str]:
    found = {path for path in folder.rglob("*") if path.is_file()}
    folders = {path for path in folder.rglob("*") if path.is_dir()}
    assert folders == {path.parent for path in found} - {folder}
    return {str(path.relative_to(folder)): path.read_text() for path in found}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def export(folder, files=NEW):
    with swapped_in(folder, OWNED, last="config.json") as new:
        write(new, files)


@pytest.fixture
def folder(tmp_path):
    """An older export, with files that a user added."""
    write(tmp_path, OLD | USERS)
    return tmp_path


def test_nothing_of_the_old_export_stays_and_all_of_the_users(folder):
    export(folder)
    assert holds(folder) == NEW | USERS
    export(folder, OLD)
    assert holds(folder) == OLD | USERS


def test_a_new_folder_is_made_with_those_above_it(tmp_path):
    export(tmp_path / "a" / "b")
    assert holds(tmp_path / "a" / "b") == NEW


@pytest.mark.parametrize(
    ("error", "told_as"),
    [
        (OSError(28, "No space left on device"), UserError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (KeyError(), KeyError),
    ],
)
def test_if_writing_fails_the_folder_is_as_it_was(folder, error, told_as):
    with pytest.raises(told_as):
        with swapped_in(folder, OWNED, last="config.json") as new:
            write(new, NEW)
            raise error
    assert holds(folder) == OLD | USERS


def test_if_writing_fails_a_new_folder_is_gone(tmp_path):
    with pytest.raises(UserError, match=r"x cannot be written \(No space"):
        with swapped_in(tmp_path / "x", OWNED, last="config.json"):
            raise OSError(28, "No space")
    assert not (tmp_path / "x").exists()


def test_if_any_renaming_fails_the_folder_is_as_it_was(folder, monkeypatch):
    rename, failures = pathlib.Path.rename, 0
    for fails_at in range(len(OLD) + len(NEW)):
        calls = iter(range(100))

        def fail_once(source, target, fails_at=fails_at, calls=calls):
            if next(calls) == fails_at:
                raise KeyboardInterrupt
            return rename(source, target)

        monkeypatch.setattr(pathlib.Path, "rename", fail_once)
        with pytest.raises(KeyboardInterrupt):
            export(folder)
        assert holds(folder) == OLD | USERS
        failures += 1
    assert failures == 6
    monkeypatch.undo()
    export(folder)
    assert holds(folder) == NEW | USERS


def test_the_file_that_readers_look_for_goes_first_and_comes_last(folder, monkeypatch):
    rename, seen = pathlib.Path.rename, []

    def watch(source, target):
        seen.append((source.name, source.parent == folder))
        return rename(source, target)

    monkeypatch.setattr(pathlib.Path, "rename", watch)
    export(folder)
    assert seen[0] == ("config.json", True)
    assert seen[-1] == ("config.json", False)


def test_what_a_killed_export_left_is_taken_away(folder):
    left = folder / ".maxfdl-export" / "new"
    left.mkdir(parents=True)
    write(left, {"model.bin": "half"})
    export(folder)
    assert holds(folder) == NEW | USERS


def test_a_folder_that_another_export_writes_is_refused(folder):
    work = folder / ".maxfdl-export"
    work.mkdir()
    lock = os.open(work, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="is being written by another export"):
        export(folder)
    os.close(lock)
    export(folder)
    assert holds(folder) == NEW | USERS


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(UserError, match="x cannot be written"):
        export(tmp_path / "x")
    assert holds(tmp_path) == {"x": "mine"}
