"""Training in int8 and in blocks is the same however a step runs."""

import functools

import jax
import numpy as np
import pytest

from maxfdl.mutations import (
    gradient_accumulation,
    mesh,
    quantize,
    remat,
    to_linen,
    unroll_layers,
)
from tests import tiny
from tests.layers.families import assert_same_bits
from tests.train.test_fp8_gradients import experiment, gradient, in_float32

pytestmark = pytest.mark.slow

FORMATS = {
    "int8": functools.partial(quantize, backward=True, rounding="stochastic"),
    "int8 forward": quantize,
    "mxfp8": functools.partial(quantize, format="mxfp8", backward=True),
    "nvfp4": functools.partial(quantize, format="nvfp4"),
}
SAME = {
    "linen": [to_linen],
    "remat": [remat],
    "unrolled": [unroll_layers],
    "unrolled remat": [unroll_layers, remat],
}


@functools.cache
def trained(form, how=None):
    config = tiny.experiment(FORMATS[form], *SAME.get(how, []), num_layers=2)
    losses, state = tiny.train(config, 2, 1)
    return losses, jax.device_get(state)


def each(names, cases, often):
    """Cases that CI runs often, and others that are left to the exhaustive part."""
    marks = [pytest.mark.exhaustive]
    params = [pytest.param(*c, marks=() if c in often else marks) for c in cases]
    return pytest.mark.parametrize(names, params)


WAYS = {"int8": SAME, "mxfp8": ["linen", "unrolled remat"], "nvfp4": ["unrolled"]}


@each(
    ("form", "how"),
    [(form, how) for form, ways in WAYS.items() for how in ways],
    often=[("int8", "unrolled remat"), ("int8", "linen"), ("mxfp8", "unrolled remat")],
)
def test_however_the_layers_run_nothing_changes_to_the_last_bit(form, how):
    (losses, state), (expected_losses, expected) = trained(form, how), trained(form)
    assert losses == expected_losses
    assert_same_bits(state, expected)


CUT = {
    "replicas": functools.partial(mesh, data=8, fsdp=1),
    "fsdp": functools.partial(mesh, fsdp=8),
    "accumulated": functools.partial(gradient_accumulation, steps=4),
}


@each("how", [(how,) for how in CUT], often=[("fsdp",)])
def test_a_token_has_its_own_scale_so_that_parts_of_a_batch_are_the_whole(how):
    """Sums of gradients over tokens are in float32, in another order."""
    config = tiny.experiment(FORMATS["int8 forward"], CUT[how], num_layers=2)
    losses, state = tiny.train(config, 2, 1 if how == "accumulated" else 8)
    expected_losses, expected = trained("int8 forward")
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, jax.device_get(state)["params"], expected["params"])


@pytest.mark.exhaustive
def test_blocks_of_rows_over_devices_are_those_of_one():
    config = tiny.experiment(FORMATS["mxfp8"], CUT["fsdp"], num_layers=2)
    losses, _ = tiny.train(config, 2, 8)
    np.testing.assert_allclose(losses, trained("mxfp8")[0], rtol=1e-5)


LEAST = {
    "int8": ({"backward": True}, 0.9995),
    # What is right on average is further off each time.
    "int8 by chance": ({"backward": True, "rounding": "stochastic"}, 0.999),
    "mxfp8": ({"format": "mxfp8", "backward": True}, 0.995),
    "nvfp4": ({"format": "nvfp4"}, 0.95),
}


@each(
    ("name", "form"),
    [(name, form) for name in ("llama", "mixtral", "deepseek") for form in LEAST],
    often=[("llama", "int8"), ("mixtral", "mxfp8"), ("deepseek", "nvfp4")],
)
def test_gradients_point_where_those_of_float32_do(name, form):
    arguments, least = LEAST[form]
    ours, expected = gradient(quantize(experiment(name), **arguments)), in_float32(name)
    cosine = ours @ expected / np.linalg.norm(ours) / np.linalg.norm(expected)
    assert cosine >= least
