"""Norms and residuals cut along the sequence between tensor-parallel products."""

import functools

import numpy as np
import pytest
from jax.experimental import topologies

from fdl_configs import meshes
from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.mutations import compute_dtype, remat
from maxfdl.report import hlo
from maxfdl.train.program import Program
from tests import tiny

PRESET = functools.partial(meshes.fsdp_tensor, tensor=2)


@pytest.mark.slow
def test_losses_are_those_of_one_device():
    losses, _ = tiny.train(tiny.experiment(PRESET), 3, devices=8)
    alone, _ = tiny.one_device(20)
    np.testing.assert_allclose(losses, alone[:3], rtol=0, atol=1e-5)


def test_a_sequence_that_tensor_shards_cannot_share_is_refused():
    config = PRESET(tiny.experiment())
    config.sequence_length = 15
    with pytest.raises(UserError, match="'residual'"):
        graph.build(config).make_sharding()


@pytest.mark.slow
def test_on_tpus_products_end_in_a_reduce_scatter(monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    bfloat16 = functools.partial(compute_dtype, dtype="bfloat16")
    sizes = dict(features=256, mlp=512, num_layers=2, num_kv_heads=4, head_dim=128)
    tokens = 4 * 128 * 256 * 2  # bytes of the residual stream

    def reduced(**kwargs):
        preset = functools.partial(meshes.fsdp_tensor, tensor=4, fsdp=1, **kwargs)
        made = graph.build(tiny.experiment(bfloat16, remat, preset, **sizes))
        program = Program(
            made.make_trainer(made.make_sharding(topology.devices)), 4, 128
        )
        found = hlo.read(program.compile_step().run.as_text()).collectives
        return {c.kind for c in found if c.in_loop and c.payload >= tokens}

    assert "all-reduce" in reduced(sequence_parallel=False)
    with_it = reduced()
    assert with_it >= {"all-gather", "reduce-scatter"} and "all-reduce" not in with_it
