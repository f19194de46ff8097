"""What MaxText's options train, and which are refused."""

import re

import fiddle as fdl
import jax.numpy as jnp
import numpy as np
import pytest

from fdl_configs.maxtext import experiment
from fdl_configs.maxtext_training import training_options
from maxfdl.errors import UserError
from maxfdl.tensors.maxtext.options import resolved
from maxfdl.train.router import SelectionBias
from maxfdl.train.updates import Update
from tests.maxtext import tiny

WSD = {
    "learning_rate": 0.5,
    "lr_schedule_type": "wsd",
    "learning_rate_schedule_steps": 20,
    "warmup_steps_fraction": 0.2,
    "wsd_decay_steps_fraction": 0.3,
    "learning_rate_final_fraction": 0.1,
}


def run(**options):
    return experiment(resolved({**tiny.options("llama2"), **options}, "here"))


def rates(config):
    schedule = fdl.build(config.optimizer.schedule)
    steps = range(config.steps)
    return [float(schedule(jnp.asarray(i), config.steps)) for i in steps]


def wsd_of_maxtext(decay):
    """Warm-up over 4 steps, 10 at the peak, and a decay whose last step is the end."""
    done = np.arange(6) / 5
    shape = {"linear": 1 - done, "cosine": (1 + np.cos(np.pi * done)) / 2}[decay]
    return 0.5 * np.concatenate([np.arange(4) / 4, np.ones(10), 0.1 + 0.9 * shape])


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_rate_decays_as_that_of_maxtext_and_ends_at_the_last_step(decay):
    config = run(**WSD, wsd_decay_style=decay)
    np.testing.assert_allclose(rates(config), wsd_of_maxtext(decay), rtol=1e-5)


@pytest.mark.parametrize("more", [{}, WSD, WSD | {"wsd_decay_style": "cosine"}])
def test_options_of_a_run_train_as_it_does(more):
    config = run(**{"learning_rate_schedule_steps": 20, **more}, z_loss_multiplier=0.25)
    again = run(**training_options(config, "0.2.5"))
    assert again.loss == config.loss
    np.testing.assert_allclose(rates(again), rates(config), rtol=1e-6)


class Another(Update):
    """An update that MaxText does not have."""


def test_an_update_that_maxtext_lacks_is_not_left_out_in_silence():
    config = run()
    config.trainer.updates = [fdl.Config(Another)]
    with pytest.raises(UserError, match="MaxText has nothing like Another"):
        training_options(config, "0.2.5")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_indexer", True),
        ("mtp_num_layers", 1),
        ("rope_min_timescale", 2),
        ("ici_pipeline_parallelism", 2),
        ("skip_step_on_spikes", True),
        ("dropout_rate", 0.1),
        ("decoder_block", "simple"),
        ("opt_type", "adafactor"),
    ],
)
def test_an_option_that_nothing_here_follows_is_refused_in_a_sentence(name, value):
    shown = re.escape(str(value))
    with pytest.raises(UserError, match=rf"MaxText's {name} \('?{shown}'?\) must be"):
        run(**{name: value})


def test_tokens_that_experts_drop_are_refused_where_maxtext_would_drop_them():
    mixtral = {**tiny.options("mixtral"), "capacity_factor": 1.25}
    assert experiment(resolved(mixtral, "here"))
    with pytest.raises(UserError, match="capacity_factor"):
        experiment(resolved({**mixtral, "sparse_matmul": False}, "here"))


def test_muon_is_refused_where_maxtext_orthogonalises_other_matrices():
    for name in ("fused", "qwen3_moe"):
        options = {**tiny.options(name), "opt_type": "muon"}
        with pytest.raises(UserError, match=r"opt_type \(muon\) must be another"):
            experiment(resolved(options, "here"))


def test_experts_of_kimi_k2_are_chosen_as_those_of_deepseek_v3_from_0_2_5_on():
    kimi = {**tiny.options("deepseek3"), "model_name": "kimi-k2-1t"}
    config = experiment(resolved(kimi, "here"))
    assert config.model == experiment(tiny.options("deepseek3")).model
    with pytest.raises(UserError, match="routed_score_func"):
        experiment(resolved({**kimi, "maxtext": "0.2.4"}, "here"))


def test_biases_of_routers_decay_where_they_are_parameters_to_maxtext():
    options = {**tiny.options("deepseek3"), "routed_bias_update_rate": 1e-3}
    for version, more, decay in [
        ("0.2.5", {}, 0.0),
        ("0.2.4", {}, 0.1),
        ("0.2.4", {"pure_nnx": True}, 0.0),
        ("0.2.4", {"opt_type": "sgd"}, 0.0),
    ]:
        config = experiment(resolved({**options, **more, "maxtext": version}, "here"))
        (update,) = fdl.build(config.trainer.updates)
        assert update == SelectionBias(rate=1e-3, decay=decay)


def test_a_bias_decays_before_it_moves():
    bias, counts = np.float32([0.5, -0.25]), np.float32([3, 1])
    moved = SelectionBias(rate=0.125, decay=0.5)._moved(bias, counts, 0.25)
    np.testing.assert_array_equal(moved, bias * (1 - 0.25 * 0.5) + [-0.125, 0.125])
