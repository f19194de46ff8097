"""Tests of how the leaves of two states are compared."""

import jax
import jax.numpy as jnp
import pytest

from maxfdl.checkpoint.structure import differences, structure_of
from maxfdl.errors import UserError


def test_names_path_shape_and_dtype():
    state = {"b": [jnp.ones(2, jnp.bfloat16)], "a": {"c": jnp.int32(1)}}
    assert structure_of(state) == {"a.c": ((), "int32"), "b.0": ((2,), "bfloat16")}


def test_abstract_and_concrete_states_have_the_same_structure():
    state = {"a": jnp.ones((2, 3))}
    assert structure_of(jax.eval_shape(lambda: state)) == structure_of(state)


def test_equal_structures_differ_in_nothing():
    structure = structure_of({"a": jnp.ones(2)})
    assert differences(structure, structure) == ""


def test_lists_missing_extra_misshapen_and_recast_leaves():
    saved = structure_of(
        {"old": jnp.ones(1), "w": jnp.ones((2, 3)), "h": jnp.ones(2, jnp.bfloat16)}
    )
    wanted = structure_of({"new": jnp.ones(1), "w": jnp.ones((2, 4)), "h": jnp.ones(2)})
    assert differences(saved, wanted) == (
        "it lacks new; it holds also old; other shapes: w [2, 3] (here [2, 4]);"
        " other dtypes: h bfloat16 (here float32)"
    )


def test_long_lists_are_cut():
    wanted = structure_of({f"l{i}": jnp.ones(1) for i in range(9)})
    assert differences({}, wanted) == "it lacks l0, l1, l2, l3, l4 and 4 more"


@pytest.mark.parametrize("key", ["../../evil", "..", "a/b", "", "x" * 65, "a b"])
def test_refuses_keys_that_are_no_names(key):
    with pytest.raises(UserError, match="must be 1 to 64 letters"):
        structure_of({key: jnp.ones(1)})


def test_refuses_two_leaves_of_one_name():
    with pytest.raises(UserError, match="two leaves called 'a.b'"):
        structure_of({"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}})
