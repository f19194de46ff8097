"""Shards of kernels cross the mesh in the format that products multiply in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from maxfdl import graph
from maxfdl.mutations import compute_dtype, enable_fp8, mesh, remat, to_linen, to_nnx
from maxfdl.ops.fp8_block import Fp8Block
from maxfdl.ops.quantized_dot import QuantizedDot
from maxfdl.ops.recipe import Recipe
from maxfdl.report import hlo
from maxfdl.sharding.gather import Gather
from maxfdl.train.program import Program
from tests import tiny
from tests.layers.families import assert_same_bits

RECIPES = {
    "current": enable_fp8,
    "channel": functools.partial(enable_fp8, granularity="channel"),
    "delayed": functools.partial(enable_fp8, recipe="delayed", history=4),
    "block": functools.partial(enable_fp8, recipe="block", size=8),
}
FSDP = functools.partial(mesh, fsdp=8)


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(r, marks=[pytest.mark.slow] * (r != "delayed")) for r in RECIPES],
)
def test_numbers_are_those_of_a_kernel_that_is_gathered_first(recipe, monkeypatch):
    config = tiny.experiment(RECIPES[recipe], FSDP, num_layers=2)
    losses, state = tiny.train(config, 2, devices=8)
    for each in Recipe.__subclasses__():
        monkeypatch.setattr(each, "gathers_kernel", False)
    expected_losses, expected = tiny.train(config, 2, devices=8)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    assert_same_bits(state["state"], expected["state"])


def test_devices_add_up_the_blocks_of_their_own_rows():
    made = graph.build(tiny.experiment(FSDP)).make_sharding(jax.devices()[:8])
    gather = Gather(made, ("embed", "mlp"))
    dot = QuantizedDot(Fp8Block(size=8))

    def loss(x, kernel):
        return jnp.sum(jnp.sin(dot(x, kernel, {}, gather=gather)[0]))

    def array(shape, *axes):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=made.named(axes))

    x = array((8, 16, 64), "batch", "sequence", None)
    kernel = array((64, 32), "embed", "mlp")
    places = (x.sharding, kernel.sharding)
    step = jax.jit(jax.grad(loss, (0, 1)), out_shardings=places)
    program = hlo.read(step.lower(x, kernel).compile().as_text())
    assert program.flops == 3 * 2 * 16 * 64 * 32  # 16 of 128 tokens
    large = sorted((c.kind, c.in_loop) for c in program.collectives if c.payload > 1024)
    # The kernel for each pass, and its gradient: no rows.
    assert large == [("all-gather", False)] * 2 + [("all-reduce", False)]


def compiled(chips, *mutations):
    """Returns the program of a step whose kernels have 2**16 numbers at least."""
    config = tiny.experiment(
        functools.partial(compute_dtype, dtype="bfloat16"),
        functools.partial(mesh, fsdp=len(chips)),
        remat,
        *mutations,
        features=256,
        mlp=512,
        num_layers=2,
        head_dim=128,
    )
    made = graph.build(config)
    program = Program(made.make_trainer(made.make_sharding(chips)), 16, 128)
    return program.compile_step().run.as_text()


def of_kernels(text, kind):
    """Returns the types and sizes of what collectives make of kernels of layers."""
    return {(dtype, size) for dtype, size in hlo.results(text, kind) if size >= 2**16}


def reduced(text):
    """Returns the bytes that a device sends to add gradients up."""
    kinds = ("all-reduce", "reduce-scatter")
    return sum(c.wire for c in hlo.read(text).collectives if c.kind in kinds)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [to_nnx, pytest.param(to_linen, marks=pytest.mark.exhaustive)]
)
def test_on_tpus_a_byte_per_number_is_gathered_and_little_more_is_reduced(
    monkeypatch, family
):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    # Else a second process of pytest-xdist finds the library taken.
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    plain = compiled(topology.devices, family)
    sizes = {256 * 2 * 128, 256 * 4 * 128, 256 * 512}
    assert of_kernels(plain, "all-gather") == {("bf16", size) for size in sizes}
    fp8 = compiled(topology.devices, family, enable_fp8)
    assert of_kernels(fp8, "all-gather") == {("f8e4m3fn", size) for size in sizes}
    # XLA makes an all-reduce in float32 of one of the seven kernels' reduce-scatters.
    assert reduced(fp8) <= 1.33 * reduced(plain)
