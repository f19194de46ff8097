"""Llama 2 against Hugging Face transformers, on the same random weights.

Tolerances are those that the goldens state: 20 times what float32 is off from float64
there, and at least 2e-5; the norm of the gradients within 1e-4 of itself.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maxfdl import graph
from maxfdl.mutations import to_linen, unroll_layers
from maxfdl.ops.cross_entropy import CrossEntropy
from maxfdl.train.loss import NextTokenLoss
from tests import goldens, tiny
from tests.ops.test_norm import numpy_rms_norm

CONFIG, WEIGHTS, GOLDEN = goldens.model("llama2")
HEADS = (CONFIG["num_attention_heads"], CONFIG["head_dim"])
WIDTH = CONFIG["hidden_size"]

# Theirs: ours, and from their layout (torch's [out, in]) to ours.
OUTSIDE = {
    "model.embed_tokens": ("embedding/table", lambda w: w),
    "model.norm": ("final_norm/scale", lambda w: w),
    "lm_head": ("head/kernel", np.transpose),
}
IN_LAYER = {
    "input_layernorm": ("attention_norm/scale", lambda w: w),
    "self_attn.q_proj": (
        "attention/query/kernel",
        lambda w: w.T.reshape(WIDTH, *HEADS),
    ),
    "self_attn.k_proj": ("attention/key/kernel", lambda w: w.T.reshape(WIDTH, *HEADS)),
    "self_attn.v_proj": (
        "attention/value/kernel",
        lambda w: w.T.reshape(WIDTH, *HEADS),
    ),
    "self_attn.o_proj": ("attention/out/kernel", lambda w: w.T.reshape(*HEADS, WIDTH)),
    "post_attention_layernorm": ("mlp_norm/scale", lambda w: w),
    "mlp.gate_proj": ("mlp/gate/kernel", np.transpose),
    "mlp.up_proj": ("mlp/up/kernel", np.transpose),
    "mlp.down_proj": ("mlp/down/kernel", np.transpose),
}
STACK = "decoder/stacks_0/layers_0"


def leaf(tree, path):
    return functools.reduce(lambda node, name: node[name], path.split("/"), tree)


def params_from(weights, num_layers):
    """Returns their weights as our tree."""
    tree = {}

    def put(path, value):
        *parents, name = path.split("/")
        node = functools.reduce(lambda n, each: n.setdefault(each, {}), parents, tree)
        node[name] = jnp.asarray(value)

    for theirs, (ours, convert) in OUTSIDE.items():
        put(ours, convert(weights[f"{theirs}.weight"]))
    for theirs, (ours, convert) in IN_LAYER.items():
        names = [f"model.layers.{i}.{theirs}.weight" for i in range(num_layers)]
        put(f"{STACK}/{ours}", np.stack([convert(weights[name]) for name in names]))
    return tree


def gradient_named(theirs, gradients):
    """Returns the gradient that is their `grad.<theirs>`, and theirs in our layout."""
    expected = GOLDEN[f"grad.{theirs}"]
    name = theirs.removesuffix(".weight")
    if name in OUTSIDE:
        path, convert = OUTSIDE[name]
        return leaf(gradients, path), convert(expected)
    _, _, index, name = name.split(".", 3)
    path, convert = IN_LAYER[name]
    return leaf(gradients, f"{STACK}/{path}")[int(index)], convert(expected)


def make(mutations, num_layers=CONFIG["num_hidden_layers"]):
    config = tiny.experiment(
        *mutations,
        features=WIDTH,
        num_layers=num_layers,
        num_heads=CONFIG["num_attention_heads"],
        num_kv_heads=CONFIG["num_key_value_heads"],
        head_dim=CONFIG["head_dim"],
        mlp=CONFIG["intermediate_size"],
        vocab_size=CONFIG["vocab_size"],
        norm_epsilon=CONFIG["rms_norm_eps"],
        rope_theta=CONFIG["rope_parameters"]["rope_theta"],
        tied=CONFIG["tie_word_embeddings"],
    )
    return graph.build(config).make_model()


def next_token_batch(tokens):
    """Every token but the last of a row is asked for the next one."""
    last = jnp.arange(tokens.shape[1]) == tokens.shape[1] - 1
    return {
        "targets": jnp.roll(tokens, -1, axis=1),
        "weights": jnp.broadcast_to(jnp.where(last, 0.0, 1.0), tokens.shape),
    }


VARIANTS = {
    f"{family}, {how}": first + second
    for (family, first), (how, second) in itertools.product(
        {"nnx": (), "linen": (to_linen,)}.items(),
        {"scanned": (), "unrolled": (unroll_layers,)}.items(),
    )
}


@pytest.fixture(scope="module", params=VARIANTS)
def results(request):
    """Returns output, loss and gradients of the golden's tokens."""
    model = make(VARIANTS[request.param])
    tokens = jnp.asarray(GOLDEN["input_ids"])
    loss = NextTokenLoss(CrossEntropy())

    def objective(params):
        output = model.apply({"params": params, "state": {}}, tokens)
        term = loss(output, next_token_batch(tokens))["cross_entropy"]
        return term.mean, (output.logits, output.hidden)

    params = params_from(WEIGHTS, CONFIG["num_hidden_layers"])
    jax.tree.map(lambda p, x: np.testing.assert_equal(x.shape, p.full_shape),
                 model.parameters(), params)  # fmt: skip
    grad = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (value, (logits, hidden)), gradients = grad(params)
    return {"logits": logits, "hidden": hidden, "loss": value, "grads": gradients}


def test_every_weight_of_theirs_is_used():
    in_layers = CONFIG["num_hidden_layers"] * len(IN_LAYER)
    assert len(WEIGHTS) == len(OUTSIDE) + in_layers


def assert_near(actual, name):
    atol = GOLDEN.tolerance(name)
    np.testing.assert_allclose(actual, GOLDEN[name], rtol=0, atol=atol)


def test_logits(results):
    assert_near(results["logits"], "logits")


def test_loss(results):
    assert_near(results["loss"], "loss")


def test_gradients(results):
    named = [name for name in GOLDEN if name.startswith("grad.")]
    assert len(named) == 3
    for name in named:
        ours, theirs = gradient_named(name.removeprefix("grad."), results["grads"])
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=GOLDEN.tolerance(name))


def test_norm_of_the_gradients(results):
    norm = optax.tree.norm(results["grads"])
    np.testing.assert_allclose(norm, GOLDEN["grad_norm"], rtol=1e-4)


def test_hidden_vectors_after_all_layers(results):
    scale, epsilon = WEIGHTS["model.norm.weight"], CONFIG["rms_norm_eps"]
    normed = numpy_rms_norm(GOLDEN["hidden.last"], scale, epsilon)
    atol = GOLDEN.tolerance("hidden.last")
    np.testing.assert_allclose(results["hidden"], normed, rtol=0, atol=atol)


@pytest.mark.parametrize("family", [(), (to_linen,)], ids=["nnx", "linen"])
def test_hidden_vectors_after_one_layer(family):
    variables = {"params": params_from(WEIGHTS, 1), "state": {}}
    table = variables["params"]["embedding"]["table"]
    tokens = jnp.asarray(GOLDEN["input_ids"])
    np.testing.assert_array_equal(table[tokens], GOLDEN["hidden.embed"])
    hidden = make(family, num_layers=1).apply(variables, tokens).hidden
    scale, epsilon = WEIGHTS["model.norm.weight"], CONFIG["rms_norm_eps"]
    normed = numpy_rms_norm(GOLDEN["hidden.layer0"], scale, epsilon)
    atol = GOLDEN.tolerance("hidden.layer0")
    np.testing.assert_allclose(hidden, normed, rtol=0, atol=atol)


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_continuation(variant):
    model = make(VARIANTS[variant])
    params = params_from(WEIGHTS, CONFIG["num_hidden_layers"])
    logits = jax.jit(functools.partial(model.logits, {"params": params, "state": {}}))
    rows, start, end = 2, 12, 20
    # The tokens to come are 0 until they are known: what comes later is not seen.
    tokens = np.zeros((rows, end), np.int32)
    tokens[:, :start] = GOLDEN["input_ids"][:, :start]
    for place in range(start, end):
        best = jnp.argmax(logits(jnp.asarray(tokens))[:, place - 1], axis=-1)
        tokens[:, place] = best
    np.testing.assert_array_equal(tokens[:, start:], GOLDEN["greedy_ids"])
