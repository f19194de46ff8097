"""Batches are declared by data and loss: what is lacking is refused, what is not read
stays on the host, and what a new loss needs arrives."""

import dataclasses

import fiddle as fdl
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.batch import MODEL_INPUTS, NEXT_TOKENS, Field, check_fields
from maxfdl.data import Synthetic
from maxfdl.errors import UserError
from maxfdl.mutations import gradient_accumulation, mesh, to_linen
from maxfdl.train.loss import STUDENT, Loss, NextTokenLoss
from tests import tiny

REWARDS = {
    "rewards": Field("float32", ("batch",), ()),
    "features": Field("float16", ("batch", "sequence", "embed"), (None, 3)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewarded(Synthetic):
    """Random tokens with a reward for each row, and features for each token."""

    fields = {**Synthetic.fields, **REWARDS}


@dataclasses.dataclass(frozen=True)
class RewardLoss(Loss):
    """Cross-entropy of each row times its reward; a term of the features besides."""

    inner: NextTokenLoss
    fields = {**NEXT_TOKENS, **REWARDS}

    def weights(self, batch, later_tokens):
        rows = jnp.float32(batch["rewards"].shape[0])
        return {**self.inner.weights(batch, later_tokens), "features": rows}

    def sums(self, outputs, batch, psum):
        weights = batch["weights"] * batch["rewards"][:, None]
        terms = self.inner.sums(outputs, {**batch, "weights": weights}, psum)
        ones = jnp.sum(jnp.mean(outputs[STUDENT].hidden, axis=(1, 2)) * 0.0 + 1.0)
        return {**terms, "features": ones * jnp.mean(jnp.float32(batch["features"]))}


def experiment(*mutations):
    config = tiny.experiment(*mutations)
    fdl.update_callable(config.data, Rewarded)
    config.loss = fdl.Config(RewardLoss, inner=config.loss)
    return config


def batch(reward):
    rows = np.full(tiny.ROWS, reward, np.float32)
    features = np.ones((tiny.ROWS, tiny.LENGTH, 3), np.float16)
    return tiny.batch(0) | {"rewards": rows, "features": features}


def loss_of(config, batch, devices=1):
    program = tiny.program(config, devices)
    _, metrics = program.compile_step().run(tiny.begin(program), program.place(batch))
    return float(metrics["loss"])


@pytest.mark.parametrize(
    ("mutations", "devices"),
    [
        ((), 1),
        pytest.param(
            (
                to_linen,
                lambda cfg: gradient_accumulation(cfg, steps=2),
                lambda cfg: mesh(cfg, data=2, fsdp=2, tensor=1),
            ),
            4,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["one device", "microbatches on a mesh"],
)
def test_a_loss_gets_the_fields_that_it_declares(mutations, devices):
    plain = loss_of(tiny.experiment(), tiny.batch(0))
    found = loss_of(experiment(*mutations), batch(2.0), devices)
    assert found == pytest.approx(2.0 * plain + 1.0, rel=1e-6)


def test_what_no_loss_reads_is_not_sent_to_devices():
    program = tiny.program(tiny.experiment())
    placed = program.place(batch(2.0))
    assert placed.keys() == program.abstract_batch().keys()
    assert placed.keys() == {*MODEL_INPUTS, *NEXT_TOKENS}
    assert jax.tree.map(lambda x: (x.shape, x.dtype), placed) == jax.tree.map(
        lambda x: (x.shape, x.dtype), program.abstract_batch()
    )


def test_data_that_lacks_a_field_is_refused_when_the_graph_is_built():
    config = experiment()
    fdl.update_callable(config.data, Synthetic)
    problem = (
        r"data \[Synthetic\] gives tokens, segment_ids, .* loss \[RewardLoss\] need"
        r" rewards \(float32 \[batch\]\), features \(float16 \[batch, sequence, embed"
    )
    with pytest.raises(UserError, match=problem):
        graph.build(config)


def test_a_field_of_another_type_is_refused():
    given = {"rewards": Field("int32", ("batch",), ())}
    with pytest.raises(UserError, match=r"need rewards \(float32 \[batch\]\)"):
        check_fields(given, {"rewards": REWARDS["rewards"]}, "Toy", "RewardLoss")
    check_fields(REWARDS, {"rewards": REWARDS["rewards"]}, "Toy", "RewardLoss")
