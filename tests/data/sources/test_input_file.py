"""A file that is read during a whole run and must stay as it is."""

import os

import pytest

from maxfdl.data.sources.input_file import InputFile
from maxfdl.errors import UserError

CONTENT = bytes(range(256))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(CONTENT)
    return path


def digest(path, sampled_bytes, spans=None):
    file = InputFile(path, sampled_bytes)
    with file.open() as opened:
        return file.digest_of(spans or [(0, file.size)], opened)


def test_bytes_are_read_from_any_place(path):
    file = InputFile(path, 80)
    assert file.size == len(CONTENT)
    assert file.read(100, 200) == CONTENT[100:200]


@pytest.mark.parametrize("position", [0, 1, 100, len(CONTENT) - 1])
def test_a_file_that_is_sampled_whole_shows_every_edit(path, position):
    before = digest(path, len(CONTENT))
    edited = bytearray(CONTENT)
    edited[position] ^= 1
    path.write_bytes(edited)
    assert digest(path, len(CONTENT)) != before


def test_of_a_large_file_eight_blocks_are_sampled_and_no_more(path):
    """The first and the last one among them, at even distances."""
    before, noticed = digest(path, 40), []
    for position in range(len(CONTENT)):
        edited = bytearray(CONTENT)
        edited[position] ^= 1
        path.write_bytes(edited)
        if digest(path, 40) != before:
            noticed.append(position)
    starts = [position for position in noticed if position - 1 not in noticed]
    assert len(noticed) == 40
    assert starts == [(len(CONTENT) - 5) * i // 7 for i in range(8)]


@pytest.mark.parametrize("sampled_bytes", [len(CONTENT), 80])
def test_a_digest_of_spans_is_that_of_a_file_of_these_spans(
    path, tmp_path, sampled_bytes
):
    spans = [(0, 10), (10, 10), (17, 90), (100, 101), (110, len(CONTENT))]
    joined = tmp_path / "joined.txt"
    joined.write_bytes(b"".join(CONTENT[start:stop] for start, stop in spans))
    assert digest(path, sampled_bytes, spans) == digest(joined, sampled_bytes)


def test_a_file_may_be_touched_copied_or_moved_back_while_it_is_used(path, tmp_path):
    file = InputFile(path, 80)
    os.utime(path, (1, 1))
    assert file.read(0, 3) == CONTENT[:3]
    path.rename(tmp_path / "away")
    path.write_bytes(CONTENT)
    assert file.read(0, 3) == CONTENT[:3]


@pytest.mark.parametrize("content", [CONTENT + b"x", CONTENT[:-1], b"", CONTENT[::-1]])
def test_a_file_that_changes_while_it_is_used_is_refused(path, content):
    file = InputFile(path, 80)
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        file.read(0, 3)
    assert str(error.value) == (
        f"Files.files [{path}] has changed while documents were read from it; put back"
        " what it was and run the same command again, or start a new run."
    )


def test_a_file_that_vanishes_while_it_is_used_is_refused(path):
    file = InputFile(path, 80)
    path.unlink()
    with pytest.raises(UserError) as error:
        file.read(0, 3)
    assert str(error.value) == (
        f"Files.files [{path}] cannot be read (No such file or directory); see that it"
        " can, and run the same command again."
    )


def test_a_name_that_cannot_be_printed_is_escaped(tmp_path):
    path = tmp_path / "a\nb.txt"
    path.write_bytes(b"")
    assert str(InputFile(path, 80)).endswith(r"a\nb.txt'")
