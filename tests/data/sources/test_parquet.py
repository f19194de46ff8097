"""Documents in columns of Parquet files."""

import pyarrow
import pyarrow.parquet
import pytest

TEXTS = ["one", "", "zwölf", "one", "dö\nt"]


@pytest.fixture
def write(tmp_path):
    def write(column, name="a.parquet", field="text", **settings):
        table = pyarrow.table({"id": list(range(len(column))), field: column})
        pyarrow.parquet.write_table(table, tmp_path / name, **settings)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.binary(),
        pyarrow.large_binary(),
        pyarrow.binary_view(),
        pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.large_string()),
        pyarrow.dictionary(pyarrow.int64(), pyarrow.binary()),
    ],
)
@pytest.mark.parametrize("with_schema", [True, False])
def test_every_kind_of_column_of_text_is_read(write, documents, kind, with_schema):
    column = pyarrow.array(TEXTS).cast(kind)
    path = write(column, row_group_size=2, store_schema=with_schema)
    assert documents(path) == TEXTS


@pytest.mark.parametrize("name", ["a.PARQUET", "a.Parquet"])
def test_the_case_of_a_suffix_does_not_matter(write, documents, name):
    assert documents(write(TEXTS, name)) == TEXTS


@pytest.mark.parametrize("field", ["body.text", "te'xt", "тext"])
def test_any_column_may_be_the_field(write, documents, field):
    assert documents(write(TEXTS, field=field), field=field) == TEXTS


def test_a_field_of_a_struct_is_no_column(write, refusal):
    path = write(pyarrow.array([{"text": "a"}]), field="body")
    assert "but has [id: int64, body: struct<text: string>]" in refusal(path)
    assert "must have one column" in refusal(path, field="body.text")


@pytest.mark.parametrize("column", [[1, 2], [["a"], ["b"]], [None, None], [True, True]])
def test_a_column_of_something_else_is_refused(write, refusal, column):
    path = write(column)
    assert f"[{path}] must have one column of strings 'text', but has" in refusal(path)


def test_two_columns_of_one_name_are_refused(tmp_path, refusal):
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "must have one column of strings 'text'" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.binary()])
def test_null_is_a_bad_document_as_it_is_in_json(write, refusal, kind):
    path = write(pyarrow.array(["a", "b", None], kind), row_group_size=2)
    assert refusal(path) == (
        f"Files.files [{path}] row 3 must have a string in 'text', but has null; write"
        " the file anew, for a new run."
    )


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_binary()])
def test_a_row_that_is_not_utf8_is_named(write, refusal, kind):
    data = pyarrow.array([b"a", b"\xff", b"c"])
    column = data.cast(kind, safe=False) if kind == pyarrow.string() else data
    message = refusal(write(column))
    assert "row 2 cannot be read: 'utf-8' codec can't decode byte 0xff" in message


def test_an_empty_file_has_no_documents(write, refusal, documents, tmp_path):
    write(TEXTS, "b.parquet")
    write(pyarrow.array([], pyarrow.string()))
    assert documents(tmp_path / "*.parquet") == TEXTS
    assert "must hold at least one document" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize("compression", ["snappy", "none", "zstd"])
def test_a_page_with_another_checksum_makes_the_rows_of_its_group_bad(
    write, refusal, compression
):
    texts = [f"document {i}" for i in range(6)]
    path = write(
        texts,
        row_group_size=2,
        compression=compression,
        use_dictionary=False,
        write_page_checksum=True,
    )
    data = path.read_bytes()
    assert data.count(b"document 2") >= 1
    path.write_bytes(data.replace(b"document 2", b"dokument 2"))
    message = refusal(path)
    assert f"[{path}] row 3 cannot be read: " in message
    assert len(message) < 700


def test_a_file_whose_footer_was_cut_off_is_refused(write, refusal):
    path = write(TEXTS)
    path.write_bytes(path.read_bytes()[:-10])
    message = refusal(path)
    assert message.startswith(f"Files.files [{path}] must be a Parquet file, but: ")
    assert message.endswith("; write it anew.")
