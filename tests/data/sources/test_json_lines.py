"""Documents in lines of JSON."""

import json

import pytest

LAST = "; correct that line, or leave it blank."


@pytest.fixture
def write(tmp_path):
    def write(*lines, name="a.jsonl"):
        path = tmp_path / name
        encoded = [x if isinstance(x, bytes) else x.encode() for x in lines]
        path.write_bytes(b"\n".join(encoded) + b"\n")
        return path

    return write


def test_a_line_is_a_document_and_a_blank_line_an_empty_one(write, documents):
    path = write('{"text": "one\\nline"}', " ", "", '{"id": 3, "text": "zwölf"}\r')
    assert documents(path) == ["one\nline", "", "", "zwölf"]


@pytest.mark.parametrize("first", ['{"text": "a"}', ""])
def test_a_byte_order_mark_is_no_text(write, documents, first):
    second = b'\xef\xbb\xbf{"text": "\\ufeffb"}'
    path = write(b"\xef\xbb\xbf" + first.encode(), second)
    assert documents(path) == ["a" if first else "", "\ufeffb"]


@pytest.mark.parametrize("name", ["a.JSONL", "A.JsonL"])
def test_the_case_of_a_suffix_does_not_matter(write, documents, name):
    assert documents(write('{"text": "a"}', name=name)) == ["a"]


@pytest.mark.parametrize(
    "other", ["9" * 5_000, "-" + "9" * 5_000, "1." + "9" * 5_000, "NaN", '"' * 2]
)
def test_what_stands_under_other_keys_does_not_matter(write, documents, other):
    line = f'{{"id": {other}, "text": "a", "text": "b"}}'
    assert documents(write(line)) == ["b"]


def test_a_line_of_10_megabytes_is_a_document(write, documents):
    text = "wörd " * 2_000_000
    (found,) = documents(write(json.dumps({"text": text})))
    assert found == text


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": null}', "must have a string under 'text', but has null there"),
        ('{"text": 5}', "must have a string under 'text', but has 5 there"),
        ('{"text": ["a"]}', "must have a string under 'text', but has a list of 1"),
        ('{"text": {}}', "must have a string under 'text', but has an object there"),
        ("null", "must be a JSON object, but is null"),
        ('"text"', 'must be a JSON object, but is "text"'),
        ("[" * 100_000, "must be a JSON object, but is nested too deeply"),
        ('{"text":' * 100_000, "must be a JSON object, but is nested too deeply"),
        ('{"text": "a"', "must be a JSON object in UTF-8, but: Expecting ',' delim"),
        ('{"text": "a"}{"text": "b"}', "must be a JSON object in UTF-8, but: Extra d"),
        (b'{"text": "\xff"}', "must be a JSON object in UTF-8, but: 'utf-8' codec"),
        (b"\x00", "must be a JSON object in UTF-8, but: Expecting value"),
        ('{"text": "a"}'.encode("utf-16"), "must be a JSON object in UTF-8, but: "),
    ],
)
def test_a_bad_line_is_named_with_what_it_holds(write, refusal, line, problem):
    path = write('{"text": "a"}', line)
    message = refusal(path)
    assert message.startswith(f"Files.files [{path}] line 2 {problem}")
    assert message.endswith(LAST)
    assert len(message) < 600


def test_a_line_without_the_field_lists_some_of_what_it_has(write, refusal):
    path = write('{"txt": "a", "i\\nd": 3}')
    assert refusal(path) == (
        f"Files.files [{path}] line 1 must have a string under 'text', but has"
        r" [txt, 'i\nd']; correct that line, or leave it blank, or set Files.field. Did"
        " you mean 'txt'?"
    )
    many = write(json.dumps({f"key {i}" * 99: i for i in range(10_000)}))
    assert len(refusal(many)) < 600
