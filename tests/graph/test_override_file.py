"""Overrides from a ConfigDict in a file."""

import pytest

from maxfdl.errors import ConfigError
from maxfdl.graph import overrides_from_file, resolve
from tests.graph.toys import PACKAGE, TRUST

HEADER = "from ml_collections import config_dict\n"


@pytest.fixture
def write(tmp_path):
    def write_file(body: str, name: str = "overrides.py") -> str:
        path = tmp_path / name
        path.write_text(HEADER + body)
        return str(path)

    return write_file


def returning(expression: str) -> str:
    return f"def get_config():\n    return {expression}\n"


def test_nested_and_dotted_keys_are_paths(write):
    path = write(
        returning(
            "config_dict.ConfigDict({'model': {'remat': 'full', 'layers[0]':"
            " {'num_heads': 8}}, 'optimizer.momentum': None, 'steps': 5},"
            " allow_dotted_keys=True)"
        )
    )
    assert dict(overrides_from_file(path)) == {
        "model.remat": "full",
        "model.layers[0].num_heads": 8,
        "optimizer.momentum": None,
        "steps": 5,
    }


def test_index_keys_join_without_a_dot(write):
    path = write(
        returning("config_dict.ConfigDict({'a': {'[1]': {'b': 2}}})"),
    )
    assert overrides_from_file(path) == [("a[1].b", 2)]


def test_the_values_are_typed_like_any_other(write):
    path = write(returning("config_dict.ConfigDict({'steps': 'many'})"))
    with pytest.raises(ConfigError, match="steps=many: expected int"):
        resolve(f"{PACKAGE}.experiments.small", overrides_from_file(path), TRUST)


@pytest.mark.parametrize(
    "body, complaint",
    [
        ("x = 1\n", "it must define get_config()."),
        ("get_config = 3\n", "it must define get_config()."),
        ("def get_config(size): ...\n", "without arguments, but needs size."),
        (returning("{'steps': 1}"), "get_config() returned dict; it must return an"),
        (returning("None"), "get_config() returned NoneType; it must return an"),
        (returning("1 / 0"), "it failed with ZeroDivisionError: division by zero."),
        ("raise SystemExit(3)\n", "it failed with SystemExit: 3."),
        ("import no_such_module_here\n", "it failed with ModuleNotFoundError: No mod"),
        ("def broken(:\n", "line 2: "),
        (returning("config_dict.ConfigDict({'a b': 1})"), "'a b' is not a graph path."),
        (returning("config_dict.ConfigDict({3: 1})"), "3 is not a graph path."),
        (
            returning("config_dict.ConfigDict({'a': config_dict.placeholder(int)})"),
            "",
        ),
        (
            returning(
                "config_dict.ConfigDict({'a': config_dict.required_placeholder(int)})"
            ),
            "a is a placeholder without a value.",
        ),
        (
            returning(
                "config_dict.ConfigDict({'a': {'b': 1}, 'a.b': 2},"
                " allow_dotted_keys=True)"
            ),
            "a.b is set twice; keep one of them.",
        ),
    ],
)
def test_every_mistake_is_one_plain_sentence(write, body, complaint):
    path = write(body)
    if not complaint:  # an optional placeholder is None
        assert overrides_from_file(path) == [("a", None)]
        return
    with pytest.raises(ConfigError) as error:
        overrides_from_file(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and complaint in message
    assert "\n" not in message


def test_a_file_that_is_not_there_or_not_python_is_named(tmp_path, write):
    with pytest.raises(ConfigError, match="there is no such file of overrides"):
        overrides_from_file(str(tmp_path / "missing.py"))
    with pytest.raises(ConfigError, match="there is no such file of overrides"):
        overrides_from_file(str(tmp_path))
    with pytest.raises(ConfigError, match="must be Python"):
        overrides_from_file(write("", name="overrides.json"))
