"""Saved graphs: equal when they come back, and harmless when they are hostile."""

import json
import os
import sys

import fiddle as fdl
import pytest

from maxfdl.errors import ConfigError
from maxfdl.graph import dump_json, load_json
from tests.graph.toys import PACKAGE, TRUST, mutations, ops, root
from tests.graph.toys.experiments import small
from tests.graph.toys.nnx import layers


def refusal(text: str, trust=TRUST) -> str:
    with pytest.raises(ConfigError) as error:
        load_json(text, trust)
    assert "\n" not in str(error.value)
    return str(error.value)


def saved(cfg=None) -> dict:
    return json.loads(dump_json(cfg or small.experiment(), TRUST))


def replace_symbol(module: str, symbol: str) -> str:
    """A saved graph whose optimizer calls `module.symbol`."""

    def swap(value):
        if isinstance(value, dict):
            if value.get("name") == "sgd":
                return {**value, "module": module, "name": symbol}
            return {key: swap(item) for key, item in value.items()}
        return [swap(item) for item in value] if isinstance(value, list) else value

    return json.dumps(swap(saved()))


@pytest.mark.parametrize(
    "make",
    [
        small.experiment,
        lambda: mutations.enable_fp8(mutations.to_linen(small.experiment())),
        lambda: fdl.Config(root.Experiment, rules={"x": (1, [2.5, None], {"k": True})}),
        lambda: fdl.Config(root.Experiment, model=ops.Dot, name=root.sgd),
        lambda: fdl.Config(root.Experiment, rules={1, 2}, name=b"bytes"),
    ],
)
def test_a_graph_comes_back_equal(make):
    cfg = make()
    assert load_json(dump_json(cfg, TRUST), TRUST) == cfg


def test_sharing_and_tags_come_back():
    shared = small.linear()
    cfg = fdl.Partial(layers.Attention, q=shared, k=shared)
    out = load_json(dump_json(cfg, TRUST), TRUST)
    assert out == cfg and out.q is out.k
    assert fdl.get_tags(out.q, "dtype") == fdl.get_tags(cfg.q, "dtype") != frozenset()


def test_what_cannot_be_saved_is_named():
    with pytest.raises(ConfigError, match="this graph cannot be saved: .*lambda"):
        dump_json(fdl.Config(root.Experiment, model=lambda: 1), TRUST)
    with pytest.raises(ConfigError, match="cannot be saved: .*object.* of type"):
        dump_json(fdl.Config(root.Experiment, model=object()), TRUST)
    with pytest.raises(ConfigError, match=f"{PACKAGE}.root.Experiment is outside"):
        dump_json(fdl.Config(root.Experiment))


@pytest.mark.parametrize(
    "module, symbol",
    [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "getoutput"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "__import__"),
        ("functools", "partial"),
        ("jax.numpy", "load"),
        ("pickle", "loads"),
        ("importlib", "import_module"),
        ("maxfdl.graph.serialise", "load_json"),
        ("maxfdl.graph.resolve", "resolve"),
        ("maxfdl.commandline", "run"),
        ("maxfdl.mutations", "to_linen"),
        ("maxfdlx", "anything"),
        ("../../x", "experiment"),
        ("experiments/../x", "experiment"),
        ("", "x"),
        (f"{PACKAGE}.root", "os.system"),
        (f"{PACKAGE}.root", "sgd.__globals__"),
        (f"{PACKAGE}.root", "Experiment.__init__"),
        (f"{PACKAGE}.root", "dataclasses.replace"),
        (f"{PACKAGE}.root", "Callable"),
        (f"{PACKAGE}.root", "missing"),
        (f"{PACKAGE}.missing", "sgd"),
        ("fiddle._src.config", "Config"),
        ("fiddle._src.building", "build"),
    ],
)
def test_a_symbol_that_is_not_ours_is_refused_by_name(module, symbol):
    assert f"{module}.{symbol}" in refusal(replace_symbol(module, symbol))


def test_functions_of_parts_that_write_files_are_refused():
    text = replace_symbol("maxfdl.errors", "did_you_mean")
    assert "'maxfdl.errors.did_you_mean'" in refusal(text)


def test_a_refused_file_has_imported_nothing():
    module = f"{PACKAGE}.side_effect"
    text = replace_symbol(module, "Innocent")
    assert module in refusal(
        text, trust=[f"{PACKAGE}.{m}" for m in ("ops", "root", "nnx")]
    )
    hostile = text.replace('"Dot"', '"Dot.__class__"')
    refusal(hostile)  # the good symbols before the bad one were not imported either
    assert module not in sys.modules
    assert "MAXFDL_TOY_SIDE_EFFECT" not in os.environ


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "not JSON"),
        ("garbage", "not JSON"),
        ("{}", "it has no 'root' object."),
        ("[]", "it has no 'root' object."),
        ("3", "it has no 'root' object."),
        ("null", "it has no 'root' object."),
        ('{"root": {}}', "it has no 'objects' object."),
        ('{"root": {}, "objects": {}}', "KeyError"),
        ('{"root": {"type": "leaf", "value": 3}, "objects": {}}', "it holds int, not"),
        ('{"root": {"type": "ref", "key": "x"}, "objects": {}}', "KeyError"),
        ('{"root": {"type": "pyref"}, "objects": {}}', "has no module and name"),
        (
            '{"root": {"type": "ref", "key": "a"},'
            ' "objects": {"a": {"type": "ref", "key": "a"}}}',
            "it contains itself.",
        ),
        ('{"root": {}, "objects": {}, "root": {}}', "has the key 'root' twice"),
        ('{"root": {"a": 1, "b": 2, "a": 3}, "objects": {}}', "has the key 'a' twice"),
        *[
            (
                f'{{"root": {{"value": {number}}}, "objects": {{}}}}',
                f"{number} is not a",
            )
            for number in ("Infinity", "-Infinity", "NaN", "1e999", "-1E+400")
        ],
        ("[" * 100_000 + "]" * 100_000, "nested too deep."),
        (
            '{"objects": {}, "root": ' + '{"a":' * 500 + "1" + "}" * 501,
            "nested too deep.",
        ),
    ],
)
def test_garbage_is_refused_in_one_sentence(text, reason):
    assert reason in refusal(text)


def test_text_of_another_type_is_refused():
    assert "not JSON" in refusal(None)


def test_an_unknown_field_is_refused():
    text = dump_json(small.experiment(), TRUST).replace('"learning_rate"', '"learn"')
    assert refusal(text) == "optimizer sets 'learn', which is no field of sgd."


def test_a_node_that_calls_a_value_is_refused():
    document = json.dumps(saved())
    call = json.dumps({"type": "pyref", "module": f"{PACKAGE}.root", "name": "sgd"})
    assert call in document
    message = refusal(document.replace(call, '"sgd"'))
    assert "not a saved graph" in message or "no callable" in message


def test_an_object_of_another_type_is_refused():
    text = json.dumps(saved()).replace('"name": "dict"', '"name": "type"')
    assert "builtins.type" in refusal(text)
