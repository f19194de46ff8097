"""Files that paths and globs mean: each once, in a fixed order, and nothing else."""

import errno
import glob
import os
import pathlib
import socket

import pytest

from maxfdl.data.sources import paths
from maxfdl.data.sources.paths import find_files
from maxfdl.errors import UserError


def found(*names):
    """Returns the names of the files found, relative to the current folder."""
    return [str(path) for path in find_files(names, (".txt", ".jsonl"))]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Makes a tree of folders the current folder."""
    for name in ("a.txt", "b.txt", "sub/c.txt", "sub/deep/a.txt", ".hidden/h.txt"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.chdir(tmp_path / "tree")
    return tmp_path / "tree"


@pytest.mark.parametrize(
    "pattern",
    [
        "*.txt",
        "**",
        "**/*",
        "**/*.txt",
        "sub/**/*.txt",
        "**/deep/*",
        "*/*.txt",
        "[ab].txt",
        "?.txt",
        "./sub/../*.txt",
        ".*/*.txt",
        "**/**/a.txt",
        "s*/**/a.*",
    ],
)
def test_without_links_a_glob_means_what_it_does_for_python(pattern):
    expected = {p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)}
    assert set(found(pattern)) == {str(pathlib.Path(path)) for path in expected}
    absolute = found(os.path.abspath(pattern) if ".." not in pattern else pattern)
    assert len(absolute) == len(expected)


def test_names_keep_their_order_and_the_files_of_a_glob_are_sorted():
    assert found("b.txt", "*.txt", "**/*.txt") == [
        "b.txt",
        "a.txt",
        "sub/c.txt",
        "sub/deep/a.txt",
    ]


def test_links_that_form_loops_are_walked_once(here):
    """Each of these loops alone would be entered 40 times, all of them 3**40 times."""
    for name in ("loop1", "sub/loop2", "sub/deep/loop3"):
        (here / name).symlink_to(here)
    (here / "itself").symlink_to("itself")
    names = [pathlib.Path(name).name for name in found("**/*.txt")]
    assert sorted(names) == ["a.txt", "a.txt", "b.txt", "c.txt"]
    assert found("**/*.txt") == found("**/*.txt")


def test_folders_behind_links_are_found_under_every_pattern(here, tmp_path):
    (tmp_path / "elsewhere" / "x").mkdir(parents=True)
    (tmp_path / "elsewhere" / "x" / "e.txt").write_text("e")
    (here / "link").symlink_to(tmp_path / "elsewhere")
    for pattern in ("**/e.txt", "**/x/*.txt", "link/**/*.txt", "link/x/e.txt"):
        assert found(pattern) == ["link/x/e.txt"]


def test_many_ways_to_one_folder_are_one_way(here):
    """30 levels, each of which is reached in two ways, make 2**30 paths."""
    folder = here / "levels"
    for _ in range(30):
        (folder / "one").mkdir(parents=True)
        (folder / "two").symlink_to("one")
        folder = folder / "one"
    (folder / "end.txt").write_text("")
    assert len(found("levels/**/*.txt")) == 1


def test_a_file_counts_once_however_it_is_reached(here):
    (here / "soft.txt").symlink_to("a.txt")
    os.link("a.txt", "hard.txt")
    (here / "folder").symlink_to("sub")
    everything = found("soft.txt", "a.txt", "./a.txt", str(here / "a.txt"), "*.txt")
    assert everything == ["soft.txt", "b.txt"]
    assert found("folder/c.txt", "sub/c.txt", "**/c.txt") == ["folder/c.txt"]


def test_equal_texts_in_two_files_count_twice(here):
    (here / "copy.txt").write_text((here / "a.txt").read_text())
    assert found("a.txt", "copy.txt") == ["a.txt", "copy.txt"]


def test_files_without_numbers_are_told_apart_by_their_paths(here, monkeypatch):
    def without_number(path):
        values = list(stat(path))
        values[1] = 0
        return os.stat_result(values)

    stat = os.stat
    (here / "soft.txt").symlink_to("a.txt")
    monkeypatch.setattr(paths.os, "stat", without_number)
    assert found("soft.txt", "a.txt", "b.txt") == ["soft.txt", "b.txt"]


def test_a_name_with_wildcards_in_it_is_a_name_first(here):
    (here / "x[1].txt").write_text("")
    assert found("x[1].txt") == ["x[1].txt"]


def test_the_home_directory_is_found(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert found("~/a.txt") == [str(here / "a.txt")]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none.txt", "Files.files [none.txt] matches no file; correct the path."),
        ("*.none", "Files.files [*.none] matches no file; correct the path."),
        ("a.txt/*", "Files.files [a.txt/*] matches no file; correct the path."),
        ("", "Files.files [.] must be a file, but is a folder; name the files in it,"),
        ("sub", "Files.files [sub] must be a file, but is a folder; name the files"),
        ("~nobody_here/a", "Files.files [~nobody_here/a] cannot be found: "),
        ("x\0y", r"Files.files ['x\x00y'] matches no file; correct the path."),
        ("x\ny", r"Files.files ['x\ny'] matches no file; correct the path."),
        ("x" * 300, f"Files.files [{'x' * 300}] matches no file; correct the path."),
    ],
)
def test_what_leads_to_no_file_is_refused(name, sentence):
    with pytest.raises(UserError) as error:
        found(name)
    assert str(error.value).startswith(sentence)


def test_a_folder_among_the_files_of_a_glob_is_refused_if_named_like_one(here):
    assert found("*")[-1] == "b.txt"
    (here / "parts.jsonl").mkdir()
    with pytest.raises(UserError) as error:
        found("*.jsonl")
    assert str(error.value) == (
        "Files.files [parts.jsonl] must be a file, but is a folder; name the files in"
        " it, such as parts.jsonl/**/*.jsonl."
    )


def test_a_folder_that_cannot_be_listed_is_refused(monkeypatch):
    def scandir(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(paths.os, "scandir", scandir)  # root may list all
    with pytest.raises(UserError) as error:
        found("sub/*.txt")
    assert str(error.value) == (
        "Files.files: folder [sub] cannot be listed (Permission denied); give this user"
        " access to it."
    )


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (os.mkfifo, "x.txt must be a file, but it is a FIFO."),
        (make_socket, "x.txt must be a file, but it is a socket."),
        (lambda path: path.symlink_to("/dev/zero"), "but it is a device."),
        (lambda path: path.symlink_to("gone"), "x.txt cannot be read: no such file"),
        (lambda path: path.symlink_to("x.txt"), "x.txt cannot be read: too many"),
    ],
)
@pytest.mark.parametrize("name", ["x.txt", "*.txt", "**/x.txt"])
def test_what_is_no_file_is_refused_unopened(here, refusal, make, problem, name):
    make(here / "x.txt")
    assert problem in refusal(name)
