"""Fused kernels: what they are told of masks, and that they give what `xla` gives.

A CPU interprets splash attention, the kernel for TPUs. The kernels for GPUs cannot run
here, so their arguments go to plain implementations that take the same ones.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.mutations import mesh
from maxfdl.ops import fused_attention
from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.balance import counted
from maxfdl.ops.fused_attention import Demand, best_on_gpu, refusal
from maxfdl.ops.later import places_with_later
from maxfdl.ops.mask import (
    NOWHERE,
    Band,
    Causal,
    Chunked,
    Mask,
    Places,
    SlidingWindow,
)
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding
from tests import tiny
from tests.ops.attending import PACKED, WHOLE, inputs, out_and_gradients, places


def assert_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-5, rtol=1e-5)


CASES = {
    # Rule, packing, sizes as `inputs` takes them, soft cap, sinks.
    "short rows": (Causal(), WHOLE, (2, 17, 4, 2, 8), None, False),
    "documents, sinks": (SlidingWindow(70), PACKED, (1, 300, 4, 2, 8), None, True),
    "chunks, cap": (Chunked(50), PACKED, (2, 260, 2, 1, 16, 8), 1.5, False),
    "chunks of whole rows": (Chunked(50), WHOLE, (1, 200, 2, 2, 8), None, False),
}


@pytest.mark.parametrize("name", CASES)
def test_splash_attention_gives_what_xla_gives(name):
    rule, packing, sizes, soft_cap, has_sinks = CASES[name]
    mask = Mask.within(rule, places(*sizes[:2], packing))
    sinks = jnp.linspace(-1.0, 2.0, sizes[2]) if has_sinks else None
    arguments = (*inputs(*sizes), mask, sinks)
    fused, plain = (
        out_and_gradients(DotProductAttention(n, soft_cap=soft_cap), *arguments)
        for n in ("tokamax", "xla")
    )
    assert_close(fused, plain)


MASKS = {
    f"{rule}, {packing}": Mask.within(rule, places(2, 40, packing))
    for rule in (Causal(), SlidingWindow(7), Chunked(6))
    for packing in (WHOLE, PACKED)
}
masks = pytest.mark.parametrize("name", MASKS)


@masks
def test_a_mask_is_its_band_and_its_segments(name):
    mask = MASKS[name]
    band, segments = mask.band(), mask.segments()
    queries, keys = np.ogrid[:40, :40]
    seen = queries >= keys
    if band.window is not None:
        seen &= queries - keys < band.window
    seen = np.broadcast_to(seen, (2, 40, 40))
    if segments is not None:
        seen = seen & np.asarray(segments[:, :, None] == segments[:, None])
    np.testing.assert_array_equal(seen, mask.dense())


@masks
def test_a_query_sees_all_from_its_first_key_up_to_itself(name):
    mask = MASKS[name]
    first = mask.first_keys()
    first = np.zeros((2, 40)) if first is None else np.asarray(first)
    queries, keys = np.ogrid[:40, :40]
    seen = (queries >= keys) & (first[:, :, None] <= keys)
    np.testing.assert_array_equal(seen, mask.dense())


def test_tokens_that_do_not_count_are_a_segment_of_their_own():
    """As in multi-token prediction, where the last of each document are padding."""
    here = places_with_later(places(1, 40, PACKED), 2)
    mask = Mask.within(Causal(), here)
    real, segments = np.asarray(counted(here)[0]), np.asarray(mask.segments()[0])
    assert not set(segments[real]) & set(segments[~real])
    seen = np.tril(segments[:, None] == segments)
    np.testing.assert_array_equal(seen[real], mask.dense()[0][real])


def test_a_rule_of_ones_own_has_no_band():
    class EveryOther(Causal):
        def sees(self, queries, keys):
            return super().sees(queries, keys) & ((queries - keys) % 2 == 0)

    mask = Mask.within(EveryOther(), places(1, 9))
    assert mask.band() is None
    q, k, v, _ = inputs(1, 9, 2, 2, 8)
    with pytest.raises(UserError, match=r"\(tokamax\) has no such mask; use xla\."):
        DotProductAttention("tokamax")(q, k, v, mask)


def test_queries_of_a_cache_are_attended_by_xla(monkeypatch):
    here = places(2, 8)
    last = Places(here.positions[:, -1:], None)
    empty = Places(here.positions.at[1, 5:].set(NOWHERE), None)
    mask = Mask(Causal(), last, empty, same=False)
    q, k, v, _ = inputs(2, 8, 4, 2, 8)
    monkeypatch.setattr(fused_attention, "KERNELS", {})
    out = [DotProductAttention(n)(q[:, -1:], k, v, mask) for n in ("tokamax", "xla")]
    np.testing.assert_array_equal(*out)


# What the kernels for GPUs are told.


@pytest.fixture
def a_gpu(monkeypatch):
    """A card whose compute capability may be set, without kernels."""

    def make(capability="9.0"):
        card = type("Card", (), {"compute_capability": capability})()
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(jax, "local_devices", lambda: [card])

    return make


@pytest.mark.parametrize("rule", [Causal(), SlidingWindow(7), SlidingWindow(90)])
def test_cudnn_is_told_of_causal_order_and_the_window(rule, monkeypatch):
    attend = jax.nn.dot_product_attention

    def plain(*args, implementation, **options):
        assert implementation == "cudnn" and "mask" not in options
        exact = [x.astype(jnp.float32) for x in args]
        return attend(*exact, implementation="xla", **options).astype(args[0].dtype)

    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    mask = Mask.within(rule, places(2, 40))
    q, k, v, upstream = (x.astype(jnp.float16) for x in inputs(2, 40, 4, 2, 8))
    told, ours = (
        out_and_gradients(DotProductAttention(name), q, k, v, upstream, mask)
        for name in ("cudnn", "xla")
    )
    for a, b in zip(told, ours, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-2)


@masks
def test_tokamax_on_a_gpu_is_told_of_first_keys(name, monkeypatch, a_gpu):
    # tokamax reads flags from the command line, and this one is pytest's.
    monkeypatch.setattr("sys.argv", ["tokamax"])
    from tokamax._src.ops.attention import api

    a_gpu()

    def plain(*args, mask, **options):
        assert mask.bool_mask is None
        return xla(*args, mask=mask, precision=jax.lax.Precision.HIGHEST, **options)

    xla = api.IMPLEMENTATIONS["xla"]
    monkeypatch.setattr(api, "IMPLEMENTATIONS", {"mosaic_gpu": plain})
    q, k, v, _ = inputs(2, 40, 4, 2, 8)
    told = DotProductAttention("tokamax", scale=0.2)(q, k, v, MASKS[name])
    ours = DotProductAttention("xla", scale=0.2)(q, k, v, MASKS[name])
    real = counted(MASKS[name].queries)
    np.testing.assert_allclose(told[real], ours[real], atol=2e-5)


REFUSALS = [
    ("cudnn", dict(soft_cap=1.0), None, "soft_cap; use xla or tokamax."),
    ("cudnn", dict(has_sinks=True), None, "attention sinks; use xla or tokamax."),
    ("cudnn", dict(band=Band(9, 9)), None, "Chunked mask; use xla or tokamax."),
    (
        "cudnn",
        dict(is_packed=True),
        None,
        "segment ids, which keep the documents of a row apart; use xla or tokamax.",
    ),
    (
        "cudnn",
        dict(width=192),
        None,
        "values of width 128 beside keys of 192; use xla or tokamax.",
    ),
    (
        "cudnn",
        dict(width=20, value_width=20),
        None,
        "heads of width 20, only multiples of 8 up to 256; use xla or tokamax.",
    ),
    (
        "cudnn",
        dict(dtype="float32"),
        None,
        "float32, only types of 16 bits; use xla or tokamax.",
    ),
    ("tokamax", dict(has_sinks=True), "gpu", "attention sinks on a GPU; use xla."),
]


@pytest.mark.parametrize(("name", "asked", "platform", "lack"), REFUSALS)
def test_what_a_kernel_lacks_is_said(name, asked, platform, lack, a_gpu):
    a_gpu()
    sentence = f"DotProductAttention implementation ({name}) has no {lack}"
    assert refusal(name, Demand(**asked), platform) == sentence


@pytest.mark.parametrize(
    "asked", [dict(is_packed=True), dict(soft_cap=1.0), dict(band=Band(window=9))]
)
def test_older_cards_have_a_kernel_for_causal_order_alone(asked, a_gpu):
    a_gpu("8.0")
    assert refusal("tokamax", Demand(), "gpu") is None
    assert "on a GPU before Hopper; use xla." in refusal(
        "tokamax", Demand(**asked), "gpu"
    )


def test_splash_attention_takes_whatever_layers_ask():
    asked = Demand(Band(9, 9), True, True, 1.0, 192, 128, "float32")
    assert refusal("tokamax", asked, "tpu") is None


def test_a_call_that_a_kernel_cannot_do_is_a_sentence():
    q, k, v, _ = (x.astype(jnp.bfloat16) for x in inputs(1, 40, 2, 2, 8))
    packed = Mask.within(Causal(), places(1, 40, PACKED))
    with pytest.raises(UserError, match="has no segment ids"):
        DotProductAttention("cudnn")(q, k, v, packed)
    whole = Mask.within(Causal(), places(1, 40))
    with pytest.raises(UserError, match=r"\(cudnn\) cannot run here \(.*cuDNN"):
        DotProductAttention("cudnn")(q, k, v, whole)


@pytest.mark.parametrize(
    ("asked", "capability", "best"),
    [
        (dict(), "8.0", "cudnn"),
        (dict(is_packed=True), "9.0", "tokamax"),
        (dict(is_packed=True), "8.0", "xla"),
        (dict(band=Band(9, 9)), "10.0", "tokamax"),
        (dict(width=256, value_width=256), "9.0", "tokamax"),
        (dict(has_sinks=True), "9.0", "xla"),
        (dict(soft_cap=1.0), "9.0", "xla"),
        (dict(dtype="float32"), "9.0", "xla"),
    ],
)
def test_auto_takes_what_a_card_has_a_kernel_for(asked, capability, best, a_gpu):
    a_gpu(capability)
    assert best_on_gpu(Demand(**{"dtype": "bfloat16", **asked})) == best


# On a mesh.


@pytest.mark.parametrize(
    "axes",
    [
        dict(data=2, fsdp=2, tensor=2),
        pytest.param(dict(fsdp=4, tensor=2), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.slow
def test_each_device_attends_with_its_own_rows_and_heads(axes):
    """In training, where replicas along `data` run apart; against `xla` alone."""

    def fused(config):
        config = graph.copy(config)
        (layer,) = config.model.decoder.stacks[0].layers
        layer.attention.attention.implementation = "tokamax"
        return config

    on_mesh = functools.partial(mesh, **axes)
    losses, _ = tiny.train(tiny.experiment(fused, on_mesh), 3, devices=8)
    alone, _ = tiny.one_device(20)
    np.testing.assert_allclose(losses, alone[:3], rtol=0, atol=1e-5)


def test_heads_that_rules_cut_otherwise_than_keys_are_whole_on_each_device():
    rules = AxisRules(kv_heads=())
    sharding = Sharding(MeshShape(fsdp=4, tensor=2).build(jax.devices()[:8]), rules)
    q, k, v, _ = inputs(4, 20, 4, 1, 8)
    mask = Mask.within(Causal(), places(4, 20, PACKED))
    op = functools.partial(DotProductAttention("tokamax"), sharding=sharding)
    real = counted(mask.queries)
    expected = DotProductAttention("xla")(q, k, v, mask)[real]
    np.testing.assert_allclose(jax.jit(op)(q, k, v, mask)[real], expected, atol=1e-5)


# What comes of it in a program.


def sizes_of_arrays(jaxpr):
    """Yields the number of elements of all that a program computes, at any depth."""
    for eqn in jaxpr.eqns:
        for out in eqn.outvars:
            yield int(np.prod(getattr(out.aval, "shape", ())))
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sizes_of_arrays(inner)


def test_no_array_of_queries_times_keys_is_made_outside_of_the_kernel():
    tokens = 8192
    abstract = jax.ShapeDtypeStruct((1, tokens, 1, 8), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

    def loss(q, positions, segment_ids):
        mask = Mask.within(SlidingWindow(4096), Places(positions, segment_ids))
        return jnp.sum(DotProductAttention("tokamax")(q, q, q, mask))

    jaxpr = jax.make_jaxpr(jax.grad(loss))(abstract, ids, ids)
    # A step of the kernel has scores of 512 queries and keys.
    assert max(sizes_of_arrays(jaxpr.jaxpr)) <= max(512**2, tokens * 128)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [Causal(), SlidingWindow(1024), Chunked(2048)])
def test_memory_on_a_tpu_grows_with_the_tokens_not_with_their_square(rule, monkeypatch):
    """8 rows of 8192 tokens: 512 MiB would be their dense mask, 64 GiB their scores."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    place = SingleDeviceSharding(topology.devices[0])
    abstract = functools.partial(jax.ShapeDtypeStruct, sharding=place)
    op = DotProductAttention("tokamax")

    def loss(q, k, v, positions, segment_ids):
        mask = Mask.within(rule, Places(positions, segment_ids))
        return jnp.sum(op(q, k, v, mask).astype(jnp.float32) ** 2)

    q, k = (abstract((8, 8192, heads, 128), jnp.bfloat16) for heads in (8, 2))
    ids = abstract((8, 8192), jnp.int32)
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    compiled = step.lower(q, k, k, ids, ids).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert "8192,8192" not in text and text.count("tpu_custom_call") >= 3
    assert memory.temp_size_in_bytes < 2**30
