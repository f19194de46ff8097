"""What does not fit into memory is refused before any of it is allocated."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxfdl.errors import UserError
from maxfdl.mutations import to_linen
from maxfdl.sharding import room
from maxfdl.sharding.room import check_room, host_bytes
from tests import tiny

GIB = 2**30


def arrays(spec, shape=(8, GIB // 8)):
    """A tree with one abstract array of 4 GiB over eight devices."""
    place = NamedSharding(Mesh(jax.devices(), "x"), PartitionSpec(*spec))
    return {"w": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)}


@pytest.mark.parametrize(("spec", "gibibytes"), [(("x",), 4), ((), 32)])
def test_devices_of_a_cpu_share_the_memory_of_the_host(spec, gibibytes, monkeypatch):
    monkeypatch.setattr(room, "host_bytes", lambda: gibibytes * GIB)
    check_room(arrays(spec), "a run needs")
    monkeypatch.setattr(room, "host_bytes", lambda: gibibytes * GIB - 1)
    with pytest.raises(UserError) as error:
        check_room(arrays(spec), "a run needs")
    assert str(error.value).startswith(
        f"a run needs {gibibytes}.0 GiB of memory on this host for arrays of"
        f" 1,073,741,824 numbers, and there are {gibibytes}.0 GiB; take a smaller model"
    )


def test_a_device_with_memory_of_its_own_says_how_much(monkeypatch):
    class Device:
        platform, id = "gpu", 0

        def memory_stats(self):
            return {"bytes_limit": GIB // 2 - 1}

        def __repr__(self):
            return "CudaDevice(id=0)"

    monkeypatch.setattr(room, "_local_devices", lambda tree: [Device()])
    with pytest.raises(
        UserError, match=r"needs 512.0 MiB of memory on CudaDevice.id=0"
    ):
        check_room(arrays(("x",)), "a run needs")
    check_room(arrays(("x",), (8, GIB // 16)), "a run needs")


def test_the_memory_of_this_host_is_known():
    assert GIB // 4 < host_bytes() < 2**50


def test_a_container_may_have_less(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(room, "_LIMITS_OF_CONTAINERS", (str(limit),))
    whole = host_bytes()
    for text, expected in (("max\n", whole), ("1000000\n", 1_000_000)):
        limit.write_text(text)
        assert host_bytes() == expected


@pytest.mark.parametrize("mutations", [(), (to_linen,)], ids=["nnx", "linen"])
@pytest.mark.parametrize("field", ["features", "vocab_size", "mlp"])
def test_a_run_is_refused_by_what_its_state_takes(field, mutations, monkeypatch):
    monkeypatch.setattr(room, "host_bytes", lambda: GIB)
    tiny.program(tiny.experiment(*mutations)).check_memory()
    huge = tiny.program(tiny.experiment(*mutations, **{field: 10**8}))
    with pytest.raises(UserError, match="a run needs .* GiB of memory on this host"):
        huge.check_memory()


@pytest.mark.parametrize("mutations", [(), (to_linen,)], ids=["nnx", "linen"])
@pytest.mark.parametrize(
    ("sizes", "dims"),
    [
        (dict(features=10**12), r"vocab \(64\) x embed \(1000000000000\)"),
        (dict(vocab_size=2**31), r"vocab \(2147483648\) x embed \(16\)"),
        (dict(mlp=0), r"embed \(16\) x mlp \(0\)"),
        (dict(features=2**31 - 1, num_heads=2**30), "numbers"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_when_it_is_declared(
    sizes, dims, mutations
):
    with pytest.raises(UserError, match=rf"A parameter with the dims .*{dims}"):
        tiny.program(tiny.experiment(*mutations, **sizes))
