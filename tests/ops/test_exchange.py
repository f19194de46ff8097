"""The way of rows to experts, against what `ragged_all_to_all` is documented to do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from maxfdl.ops.exchange import Exchange

DEVICES, EXPERTS, ROWS, WIDTH = 4, 8, 6, 3
RNG = np.random.default_rng(0)
CHOSEN = np.sort(RNG.integers(0, EXPERTS, (DEVICES, ROWS)), axis=1)
CHOSEN[0] = 3  # all of the rows of one device go to one expert
SIZES = np.stack([np.bincount(row, minlength=EXPERTS) for row in CHOSEN])
X = RNG.normal(size=(DEVICES, ROWS, WIDTH)).astype(np.float32)


@functools.cache
def exchanged(room):
    """Returns what comes in on each device, what comes back, and the slices."""

    def on_device(sizes, x):
        exchange = Exchange.of(sizes[0], ROWS, room, ("x",))
        come = exchange.send(x[0])
        back = exchange.bring_back(2 * come)
        made = come, back, exchange.sizes, exchange.sent, exchange.there, exchange.back
        return jax.tree.map(lambda a: a[None], made)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:DEVICES]), "x")
    cut = PartitionSpec("x")
    run = jax.shard_map(
        on_device, mesh=mesh, in_specs=cut, out_specs=cut, check_vma=False
    )
    return jax.device_get(jax.jit(run)(jnp.asarray(SIZES), jnp.asarray(X)))


def ragged_all_to_all(rows, slices, arriving):
    """Does what JAX says that its collective does, with loops."""
    out = np.zeros((DEVICES, arriving, rows.shape[-1]), rows.dtype)
    for sender in range(DEVICES):
        per_device = slices.send_sizes.shape[1] // DEVICES
        for i, size in enumerate(slices.send_sizes[sender]):
            receiver, place = i // per_device, slices.output_offsets[sender, i]
            number = sender * per_device + i % per_device
            assert slices.recv_sizes[receiver, number] == size
            begin = slices.input_offsets[sender, i]
            out[receiver, place : place + size] = rows[sender, begin : begin + size]
    return out


@pytest.mark.parametrize("room", [DEVICES * ROWS, 5])
def test_rows_arrive_in_the_order_of_experts_and_come_back(room):
    come, back, sizes, sent, _, _ = exchanged(room)
    own = CHOSEN // (EXPERTS // DEVICES)
    for device in range(DEVICES):
        wanted = [(CHOSEN[d, r], d, r) for d, r in np.argwhere(own == device)]
        taken = sorted(wanted)[:room]
        assert come[device, : len(taken)].tolist() == [
            X[d, r].tolist() for _, d, r in taken
        ]
        assert not np.any(come[device, len(taken) :])
        experts = [int(e) % (EXPERTS // DEVICES) for e, _, _ in taken]
        np.testing.assert_array_equal(sizes[device], np.bincount(experts, minlength=2))
        for _, d, r in wanted:
            expected = 2 * X[d, r] if (CHOSEN[d, r], d, r) in taken else 0 * X[d, r]
            np.testing.assert_array_equal(back[d, r], expected)
    assert np.all(sent <= SIZES) and (room == 5) == bool(np.any(sent < SIZES))


@pytest.mark.parametrize("room", [DEVICES * ROWS, 5])
def test_slices_are_those_that_the_collective_of_tpus_and_gpus_takes(room):
    come, back, _, _, there, ways_back = exchanged(room)
    np.testing.assert_array_equal(ragged_all_to_all(X, there, room), come)
    np.testing.assert_array_equal(ragged_all_to_all(2 * come, ways_back, ROWS), back)
