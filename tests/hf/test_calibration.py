"""Codes that are chosen by the data of an experiment."""

from typing import Any

import fiddle as fdl
import jax
import numpy as np
import optax
import pytest

from maxfdl import graph, hf
from maxfdl.hf.calibration import Moments
from maxfdl.mutations import python_source
from maxfdl.mutations.products import selected
from maxfdl.ops.grouped_dot import GroupedProduct
from maxfdl.ops.second_moment import NAME, ObservedDot, ObservedGroupedDot
from maxfdl.ops.state import StateDeclaration
from maxfdl.tensors.names import table_of
from maxfdl.tensors.quantized.gptq import gptq
from maxfdl.tensors.table import bind, leaves_of
from tests import goldens, tiny
from tests.hf.test_quantizing import tensors_of
from tests.hf.variants import loaded


def small(name: str):
    """Returns a golden's experiment on few random tokens, and its batches."""
    config = graph.copy(loaded(name).config)
    config.data = tiny.experiment().data
    config.batch_size, config.sequence_length = 2, 8
    model = loaded(name).model
    batches = graph.build(config).make_data(model).train()
    return config, [next(batches) for _ in range(2)]


def bindings_of(name: str):
    kind = hf.Folder(goldens.FOLDER / name).config["model_type"]
    return bind(table_of(kind), leaves_of(loaded(name).model))


def moments_of(name: str, config: Any, variables: Any = None) -> Moments:
    variables = variables or loaded(name).variables
    theirs = hf.Folder(goldens.FOLDER / name).config
    return Moments(config, variables, 2, bindings_of(name), theirs)


def test_moments_of_the_first_layer_are_those_of_its_normalised_inputs():
    config, batches = small("llama3")
    moments = moments_of("llama3", config)
    weights = goldens.weights("llama3")
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    x = weights["model.embed_tokens.weight"][tokens].reshape(-1, 40).astype(np.float64)
    eps = hf.Folder(goldens.FOLDER / "llama3").config["rms_norm_eps"]
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)
    x = x * weights["model.layers.0.input_layernorm.weight"]
    for each in "qkv":
        found = moments(f"model.layers.0.self_attn.{each}_proj.weight")
        np.testing.assert_allclose(found, x.T @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "mixtral",
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ("gemma3", "gpt2", "gpt_oss", "deepseek_v3", "qwen3_next")
        ),
    ],
)
def test_layer_by_layer_they_are_those_of_the_whole_model(name):
    config, batches = small(name)
    whole = graph.copy(config)
    for node in selected(whole.model, (), (), "test"):
        grouped = issubclass(fdl.get_callable(node), GroupedProduct)
        graph.swap(node, ObservedGroupedDot if grouped else ObservedDot)
    model = graph.build(whole.backend)(module=graph.build(whole.model), sharding=None)
    variables = loaded(name).variables
    state = jax.tree.map(StateDeclaration.first, model.state())
    given = {jax.tree_util.keystr(k): x for k, x in flat(variables["state"])}
    state = jax.tree_util.tree_map_with_path(
        lambda path, x: given.get(jax.tree_util.keystr(path), x), state
    )
    run = jax.jit(lambda v, b: model.apply(v, b["tokens"], segment_ids=b["segment_ids"],
                                           positions=b["positions"]).state)  # fmt: skip
    for batch in batches:
        state = run({"params": variables["params"], "state": state}, batch)
    moments, compared = moments_of(name, config), 0
    for binding in bindings_of(name):
        slot = binding.slots[0]
        node = state
        for each in (*slot.path[:-1], f"dot_{NAME}"):
            node = node.get(each, {}) if isinstance(node, dict) else {}
        if isinstance(node, dict):  # no product, or the head's
            continue
        expected = np.asarray(node[slot.index])
        found = moments(binding.theirs[0])
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale)
        compared += 1
    assert compared >= 4 * config.model.decoder.stacks[0].repeats


def flat(tree):
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def test_a_folder_is_stored_with_the_codes_that_its_data_choose(tmp_path):
    config, _ = small("llama3")
    source = goldens.FOLDER / "llama3"
    hf.quantize(source, tmp_path, "int4", calibrate_steps=2, config=config)
    out, weights = tensors_of(tmp_path), goldens.weights("llama3")
    # What reaches the third layer has passed two that are stored already.
    moments = moments_of("llama3", config, hf.load(tmp_path).variables)
    name = "model.layers.2.self_attn.q_proj.weight"
    stored, found = out.stored(name), out.rounded(name)
    assert stored is not None and found is not None
    expected = gptq(stored.codec, weights[name], moments(name))
    np.testing.assert_array_equal(found.numbers, expected.numbers)
    np.testing.assert_array_equal(found.scales, expected.scales)
    unmoved = moments_of("llama3", config)(name)
    assert np.abs(unmoved - moments(name)).max() > 1e-3


def loss(found: hf.Loaded, batches: list[dict[str, np.ndarray]]) -> float:
    """Returns the mean cross-entropy in nats per token."""

    @jax.jit
    def mean(variables, batch):
        inputs = {key: batch[key] for key in ("segment_ids", "positions")}
        logits = found.model.logits(variables, batch["tokens"], **inputs)
        terms = optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["targets"]
        )
        return (terms * batch["weights"]).sum() / batch["weights"].sum()

    return float(np.mean([mean(found.variables, batch) for batch in batches]))


@pytest.mark.slow
def test_on_a_trained_net_its_loss_is_lower_than_with_the_nearest_codes(tmp_path):
    config = python_source(tiny.experiment(features=64, mlp=128, vocab_size=264))
    config.sequence_length = 64
    program = tiny.program(config)
    step, state = program.compile_step().run, tiny.begin(program)
    batches = graph.build(config).make_data(program.trainer.model).train()
    for _ in range(200):
        state, _ = step(state, program.place(next(batches)))
    held_out = [next(batches) for _ in range(8)]
    trained = {name: state[name] for name in ("params", "state")}
    losses = {}
    for name, steps in {"full": None, "nearest": None, "gptq": 16}.items():
        stored = {} if name == "full" else {"format": "int4", "calibrate_steps": steps}
        hf.save(tmp_path / name, config, trained, **stored)
        losses[name] = loss(hf.load(tmp_path / name), held_out)
    lost = {name: losses[name] - losses["full"] for name in ("nearest", "gptq")}
    assert 0 < lost["gptq"] < 0.7 * lost["nearest"], losses
