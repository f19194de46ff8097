"""The contract that holds the two families of layers together."""

import ast
import inspect
import pathlib
import typing

import fiddle as fdl
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

import maxfdl.graph  # noqa: F401 (publishes the constructors of NNX classes)
from maxfdl.layers import linen, nnx
from maxfdl.layers.layer import Layer
from tests.layers.families import (
    CASES,
    FAMILIES,
    assert_same_bits,
    packed_tokens,
    value_and_gradients,
)

CLASSES = sorted(nnx.__all__)
KEY = jax.random.key(7)
# What a family adds to hand a layer its place, and nothing else.
OWN_FIELDS = {"rngs", "parent", "name"}


def files(family):
    """Returns the syntax tree of each file of a family but its foundation."""
    folder = pathlib.Path(FAMILIES[family].__file__).parent
    names = {path.name: ast.parse(path.read_text()) for path in folder.glob("*.py")}
    return {k: v for k, v in names.items() if k not in ("module.py", "__init__.py")}


def classes(tree):
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def fields(cls):
    """Returns default and annotation of each field, without the family's name."""
    function = cls.__init__ if issubclass(cls, flax_nnx.Module) else cls
    hints = typing.get_type_hints(function, include_extras=True)
    return {
        name: (p.default, str(hints[name]).replace(".layers.linen.", ".layers.nnx."))
        for name, p in inspect.signature(cls).parameters.items()
        if name not in OWN_FIELDS
    }


def test_every_class_has_a_case_here():
    assert sorted(CASES) == sorted(nnx.__all__) == sorted(linen.__all__)


def test_the_same_files_hold_the_same_classes():
    ours, theirs = files("nnx"), files("linen")
    assert {name: [*classes(tree)] for name, tree in ours.items()} == {
        name: [*classes(tree)] for name, tree in theirs.items()
    }
    exported = [cls for tree in ours.values() for cls in classes(tree)]
    assert sorted(exported) == CLASSES


@pytest.mark.parametrize("file", sorted(files("nnx")))
def test_files_and_classes_say_the_same_of_themselves(file):
    ours, theirs = files("nnx")[file], files("linen")[file]
    assert ast.get_docstring(ours) == ast.get_docstring(theirs)
    for name, cls in classes(ours).items():
        twin = classes(theirs)[name]
        assert ast.get_docstring(cls) == ast.get_docstring(twin)
        assert documented(cls) == documented(twin)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_says_what_the_layer_says_that_both_families_make_of(name):
    ours, theirs = getattr(nnx, name), getattr(linen, name)
    (plain,) = (each for each in ours.__bases__ if each in theirs.__bases__)
    assert issubclass(plain, Layer) and plain.__module__.count(".") == 2
    assert ours.__doc__ == theirs.__doc__ == plain.__doc__ is not None
    # The forward pass is that of the layer, in both.
    assert ours.__call__ is theirs.__call__ is plain.__call__


def documented(cls):
    """Returns the docstring of each method that callers see."""
    made = ("__init__", "setup")
    methods = [node for node in cls.body if isinstance(node, ast.FunctionDef)]
    return {m.name: ast.get_docstring(m) for m in methods if m.name not in made}


@pytest.mark.parametrize("name", CLASSES)
def test_fields_defaults_and_annotations_are_the_same_in_the_same_order(name):
    ours, theirs = fields(getattr(nnx, name)), fields(getattr(linen, name))
    assert list(ours.items()) == list(theirs.items())


@pytest.mark.parametrize("name", CLASSES)
def test_rules_between_fields_are_the_same(name):
    check = [getattr(cls, "check_config", None) for cls in (nnx, linen)]
    assert check[0] is check[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CLASSES)
def test_a_misspelt_field_is_refused(family, name):
    with pytest.raises(TypeError, match="featurs"):
        fdl.Config(getattr(FAMILIES[family], name), featurs=3)


@pytest.mark.parametrize("name", CLASSES)
def test_parameters_and_their_declarations_are_the_same(name):
    ours, theirs = (CASES[name].model(family).parameters() for family in FAMILIES)
    assert ours == theirs
    declared = jax.tree.leaves(ours)
    variables = jax.eval_shape(CASES[name].model("nnx").init, KEY)
    shapes = [leaf.shape for leaf in jax.tree.leaves(variables["params"])]
    assert shapes == [parameter.full_shape for parameter in declared]


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_key_gives_the_same_weights(name):
    ours, theirs = (CASES[name].model(family).init(KEY) for family in FAMILIES)
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("name", CLASSES)
def test_outputs_and_gradients_are_the_same_to_the_last_bit(name):
    models = [CASES[name].model(family) for family in FAMILIES]
    variables = models[0].init(KEY)
    ours, theirs = (
        value_and_gradients(model, variables, **packed_tokens()) for model in models
    )
    assert_same_bits(ours, theirs)
    (hidden, _, _), gradients = ours
    assert np.all(np.isfinite(hidden)) and np.any(hidden)
    assert set(map(jnp.shape, jax.tree.leaves(gradients))) == {
        parameter.full_shape for parameter in jax.tree.leaves(models[0].parameters())
    }


def test_dropout_is_the_same_and_follows_from_the_key():
    models = [CASES["Dropout"].model(family) for family in FAMILIES]
    variables = models[0].init(KEY)

    def run(model, key):
        return value_and_gradients(model, variables, **packed_tokens(), key=key)

    assert_same_bits(run(models[0], KEY), run(models[1], KEY))
    (dropped, _, _), _ = run(models[0], KEY)
    (otherwise, _, _), _ = run(models[0], jax.random.key(8))
    (whole, _, _), _ = run(models[0], None)
    assert np.any(dropped != otherwise)
    assert np.any(dropped == 0) and not np.any(whole == 0)
