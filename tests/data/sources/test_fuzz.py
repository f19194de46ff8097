"""Damaged files: every document is right, or named in one sentence; nothing else.

Other seeds: `FUZZ_SEED=7 pytest tests/data/sources/test_fuzz.py`.
"""

import io
import json
import os
import random
import time

import pyarrow
import pyarrow.parquet
import pytest

from maxfdl.data import Files
from maxfdl.data.bad_documents import BadDocumentError
from maxfdl.errors import UserError

TEXTS = [f"dökument {i} " + "word " * (i % 7) for i in range(60)]
SECONDS = 10
NINES = "9" * 5_000  # as a number, more than Python's int takes


@pytest.fixture
def chance():
    return random.Random(int(os.environ.get("FUZZ_SEED", 0)))


def flip(data, chance):
    for _ in range(chance.choice([1, 1, 1, 5])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def overwrite(data, chance):
    start = chance.randrange(len(data))
    data[start : start + 8] = chance.randbytes(len(data[start : start + 8]))


def delete(data, chance):
    start = chance.randrange(len(data))
    del data[start : start + chance.choice([1, 1, 10, 1000])]


def insert(data, chance):
    start = chance.randrange(len(data))
    data[start:start] = chance.choice([b"\0", b"\xff", b"\n", b"[" * 99_999, b'{"a":'])


def truncate(data, chance):
    del data[chance.randrange(len(data)) :]


def damaged(content, chance):
    data = bytearray(content)
    chance.choice([flip, flip, flip, overwrite, delete, insert, truncate])(data, chance)
    return bytes(data)


def read(path):
    """Returns the documents, None for a bad one; or None for a file that is refused.

    Checks that what is wrong is said in one short sentence.
    """
    began = time.monotonic()
    try:
        files = Files(files=(str(path),))
        found = [_document(files, i) for i in range(len(files))]
    except UserError as error:
        _check_sentence(error, path)
        found = None
    assert time.monotonic() - began < SECONDS
    return found


def _document(files, index):
    try:
        return files[index]
    except BadDocumentError as error:
        _check_sentence(error, files.files[0])
        return None


def _check_sentence(error, path):
    message = str(error)
    assert message.startswith(f"Files.files [{path}] ")
    assert message.isprintable()
    assert len(message) < 800


def as_json_lines(chance):
    """Returns lines as good as they come, some with values of other kinds."""
    odd = [None, 5, -0.0, True, [], {}, [[]], float("nan"), "\ud800", "\0", NINES]
    lines = []
    for text in TEXTS:
        line = {"id": len(lines), "text": text, "more": [1.5, {"a": None}]}
        match chance.randrange(20):
            case 0:
                del line["text"]
            case 1:
                line["text"] = chance.choice(odd)
            case 2:
                line["more"] = chance.choice(odd)
        written = json.dumps(line, ensure_ascii=chance.random() < 0.5)
        lines.append(written.replace(f'"{NINES}"', NINES))
    return "\n".join(lines).encode("utf-8", errors="surrogatepass")


def what_python_reads(data):
    """Returns the documents of JSON lines, None for a bad one."""
    *lines, rest = data.split(b"\n")
    return [_text_of(line) for line in ([*lines, rest] if rest else lines)]


def _text_of(line):
    if not line.strip():
        return ""
    try:
        text = json.loads(line.decode("utf-8-sig"), parse_int=float)["text"]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return text if isinstance(text, str) else None


def test_damaged_json_lines(tmp_path, chance):
    path = tmp_path / "a.jsonl"
    for _ in range(300):
        data = damaged(as_json_lines(chance), chance)
        path.write_bytes(data)
        assert read(path) == (what_python_reads(data) if data else None)


def test_damaged_plain_text(tmp_path, chance):
    path, content = tmp_path / "a.txt", "\n\n".join(TEXTS).encode()
    for _ in range(300):
        data = damaged(content, chance)
        path.write_bytes(data)
        found = read(path)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            assert None in found
        else:
            assert "".join(found or []) == text


def parquet_files():
    """Yields files of every encoding and compression, and with checksums or without."""
    plain = {"use_dictionary": False}
    for compression in ("none", "snappy", "zstd", "gzip"):
        for settings in ({}, plain, plain | {"data_page_version": "2.0"}):
            yield {"compression": compression, **settings}
    for encoding in ("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"):
        yield plain | {"column_encoding": {"text": encoding, "id": "PLAIN"}}


@pytest.mark.parametrize("has_checksums", [True, False])
def test_damaged_parquet(tmp_path, chance, has_checksums):
    """Without checksums, damage may give another text, which nobody could notice."""
    table = pyarrow.table({"id": list(range(len(TEXTS))), "text": TEXTS})
    path, contents = tmp_path / "a.parquet", []
    for settings in parquet_files():
        file = io.BytesIO()
        pyarrow.parquet.write_table(
            table,
            file,
            row_group_size=20,
            write_page_checksum=has_checksums,
            **settings,
        )
        contents.append(file.getvalue())
    for _ in range(400):
        path.write_bytes(damaged(chance.choice(contents), chance))
        found = read(path)
        if found is not None:
            assert len(found) == len(TEXTS)
            if has_checksums:
                pairs = zip(found, TEXTS, strict=True)
                assert all(text in (None, right) for text, right in pairs)
