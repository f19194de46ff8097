"""What a parameter knows of itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.layers.parameter import Parameter, map_parameters, path_hash
from maxfdl.ops.initializers import FanIn, Normal

KEY = jax.random.key(0)
KERNEL = Parameter((6, 2, 4), ("embed", "heads", "head_dim"), FanIn(), "kernel", 1)


def test_a_stack_of_it_has_a_leading_dim_of_layers():
    stacked = KERNEL.stacked(5)
    assert stacked.full_shape == (5, 6, 2, 4)
    assert stacked.full_axes == ("layers", "embed", "heads", "head_dim")
    assert stacked.size == 5 * KERNEL.size == 5 * 48
    assert stacked.abstract("bfloat16") == jax.ShapeDtypeStruct(
        (5, 6, 2, 4), jnp.bfloat16
    )


def test_a_stack_holds_no_stack():
    with pytest.raises(AssertionError, match="stack"):
        KERNEL.stacked(2).stacked(2)


def test_fan_in_is_what_one_output_sums_over():
    assert KERNEL.fan_in == 6
    out = Parameter((2, 4, 6), ("heads", "head_dim", "embed"), FanIn(), "kernel", 2)
    assert out.fan_in == 8
    # Depth does not count: a layer draws as it would alone.
    assert KERNEL.stacked(5).fan_in == 6


def test_kernels_of_several_experts_do_not_count_as_inputs_of_one():
    axes = ("experts", "embed", "expert_mlp")
    experts = Parameter((8, 6, 4), axes, FanIn(), "kernel", 1, batched=1)
    assert experts.fan_in == experts.stacked(5).fan_in == 6


def test_a_layers_weights_depend_on_its_index_and_not_on_the_depth():
    three, five = KERNEL.stacked(3).draw(KEY), KERNEL.stacked(5).draw(KEY)
    np.testing.assert_array_equal(three, five[:3])
    one = KERNEL.draw(jax.random.fold_in(KEY, 1))
    np.testing.assert_array_equal(one, three[1])
    assert np.any(three[0] != three[1])


def test_axes_must_name_every_dim():
    with pytest.raises(AssertionError):
        Parameter((2, 3), ("embed",), Normal(), "kernel", 1)


def test_map_parameters_gives_paths_and_keeps_the_tree():
    tree = {"a": {"kernel": KERNEL}, "b": KERNEL.stacked(2)}
    named = map_parameters(lambda path, each: (path, each.repeats), tree)
    assert named == {"a": {"kernel": ("a/kernel", None)}, "b": ("b", 2)}


def test_path_hashes_never_change():
    """The weights of every seed follow from them."""
    assert path_hash("decoder/stacks_0/layers_0/mlp/up/kernel") == 2167090877
    assert path_hash("") == 0
