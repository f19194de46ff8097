"""Documents in files of plain text."""

import pytest


@pytest.mark.parametrize("size", [4, 50, 65_536])
def test_a_byte_order_mark_is_no_text(tmp_path, documents, size):
    text = "first line\n\n" * 20 + "\ufefflast"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert "".join(documents(tmp_path / "a.txt", split_bytes=size)) == text


def test_a_file_of_nothing_but_a_byte_order_mark_is_an_empty_document(
    tmp_path, documents
):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf")
    assert documents(tmp_path / "a.txt") == [""]


def test_the_case_of_a_suffix_does_not_matter(tmp_path, documents):
    (tmp_path / "A.TXT").write_text("a")
    assert documents(tmp_path / "A.TXT") == documents(tmp_path / "*.TXT") == ["a"]


@pytest.mark.parametrize(
    ("data", "size", "where"),
    [
        (b"abc\xff", 65_536, "byte 3 is 0xff; convert the file, for example with"),
        ("ab".encode("utf-16"), 65_536, "byte 0 is 0xff; convert the file"),
        (b"abcd\n\nabc\xe4", 5, "byte 9 is 0xe4; convert the file, for example"),
    ],
)
def test_text_that_is_not_utf8_is_named(tmp_path, refusal, data, size, where):
    (tmp_path / "a.txt").write_bytes(data)
    message = refusal(tmp_path / "a.txt", split_bytes=size)
    problem = f"Files.files [{tmp_path}/a.txt] must be UTF-8, but {where}"
    assert message.startswith(problem)
    assert message.endswith("iconv, for a new run." if size == 5 else "iconv.")
