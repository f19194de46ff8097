"""Codes that are chosen by the data of an experiment."""

import jax
import numpy as np
import optax
import pytest

from maxfdl import graph, hf
from maxfdl.hf.calibration import by_name, second_moments
from maxfdl.mutations import python_source
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


@pytest.mark.parametrize("name", ["llama3", "mixtral"])
def test_moments_are_those_of_what_products_multiply(name):
    config, batches = small(name)
    params, model = loaded(name).variables, loaded(name).model
    state = second_moments(config, params, steps=2)
    bindings = bind(table_of(hf.Folder(goldens.FOLDER / name).config["model_type"]),
                    leaves_of(model))  # fmt: skip
    moments = by_name(state, bindings)
    weights = goldens.weights(name)
    x = weights["model.embed_tokens.weight"][
        np.concatenate([b["tokens"] for b in batches])
    ]
    x = x.reshape(-1, x.shape[-1]).astype(np.float64)
    scale = weights["model.layers.0.input_layernorm.weight"]
    eps = hf.Folder(goldens.FOLDER / name).config["rms_norm_eps"]
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * scale
    for each in "qkv":
        found = moments(f"model.layers.0.self_attn.{each}_proj.weight")
        np.testing.assert_allclose(found, x.T @ x, rtol=1e-4, atol=1e-4)
    if name == "mixtral":  # each token has two experts
        experts = "model.layers.0.block_sparse_moe.experts."
        inputs = [moments(f"{experts}{i}.w1.weight") for i in range(4)]
        outputs = [moments(f"{experts}{i}.w2.weight") for i in range(4)]
        assert not np.array_equal(inputs[0], inputs[1])
        np.testing.assert_array_equal(inputs[0], moments(f"{experts}0.w3.weight"))
        assert outputs[0].shape == (16, 16)
        tokens = sum(np.trace(each) for each in inputs) / 2
        scale = weights["model.layers.0.post_attention_layernorm.weight"]
        assert tokens == pytest.approx(len(x) * 40 * np.square(scale).mean(), rel=0.1)


def test_a_folder_is_stored_with_the_codes_that_its_data_choose(tmp_path):
    config, _ = small("llama3")
    source = goldens.FOLDER / "llama3"
    hf.quantize(source, tmp_path, "int4", calibrate_steps=2, config=config)
    out, weights = tensors_of(tmp_path), goldens.weights("llama3")
    model = loaded("llama3").model
    state = second_moments(config, loaded("llama3").variables, 2)
    moments = by_name(state, bind(table_of("llama"), leaves_of(model)))
    name = "model.layers.2.self_attn.o_proj.weight"
    stored = out.stored(name)
    assert stored is not None
    parts = gptq(stored.codec, weights[name], moments(name))
    for part, values in out.parts(name).items():
        np.testing.assert_array_equal(values, parts[part])


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
