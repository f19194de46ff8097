"""Values set by path, typed by the field."""

import functools

import pytest

from maxfdl.errors import ConfigError
from maxfdl.graph import copy, set_tag, set_value, settable_paths
from maxfdl.graph.paths import parse
from tests.graph.toys.experiments import small


def follow(value, step):
    if isinstance(step, tuple):
        return value[step[0]]
    return value[step] if isinstance(value, dict) else getattr(value, step)


@pytest.mark.parametrize(
    "path, text, expected",
    [
        ("steps", "5", 5),
        ("name", "1", "1"),
        ("name", "'quoted'", "quoted"),
        ("name", "two words", "two words"),
        ("name", "true", "true"),
        ("model.remat", "full", "full"),
        ("model.remat", '"full"', "full"),
        ("model.betas", "(0.5, 0.6)", (0.5, 0.6)),
        ("model.betas", "[0.5, 0.6]", (0.5, 0.6)),
        ("model.betas[1]", "0.5", (0.9, 0.5)),
        ("model.layers[0].window", "None", None),
        ("model.layers[0].scale", "2", 2),
        ("model.layers[0].scale", "1e-3", 1e-3),
        ("model.layers[0].q.use_bias", "true", True),
        ("model.layers[-1].num_heads", "8", 8),
        ("rules['embed']", "tensor", "tensor"),
        ("rules.vocab", "tensor", "tensor"),
        ("optimizer.momentum", "0.9", 0.9),
        ("steps", 5, 5),
    ],
)
def test_text_is_read_by_the_type_of_the_field(path, text, expected):
    out = set_value(small.experiment(), path, text)
    value = functools.reduce(follow, parse(path.replace("betas[1]", "betas")), out)
    assert value == expected and type(value) is type(expected)


def test_the_input_is_not_touched():
    cfg = small.experiment()
    before = copy(cfg)
    set_value(cfg, "model.layers[0].num_heads", "8")
    set_value(cfg, "rules['embed']", "x")
    assert cfg == before


@pytest.mark.parametrize(
    "path, text, message",
    [
        (
            "model.layrs[0].num_heads",
            "8",
            "no such path 'model.layrs[0].num_heads': model (Decoder) has no field"
            " 'layrs'. Did you mean 'model.layers[0].num_heads'?",
        ),
        (
            "model.remat",
            "ful",
            "model.remat=ful: expected Literal['none', 'full', 'dots'], got str 'ful'."
            " Did you mean 'full'?",
        ),
        ("steps", "two", "steps=two: expected int, got str 'two'."),
        ("steps", "true", "steps=true: expected int, got bool True."),
        ("steps", 1.5, "steps=1.5: expected int, got float 1.5."),
        *[
            (
                "model.layers[0].scale",
                text,
                f"model.layers[0].scale={text}: a number must be finite.",
            )
            for text in ("inf", "-Infinity", "NaN", "1e999", float("nan"))
        ],
        (
            "model.betas",
            "(0.9, 1e999)",
            "model.betas[1]=inf: a number must be finite.",
        ),
        (
            "model.betas",
            "{'a': 1}",
            "model.betas={'a': 1}: expected tuple[float, float], got dict {'a': 1}.",
        ),
        (
            "optimizer.nesterov",
            "true",
            "no such path 'optimizer.nesterov': optimizer (sgd) has no field"
            " 'nesterov'. The mutation use_diloco(nesterov=...) or"
            " use_sgd(nesterov=...) sets it.",
        ),
        (
            "model.layers[0].features",
            "8",
            "model.layers[0].features is passed by the parent; set the owning field"
            " instead",
        ),
        (
            "stps",
            "1",
            "no such path 'stps': <root> (Experiment) has no field 'stps'. Did you mean"
            " 'steps'?",
        ),
        (
            "xyzzy",
            "1",
            "no such path 'xyzzy': <root> (Experiment) has no field 'xyzzy'. It has"
            " model, optimizer, rules, name, steps, seed.",
        ),
        (
            "remat",
            "full",
            "no such path 'remat': <root> (Experiment) has no field 'remat'. Did you"
            " mean 'model.remat'?",
        ),
        (
            "model.layers[3].num_heads",
            "1",
            "no such path 'model.layers[3].num_heads': model.layers has 2 items,"
            " counted from 0.",
        ),
        (
            "model.layers.num_heads",
            "1",
            "no such path 'model.layers.num_heads': model.layers is a list, which wants"
            " an index.",
        ),
        (
            "steps.more",
            "1",
            "no such path 'steps.more': steps is 10, which has no fields.",
        ),
        (
            "rules['embd']",
            "1",
            "no such path \"rules['embd']\": rules has the keys 'embed', 'vocab'.",
        ),
        (
            "model[0]",
            "1",
            "no such path 'model[0]': model is a node, whose fields have names.",
        ),
        (
            "a b",
            "1",
            "'a b' is not a path; write names and indices, such as"
            " model.stacks[0].repeats.",
        ),
        (
            "model.layers[0].q",
            "3",
            "model.layers[0].q=3: expected Callable[..., Linear], got int 3. Only"
            " Python can put another node there: see README.md, 'Write an experiment'.",
        ),
    ],
)
def test_mistakes_are_one_sentence(path, text, message):
    with pytest.raises(ConfigError) as error:
        set_value(small.experiment(), path, text)
    assert str(error.value) == message


def test_a_required_field_that_is_not_set_has_nothing_below():
    cfg = small.experiment()
    del cfg.model
    with pytest.raises(ConfigError, match="model is not set"):
        set_value(cfg, "model.remat", "full")


def test_settable_paths_hold_unset_fields_but_none_of_the_parent():
    found = settable_paths(small.experiment(depth=1))
    assert "model.remat" in found and "model.layers[0].q.dot" in found
    assert not any(path.endswith(("features_", ".rngs", ".parent")) for path in found)
    assert "model.layers[0].features" not in found


def test_a_tag_sets_all_its_fields():
    out = set_tag(small.experiment(), "ComputeDType", "bfloat16")
    assert {layer.q.dtype for layer in out.model.layers} == {"bfloat16"}
    full = set_tag(small.experiment(), "maxfdl.graph.tags.ComputeDType", "bfloat16")
    assert full == out


def test_an_unknown_tag_is_named():
    with pytest.raises(ConfigError) as error:
        set_tag(small.experiment(), "CompteDType", "bfloat16")
    assert str(error.value) == (
        "no tag 'CompteDType' in this graph. Did you mean 'ComputeDType'?"
    )


def test_the_value_of_a_tag_is_typed():
    with pytest.raises(ConfigError, match=r"layers\[0\].q.dtype=None: expected str"):
        set_tag(small.experiment(), "ComputeDType", None)
