"""The weights of a run, stored as a changed graph stores them."""

import functools

import jax
import numpy as np
import pytest

from maxfdl import graph, mutations
from maxfdl.errors import UserError
from maxfdl.saved_run import SavedRun
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
