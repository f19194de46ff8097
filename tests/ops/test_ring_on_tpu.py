"""Ring attention on TPUs that are not there, by compiling for four of them."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.mask import Causal, Mask, Places
from maxfdl.report import hlo
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding

pytest.importorskip("libtpu")
pytestmark = pytest.mark.slow

ROWS, TOKENS, HEADS, KV_HEADS, WIDTH, CHIPS = 1, 16_384, 4, 2, 128, 4


@functools.cache
def compiled():
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    mesh = MeshShape(fsdp=1, context=CHIPS).build(topology.devices)
    sharding = Sharding(mesh, AxisRules())
    attend = functools.partial(DotProductAttention("tokamax"), sharding=sharding)

    def loss(q, k, v, positions, segment_ids):
        mask = Mask.within(Causal(), Places(positions, segment_ids))
        return jnp.sum(attend(q, k, v, mask).astype(jnp.float32) ** 2)

    def array(dtype, *shape):
        place = sharding.named(("batch", "sequence", "heads", "head_dim")[: len(shape)])
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    q = array(jnp.bfloat16, ROWS, TOKENS, HEADS, WIDTH)
    k = array(jnp.bfloat16, ROWS, TOKENS, KV_HEADS, WIDTH)
    ids = array(jnp.int32, ROWS, TOKENS)
    step = jax.jit(jax.grad(loss, (0, 1, 2)))
    return step.lower(q, k, k, ids, ids).compile()


@pytest.fixture
def program(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    # Else a second process of pytest-xdist finds the library taken.
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return compiled()


def test_only_permutes_go_over_the_wire_and_no_more_than_is_needed(program):
    """Going forward three shards of keys, back two, for the first is still there, and
    three of their gradients in float32, which come home in bfloat16; for the zigzag
    order half of each array."""
    shard, query, keys, segment = TOKENS // CHIPS, 1024, 1024, 4  # bytes of a token
    forward = 3 * (keys + segment) + (2 * query + keys + segment) / 2
    backward = 2 * (keys + segment) + 3 * 2 * keys + keys + (2 * query + keys) / 2
    read = hlo.read(program.as_text())
    assert {each.kind for each in read.collectives} == {"collective-permute"}
    assert read.wire == shard * (forward + backward)


def test_keys_travel_while_a_device_computes(program):
    """In a loop, all exchanges start before the kernels and are awaited after them."""
    letters = {"collective-permute-start": "s", "custom-call": "k"}
    letters["collective-permute-done"] = "d"
    operation = re.compile(rf" ({'|'.join(letters)})\(")
    computations = program.as_text().split("\n\n")
    loops = [text for text in computations if "tpu_custom_call" in text]
    orders = [
        "".join(letters[name] for name in operation.findall(text))
        for text in loops
        if "ENTRY" not in text
    ]
    assert len(orders) == 2  # forward and backward
    for order in orders:
        assert re.fullmatch("s+k+d+", order)


def test_memory_grows_with_the_tokens_of_a_shard(program):
    """Scores of 2048 queries and keys, half a shard of each, would be 64 MiB."""
    assert program.memory_analysis().temp_size_in_bytes < 16 * 2**20
