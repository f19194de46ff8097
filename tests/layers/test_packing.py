"""Values of parameters, taken from one way of storing them to another."""

import jax
import numpy as np

from maxfdl.layers.on_disk import OnDisk
from maxfdl.layers.packing import stored_as
from maxfdl.layers.parameter import Parameter, packed, wholes
from maxfdl.ops.codec import Codec
from maxfdl.ops.initializers import Constant, FanIn

KERNEL = Parameter((6, 2, 4), ("embed", "heads", "head_dim"), FanIn(), "kernel", 1)
BIAS = Parameter((2, 4), ("heads", "head_dim"), Constant(1.0), "bias")


def declared(codec=None):
    """A layer in a stack of two, inside a dict."""
    kernel = {"kernel": KERNEL}
    if codec is not None:
        codes, scales = packed(KERNEL, codec).values()
        kernel = {"kernel": codes, "kernel_scale": scales}
    layer = {name: each.stacked(2) for name, each in {**kernel, "bias": BIAS}.items()}
    return {"layer": layer}


INT8, INT4 = declared(Codec("int8")), declared(Codec("int4", inputs=4))


def values(of):
    return jax.tree.map(lambda each: each.draw(jax.random.key(0)), of)


def test_a_packed_kernel_counts_as_the_one_that_it_stands_for():
    assert wholes(INT4) == wholes(INT8) == declared()


def test_parts_lie_as_the_dims_that_they_stand_for():
    layer = INT4["layer"]
    assert layer["kernel"].full_shape == (2, 3, 8)
    assert layer["kernel"].full_axes == ("layers", "embed", "heads")
    assert layer["kernel_scale"].full_shape == (2, 2, 8)
    assert layer["kernel_scale"].full_axes == ("layers", "groups", "heads")


def test_kernels_are_packed_unpacked_and_packed_in_another_way():
    plain = declared()
    as_int4 = stored_as(INT4, plain, values(plain))
    jax.tree.map(np.testing.assert_array_equal, as_int4, values(INT4))
    kept = stored_as(INT4, INT4, values(INT4))
    jax.tree.map(np.testing.assert_array_equal, kept, values(INT4))
    unpacked = stored_as(plain, INT4, values(INT4))
    packing = INT4["layer"]["kernel"].packing
    codes, scales = as_int4["layer"]["kernel"], as_int4["layer"]["kernel_scale"]
    kernel = packing.kernel(codes, scales).unpacked()
    np.testing.assert_allclose(unpacked["layer"]["kernel"], kernel, rtol=1e-6)
    as_int8 = stored_as(INT8, INT4, values(INT4))
    expected = stored_as(INT8, plain, {"layer": {**unpacked["layer"]}})
    jax.tree.map(np.testing.assert_array_equal, as_int8, expected)


def test_a_kernel_on_disk_is_packed_layer_by_layer():
    plain = declared()
    whole = values(plain)
    kernel, read = whole["layer"]["kernel"], []

    def read_part(i):
        read.append(i)
        return np.asarray(kernel[i])

    def all_of_it():
        raise AssertionError("all layers are read at once")

    given = values(plain)
    given["layer"]["kernel"] = OnDisk(kernel, all_of_it, read_part)
    given["layer"]["bias"] = OnDisk(kernel, lambda: np.asarray(whole["layer"]["bias"]))
    found = stored_as(INT4, plain, given)
    assert read == [0, 1]
    jax.tree.map(np.testing.assert_array_equal, found, stored_as(INT4, plain, whole))


def test_values_are_taken_out_as_they_are_packed():
    given = values(declared())
    stored_as(INT8, declared(), given)
    assert given == {}
