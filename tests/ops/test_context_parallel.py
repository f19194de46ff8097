"""Attention of rows that devices share, against one device that has them whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.errors import UserError
from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.context_parallel import RingAttention, UlyssesAttention
from maxfdl.ops.mask import Causal, Chunked, Mask, SlidingWindow
from maxfdl.report import hlo
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding
from tests.ops.attending import PACKED, WHOLE, inputs, out_and_gradients, places

ZIGZAG, PLAIN, ULYSSES = RingAttention(), RingAttention("plain"), UlyssesAttention()
TOKENS, CONTEXT = 32, 4


@functools.cache
def sharding(rules=AxisRules(), **axes):  # noqa: B008
    shape = MeshShape(**{"fsdp": 1, "context": CONTEXT, "tensor": 2, **axes})
    return Sharding(shape.build(jax.devices()[: shape_size(shape)]), rules)


def shape_size(shape):
    return shape.data * shape.fsdp * shape.context * shape.tensor


class EveryOther(Causal):
    """A rule of one's own, which has no form for kernels."""

    def sees(self, queries, keys):
        return super().sees(queries, keys) & ((queries - keys) % 2 == 0)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)
CASES = {
    # Way, rule, packing, sizes as `inputs` takes them, soft cap, sinks.
    "zigzag": (ZIGZAG, Causal(), PACKED, (2, TOKENS, 4, 2, 8, 4), 1.5, True),
    "plain": (PLAIN, Causal(), WHOLE, (2, TOKENS, 2, 2, 8), None, False),
    "a rule of one's own": (ZIGZAG, EveryOther(), WHOLE, (1, TOKENS, 4, 2, 8), 2.0, 0),
    "window": (ZIGZAG, SlidingWindow(7), PACKED, (2, TOKENS, 4, 2, 8), None, True),
    "window over shards": (
        PLAIN,
        SlidingWindow(12),
        WHOLE,
        (1, TOKENS, 2, 2, 8),
        1.0,
        0,
    ),
    "window of a whole row": (
        ZIGZAG,
        SlidingWindow(28),
        PACKED,
        (1, 32, 2, 2, 8),
        0,
        0,
    ),
    "window of itself": (ZIGZAG, SlidingWindow(1), WHOLE, (1, TOKENS, 2, 2, 8), 0, 0),
    "chunks": (ZIGZAG, Chunked(6), PACKED, (2, TOKENS, 4, 2, 8), None, False),
    "ulysses": (ULYSSES, Chunked(9), PACKED, (2, TOKENS, 8, 2, 8, 4), 1.5, True),
    "ulysses, odd heads": (ULYSSES, Causal(), PACKED, (2, TOKENS, 24, 6, 8), 0, 0),
}
IN_FAST = ("zigzag", "window", "window over shards", "ulysses")


@pytest.mark.parametrize(
    "name", [name if name in IN_FAST else slow(name) for name in CASES]
)
def test_output_and_gradients_are_those_of_one_device(name):
    check(*CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zigzag", "window", "window over shards", "chunks"])
def test_parts_by_the_kernel_for_tpus_are_as_good(name):
    check(*CASES[name], implementation="tokamax")


def check(way, rule, packing, sizes, soft_cap, has_sinks, implementation="xla"):
    rows, tokens, heads, *_ = sizes
    mask = Mask.within(rule, places(rows, tokens, packing))
    sinks = jnp.linspace(-1.0, 2.0, heads) if has_sinks else None
    by_rows = way is not ULYSSES and rows == 2
    on_mesh = sharding(fsdp=2, tensor=1) if by_rows else sharding()
    cap = soft_cap or None
    op = DotProductAttention(implementation, soft_cap=cap, context_parallel=way)
    arguments = (*inputs(*sizes), mask, sinks)
    cut = functools.partial(op, sharding=on_mesh)
    alone = DotProductAttention("xla", soft_cap=cap)
    found, whole = (out_and_gradients(each, *arguments) for each in (cut, alone))
    for ours, theirs in zip(found, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", [ZIGZAG, ULYSSES], ids=str)
def test_the_highest_scores_are_those_of_one_device(way):
    mask = Mask.within(SlidingWindow(20), places(2, TOKENS, PACKED))
    q, k, _, _ = inputs(2, TOKENS, 8, 4, 8)
    op = DotProductAttention("xla", context_parallel=way)
    found = jax.jit(functools.partial(op.highest_scores, sharding=sharding()))(
        q, k, mask
    )
    np.testing.assert_allclose(found, op.highest_scores(q, k, mask), rtol=1e-6)


def test_heads_that_rules_cut_otherwise_than_keys_are_whole_on_each_device():
    mask = Mask.within(Causal(), places(2, TOKENS))
    q, k, v, _ = inputs(2, TOKENS, 4, 1, 8)
    op = DotProductAttention("xla")
    rules = AxisRules(kv_heads=())
    cut = jax.jit(functools.partial(op, sharding=sharding(rules)))
    np.testing.assert_allclose(cut(q, k, v, mask), op(q, k, v, mask), atol=1e-5)


# What goes over the wire.


def program(way, rule, *, gradients):
    """Returns what a device does for one row of 32 tokens, 8 a shard, in float32: 4
    query heads and 2 key-value heads of width 8."""
    q, k, v, _ = inputs(1, TOKENS, 4, 2, 8)
    mask = Mask.within(rule, places(1, TOKENS))
    on_mesh = sharding(tensor=1)
    op = DotProductAttention("xla", context_parallel=way)

    def loss(q, k, v):
        return jnp.sum(jnp.square(op(q, k, v, mask, sharding=on_mesh)))

    run = jax.grad(loss, (0, 1, 2)) if gradients else loss
    by_tokens = on_mesh.named(("batch", "sequence", "heads", "head_dim"))
    run = jax.jit(run, in_shardings=by_tokens)
    text = run.lower(q, k, v).compile().as_text()
    assert text is not None
    return hlo.read(text)


QUERY, KEYS, PLACES = 4 * 8 * 4, 2 * 2 * 8 * 4, 4  # bytes of a token
SHARD = TOKENS // CONTEXT


ZIGZAG_ORDER = SHARD // 2 * (2 * QUERY + KEYS)
SENT = {
    # Three shards of keys go by; half a shard of each array changes its place. In the
    # backward pass the gradients of keys come home, so that four shards of them go by;
    # the first keys are still there, for both passes are one program.
    "zigzag": (
        (ZIGZAG, Causal()),
        3 * SHARD * (KEYS + PLACES) + ZIGZAG_ORDER + SHARD // 2 * PLACES,
        2 * SHARD * (KEYS + PLACES) + 4 * SHARD * KEYS + ZIGZAG_ORDER,
    ),
    # Six keys before a shard, and their gradients.
    "window": ((ZIGZAG, SlidingWindow(7)), 6 * (KEYS + PLACES), 6 * KEYS),
}


@pytest.mark.parametrize("name", SENT)
def test_no_more_is_sent_than_keys_that_are_seen(name):
    case, forward, backward = SENT[name]
    for gradients, expected in ((False, forward), (True, forward + backward)):
        sent = program(*case, gradients=gradients).collectives
        permutes = [each for each in sent if each.kind == "collective-permute"]
        assert sum(each.wire for each in permutes) == expected
        assert all(each.kind == "all-reduce" for each in set(sent) - set(permutes))


def test_ulysses_exchanges_tokens_for_heads_and_gathers_places():
    """Two key-value heads are four, one for each device."""
    sent = program(ULYSSES, Causal(), gradients=False).collectives
    wires = {}
    for each in sent:
        wires[each.kind] = wires.get(each.kind, 0) + each.wire
    assert wires["all-to-all"] == 3 / 4 * SHARD * (2 * QUERY + 2 * KEYS)
    assert wires.keys() <= {"all-to-all", "all-gather", "all-reduce"}
    assert wires.get("all-gather", 0) <= 3 / 4 * TOKENS * PLACES


# Refusals, before anything is compiled.


@pytest.mark.parametrize(
    ("way", "tokens", "heads", "words"),
    [
        (
            ZIGZAG,
            28,
            4,
            r"RingAttention cuts sequences of 28 tokens into 8 parts for 4 devices, and"
            r" must cut them evenly; change sequence_length or mesh\.context, or take"
            r" context_parallel\(order='plain'\)\.",
        ),
        (PLAIN, 30, 4, r"30 tokens into 4 parts .* mesh\.context\.\n"),
        (
            ULYSSES,
            32,
            4,
            r"UlyssesAttention cuts query heads \(4\) by mesh axis tensor x context"
            r" \(8\), which must divide them",
        ),
    ],
)
def test_what_cannot_be_cut_is_said(way, tokens, heads, words):
    mask = Mask.within(Causal(), places(1, tokens))
    q, k, v, _ = inputs(1, tokens, heads, heads, 8)
    op = DotProductAttention("xla", context_parallel=way)
    with pytest.raises(UserError, match=words):
        jax.eval_shape(functools.partial(op, sharding=sharding()), q, k, v, mask)


def test_kernels_that_have_no_parts_are_refused(monkeypatch):
    monkeypatch.setattr(DotProductAttention, "_chosen", lambda *args: "cudnn")
    mask = Mask.within(Causal(), places(1, 32))
    q, k, v, _ = inputs(1, 32, 4, 4, 8)
    op = DotProductAttention("cudnn")
    with pytest.raises(UserError, match=r"RingAttention needs .*kind='ulysses'"):
        op(q, k, v, mask, sharding=sharding())
