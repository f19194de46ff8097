"""Files of other programs: each failure is one sentence that names file and key."""

import json
import os
import socket

import pytest

from maxfdl import outside
from maxfdl.errors import UserError
from maxfdl.outside import Choice, Either, Flag, Integer, Listing, Number, Object, Text


def written(tmp_path, data):
    path = tmp_path / "file.json"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def values(**content):
    return outside.Values("config.json", content)


def test_an_object_is_read_with_or_without_a_byte_order_mark(tmp_path):
    for mark in (b"", b"\xef\xbb\xbf"):
        found = outside.read_object(written(tmp_path, mark + b'{"a": 1}'))
        assert found.content == {"a": 1}


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is not JSON that can be read"),
        (b'{"a": 1', "is not JSON that can be read"),
        (b'{"a": "\xff"}', "must be UTF-8, but byte 7 is 0xff"),
        ('{"a": 1}'.encode("utf-16"), "must be UTF-8, but byte 0 is 0xff"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a":' * 100_000, "is nested too deeply"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "digits"),
        (b"[1, 2]", "must hold a JSON object, but it holds a list of 2"),
        (b'"' + b"x" * 100 + b'"', 'holds "' + "x" * 59 + r"\.\.\.\."),
        (b"null", "must hold a JSON object, but it holds null"),
    ],
)
def test_a_file_that_holds_no_json_object_is_refused(tmp_path, data, problem):
    with pytest.raises(UserError, match=f"file.json.*{problem}"):
        outside.read_object(written(tmp_path, data))


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # absolute ones may be too long


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "cannot be read: no such file"),
        (lambda path: path.mkdir(), "must be a file, but it is a folder"),
        (lambda path: os.mkfifo(path), "must be a file, but it is a FIFO"),
        (make_socket, "must be a file, but it is a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "but it is a device"),
        (lambda path: path.symlink_to(path), "too many levels of symbolic links"),
        (lambda path: path.symlink_to("gone"), "no such file"),
    ],
)
def test_what_is_no_file_is_refused_unopened(tmp_path, make, problem):
    path = tmp_path / "x"
    make(path)
    for read in (outside.check_file, outside.read_bytes, outside.read_object):
        with pytest.raises(UserError, match=f"x .*{problem}"):
            read(path)


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"x\\x00y' cannot be read"):
        outside.read_text(tmp_path / "x\0y")
    with pytest.raises(UserError, match="cannot be read: file name too long"):
        outside.read_text(tmp_path / ("x" * 300))


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read all
    with pytest.raises(UserError, match="cannot be read: permission denied"):
        outside.read_text(written(tmp_path, "{}"))


def test_a_file_too_large_for_what_it_is_is_not_read(tmp_path):
    path = written(tmp_path, "")
    os.truncate(path, 2**40)
    with pytest.raises(UserError, match="has 1,099,511,627,776 bytes, and may have"):
        outside.read_object(path)


FITTING = [
    (Integer(least=1), [1, 2**31 - 1], [0, -1, 1.0, 1.5, "1", True, None, 2**31, [1]]),
    (Number(above=0), [1, 0.5, 1e-9], [0, -1, "1", True, 10**400, 1e39, [], None]),
    (Number(least=0, most=1), [0, 1, 0.5], [-0.1, 1.1, float("nan"), float("inf")]),
    (Flag(), [True, False], [0, 1, "true", None]),
    (Text(), ["", "a"], [1, None, ["a"], {}]),
    (Text(least=1), ["a"], [""]),
    (Choice(("a", "b")), ["a"], ["c", 1, None, ["a"]]),
    (Listing(Integer()), [[], [1, 2]], [1, [1, "2"], {"a": 1}, [None]]),
    (Listing(Flag(), length=2), [[True, False]], [[True], [True] * 3]),
    (Object(), [{}], [[], "{}", 1]),
    (Either(Integer(), Listing(Integer())), [1, [1]], ["1", ["1"], -1]),
]


@pytest.mark.parametrize(("kind", "fit", "misfit"), FITTING)
def test_a_value_is_taken_only_if_it_is_of_its_kind(kind, fit, misfit):
    for value in fit:
        assert values(key=value).take("key", kind) == value
    for value in misfit:
        with pytest.raises(UserError, match=r"^config\.json: key \(.*\) must be "):
            values(key=value).take("key", kind)


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        ({}, Integer(1, 9), "key is missing, and must be a whole number from 1 to 9"),
        ({"key": None}, Flag(), "key (null) must be true or false"),
        ({"key": 1.5}, Number(above=0, most=1), "key (1.5) must be a finite number"),
        (
            {"key": [1, "two"]},
            Listing(Integer(0, 9)),
            'key (a list of 2, whose entry 1 is "two") must be a list, each entry a'
            " whole number from 0 to 9",
        ),
        ({"key": "\ud800"}, Integer(0, 1), r'key ("\ud800") must be a whole number'),
    ],
)
def test_the_sentence_says_key_value_and_what_must_be_there(content, kind, sentence):
    with pytest.raises(UserError) as caught:
        values(**content).take("key", kind)
    assert str(caught.value).startswith(f"config.json: {sentence}")


def test_null_counts_as_missing_where_the_default_is_none():
    assert values(key=None).take("key", Integer(), default=None) is None
    assert values().take("key", Integer(), default=7) == 7
    with pytest.raises(UserError, match="null"):
        values(key=None).take("key", Integer(), default=7)


def test_an_object_inside_says_where_it_is():
    inner = values(rope={"factor": "two"}, none=None).within("rope")
    with pytest.raises(UserError, match=r'rope\.factor \("two"\) must be'):
        inner.take("factor", Number())
    assert values(none=None).within("none").content == {}
    with pytest.raises(UserError, match=r"none \(a list of 0\) must be an object"):
        values(none=[]).within("none")


def test_the_last_of_equal_keys_counts_as_for_other_programs(tmp_path):
    data = '{"a": 1, "a": 2, "b": Infinity}'
    found = outside.read_object(written(tmp_path, data))
    assert found.take("a", Integer()) == json.loads(data)["a"] == 2
    with pytest.raises(UserError, match="b .Infinity. must be a finite number"):
        found.take("b", Number())
