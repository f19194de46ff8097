"""The shape of the device mesh, and what it refuses."""

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from maxfdl.errors import UserError
from maxfdl.sharding.mesh import MeshShape, axis_names, parts_across


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (MeshShape(), (1, 8, 1)),
        (MeshShape(data=8, fsdp=1), (8, 1, 1)),
        (MeshShape(data=-1, fsdp=2), (4, 2, 1)),
        (MeshShape(fsdp=4, tensor=2), (1, 4, 2)),
        (MeshShape(data=2, fsdp=2, tensor=2), (2, 2, 2)),
    ],
)
def test_fills_eight_devices(shape, sizes):
    assert tuple(shape.sizes(8).values()) == sizes
    mesh = shape.build(jax.devices()[:8])
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == sizes


def test_axes_of_one_device_are_left_out_but_for_three():
    """A program for data, fsdp and tensor is the same whatever else there could be."""
    mesh = MeshShape(fsdp=1, stage=2, expert=-1).build(jax.devices()[:8])
    axes = {"data": 1, "fsdp": 1, "stage": 2, "tensor": 1, "expert": 4}
    assert dict(mesh.shape) == axes
    assert mesh.axis_names == tuple(axes)


def test_one_device_is_a_mesh_too():
    assert MeshShape().build(jax.devices()[:1]).size == 1


def test_the_tensor_axis_is_innermost():
    """Devices that exchange most are neighbours."""
    mesh = MeshShape(fsdp=4, tensor=2).build(jax.devices()[:8])
    ids = np.vectorize(lambda device: device.id)(mesh.devices)
    np.testing.assert_array_equal(ids[0], [[0, 1], [2, 3], [4, 5], [6, 7]])


@pytest.mark.parametrize(
    "shape", [MeshShape(fsdp=3), MeshShape(fsdp=16), MeshShape(fsdp=-1, tensor=3)]
)
def test_refuses_a_number_of_devices_that_it_does_not_fill(shape):
    with pytest.raises(UserError) as error:
        shape.sizes(8)
    axes = f"{{'data': 1, 'fsdp': {shape.fsdp}, 'tensor': {shape.tensor}}}"
    assert str(error.value) == (
        f"mesh {axes} does not fit 8 devices: the axes must multiply to that number;"
        " set one of them to -1 to take what is left."
    )


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ({"data": 0}, "({0}) must be positive, or -1 for the rest."),
        ({"expert": -2}, "({0}) must be positive, or -1 for the rest."),
        ({"data": -1, "context": -1}, "({0}) may have one -1."),
    ],
)
def test_refuses_sizes_that_make_no_sense(sizes, problem):
    node = MeshShape(**(dict.fromkeys(axis_names(), 1) | sizes))
    expected = f"MeshShape axes {problem.format(sizes)}"
    assert list(MeshShape.check_config(node)) == [expected]


def test_accepts_sizes_that_do():
    assert not list(MeshShape.check_config(MeshShape(data=2, fsdp=-1, tensor=2)))


def test_an_axis_across_slices_must_exist():
    (problem,) = MeshShape.check_config(MeshShape(across=("dcn",)))
    assert problem.startswith(
        "MeshShape across names the axis 'dcn', which must be one"
    )


@pytest.mark.parametrize(
    ("sizes", "slices", "across", "parts"),
    [
        ({"data": 4, "fsdp": 8}, 4, (), (4, 1)),
        ({"data": 2, "fsdp": 8}, 4, (), (1, 4)),
        ({"data": 4, "fsdp": 8}, 4, ("fsdp",), (1, 4)),
        ({"data": 2, "fsdp": 8}, 4, ("data", "fsdp"), (2, 2)),
    ],
)
def test_axes_go_across_slices_in_the_order_that_they_are_named(
    sizes, slices, across, parts
):
    assert tuple(parts_across(sizes, slices, across).values()) == parts


def test_axes_that_cannot_go_across_the_slices_are_refused():
    with pytest.raises(UserError) as error:
        parts_across({"data": 3, "fsdp": 8}, 4, ("data",))
    assert str(error.value) == (
        "mesh axes of the sizes {'data': 3, 'fsdp': 8} must have data of a multiple of"
        " the number of slices (4); give it such a size, or name others in across."
    )


@pytest.mark.slow
def test_two_axes_may_share_one_of_the_machine(monkeypatch):
    """2 x 8 chips of a square of 4 x 4."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
    mesh = MeshShape(data=2, fsdp=8).build(chips.devices)
    assert mesh.devices.shape == (2, 8, 1)
    # Each replica has half of the square, and not every other chip of it.
    for half in mesh.devices:
        x, y = (len({chip.coords[i] for chip in half.flat}) for i in (0, 1))
        assert x * y == 8
