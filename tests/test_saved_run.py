"""The weights of a run, stored as a changed graph stores them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl import graph, mutations
from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.errors import UserError
from maxfdl.run.directory import RunDirectory
from maxfdl.saved_run import SavedRun, read_run
from tests import tiny

INT4 = functools.partial(mutations.quantize_weights, format="int4", group=6)


def run(*changes) -> SavedRun:
    config = tiny.experiment(*changes)
    experiment = graph.build(config)
    variables = jax.jit(experiment.make_model().init)(jax.random.key(0))
    return SavedRun(config, experiment, 1, variables)


@pytest.mark.slow
def test_kernels_are_packed_and_unpacked_and_stay_where_nothing_changes():
    packed = run().changed(INT4)
    expected = run(INT4)
    assert packed.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, packed.variables, expected.variables)
    same = packed.changed(mutations.quantize_cache)
    jax.tree.map(np.testing.assert_array_equal, same.variables, expected.variables)
    unpacked = same.changed(mutations.dequantize_weights).variables
    plain = run().variables
    assert jax.tree.structure(unpacked) == jax.tree.structure(plain)
    for ours, whole in zip(*map(jax.tree.leaves, (unpacked, plain)), strict=True):
        assert ours.dtype == whole.dtype
        np.testing.assert_allclose(ours, whole, rtol=0, atol=np.max(np.abs(whole)) / 14)


def test_other_weights_than_those_of_the_run_are_refused():
    with pytest.raises(UserError, match="must leave the weights and the state"):
        run().changed(mutations.multi_token_prediction)


def test_averages_are_read_of_as_many_replicas_as_were_saved(tmp_path):
    """The graph of a run may ask for others, which have taken no step yet."""

    def config(num_replicas):
        average = functools.partial(mutations.average_weights, decay=0.5)
        fields = dict(num_replicas=num_replicas, sync_period=3)
        return tiny.experiment(
            functools.partial(mutations.use_diloco, **fields), average
        )

    shapes = jax.eval_shape(tiny.program(config(2)).trainer.init)
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    memory = state["replicas"]["updates"]["weight_average"]
    memory["steps"] += 1
    memory["average"] = jax.tree.map(
        lambda x: x + jnp.arange(2.0).reshape(2, *[1] * (x.ndim - 1)), memory["average"]
    )
    text = graph.dump_json(config(4))
    run = RunDirectory(tmp_path)
    run.write(config_json=text, config_text="-", command="-")
    checkpointer = Checkpointer(directory=run.checkpoints)
    checkpointer.save(1, state | {"step": jnp.int32(1)}, NoData(), text)
    checkpointer.close()
    for found in jax.tree.leaves(read_run(tmp_path).variables["params"]):
        np.testing.assert_array_equal(found, 0.5)


class NoData:
    def get_state(self):
        return {}
