"""The expression language, taken apart."""

import pytest

from maxfdl.errors import ConfigError
from maxfdl.graph.expression import Call, SavedGraph, parse, parse_call, split


def test_a_name_alone():
    assert parse("experiments.llama2_nnx") == (Call("experiments.llama2_nnx"), [])


def test_a_name_with_arguments_and_mutations():
    base, steps = parse('experiments.x(size="7b", depth=2)+to_linen + mesh(4)')
    assert base == Call("experiments.x", kwargs=(("size", '"7b"'), ("depth", "2")))
    assert steps == [Call("to_linen"), Call("mesh", args=("4",))]


def test_plus_comma_and_brackets_inside_literals_belong_to_them():
    base, steps = parse("""a.b(x="1+2,)", y=[1, (2, 3)], z={'k': "]"})+f(q='+')""")
    assert base.kwargs == (
        ("x", '"1+2,)"'),
        ("y", "[1, (2, 3)]"),
        ("z", "{'k': \"]\"}"),
    )
    assert steps == [Call("f", kwargs=(("q", "'+'"),))]


def test_an_escaped_quote_does_not_end_a_string():
    assert split(r'"a\"+b"+c', "+") == [r'"a\"+b"', "c"]


def test_plain_words_need_no_quotes():
    assert parse_call("x(size=7b, policy=full)").kwargs == (
        ("size", "7b"),
        ("policy", "full"),
    )


def test_a_saved_graph_is_a_path_even_with_plus_in_it(tmp_path):
    path = tmp_path / "a+b(1).json"
    path.write_text("{}")
    assert parse(f"{path}+to_linen") == (SavedGraph(str(path)), [Call("to_linen")])


@pytest.mark.parametrize(
    "path",
    [
        "notes/*.txt",
        "**/*.jsonl",
        "~/my-notes/a_b.txt",
        "/data/x?.txt",
        "./a",
        "ä/ß.txt",
    ],
)
def test_paths_and_globs_need_no_quotes(path):
    assert parse_call(f"f({path}, field=body)").args == (path,)
    assert parse_call(f"f(files={path})").kwargs == (("files", path),)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "'' is not a name, nor name(argument=literal), nor a saved .json graph."),
        ("../../x", "'../../x' is not a name, nor"),
        ("a b", "'a b' is not a name, nor"),
        ("a..b", "'a..b' is not a name, nor"),
        ("missing.json", "there is no file 'missing.json'."),
        ("f(x=os.system('ls'))", "a Python literal or a plain word, got x=os.system"),
        ("f(x=[g()])", "got x=[g()]."),
        ("f(x=1 + 1)", "got x=1 + 1."),
        ("f(*[1])", "got *[1]."),
        ("f(**{'a': 1})", "got **{'a': 1}."),
        ("f(x=)", "got x=."),
        ("f(,)", "got nothing."),
        ("f(x=1, x=2)", "sets x twice."),
        ("f(x=1, 2)", "has 2 after a keyword argument."),
        ("f(x='a)", "has an unbalanced quote."),
        ("f(x=(1)", "has an unbalanced bracket."),
        ("f(x=1)(y=2)", "got x=1)(y=2."),
        ("lambda: 1", "'lambda: 1' is not a name, nor"),
        ("f+", "'' is not a name, nor"),
    ],
)
def test_anything_else_is_one_sentence(text, message):
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert message in str(error.value) and "\n" not in str(error.value)
