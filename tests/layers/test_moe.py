"""Mixtures of experts against transformers, in both families, alone and in stacks.

`goldens/moe_blocks` has one block of each published kind with random weights, its
input, output and gradients; the file's metadata says which versions made it.
"""

import functools
import pathlib
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from maxfdl.layers import checks
from maxfdl.layers.execution import Scan, Unroll
from maxfdl.layers.sinks import SinkKey
from maxfdl.ops import balance
from maxfdl.ops.experts import Capacity, Dropless
from maxfdl.ops.glu import ClampedSwiGlu, Glu
from maxfdl.ops.grouped_dot import GroupedDot
from maxfdl.ops.mask import Places
from maxfdl.ops.routing import GroupLimit, TopK
from maxfdl.report import hlo
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding
from tests.layers import families
from tests.layers.families import (
    FEATURES,
    VOCAB,
    Case,
    assert_same_bits,
    on_vectors,
    packed_tokens,
    value_and_gradients,
)

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "moe_blocks"
KEY = jax.random.key(3)
LOAD = SinkKey(("layer", "router"), "load")
DROPPED = SinkKey(("layer", "experts"), "dropped")
EXPERTS, HIDDEN = 8, 4

# Of each published kind: its routing, then what else it has.
BLOCKS = {
    "mixtral": dict(routing=TopK(2, renormalise=True)),
    "qwen3_moe": dict(routing=TopK(3)),
    "qwen3_next": dict(routing=TopK(3, renormalise=True), shared=3, shared_gate=True),
    "deepseek_v2_lite": dict(routing=TopK(3, scale=1.5), shared=2 * HIDDEN),
    "deepseek_v2": dict(
        routing=TopK(3, scale=4.0, limit=GroupLimit(4, 2, best=1)), shared=2 * HIDDEN
    ),
    "deepseek_v3": dict(
        routing=TopK(
            3, "sigmoid", renormalise=True, scale=2.5, limit=GroupLimit(4, 2, best=2)
        ),
        selection_bias=True,
        shared=HIDDEN,
    ),
    "glm4_moe": dict(
        routing=TopK(3, "sigmoid", renormalise=True, scale=1.5),
        selection_bias=True,
        shared=HIDDEN,
    ),
    "gpt_oss": dict(
        routing=TopK(3, renormalise=True), bias=True, glu=ClampedSwiGlu(1.702, 1.0)
    ),
    "llama4": dict(routing=TopK(1, "sigmoid"), weighted="input", shared=HIDDEN),
}


def block(
    family: ModuleType,
    *,
    routing,
    glu=Glu(),  # noqa: B008 (frozen)
    bias=False,
    selection_bias=False,
    shared=None,
    shared_gate=False,
    weighted="output",
    dispatch=Dropless(),  # noqa: B008 (frozen)
    dot=GroupedDot(),  # noqa: B008 (frozen)
):
    grouped = functools.partial(families.grouped_linear(family), dot=dot, use_bias=bias)
    router = functools.partial(
        families.router(family),
        routing=routing,
        use_bias=bias,
        use_selection_bias=selection_bias,
    )
    experts = functools.partial(
        family.Experts,
        **dict.fromkeys(("gate", "up", "down"), grouped),
        glu=glu,
        dispatch=dispatch,
        hidden=HIDDEN,
        weighted=weighted,
    )
    shared = shared and functools.partial(families.gated_mlp(family), hidden=shared)
    return functools.partial(
        family.MoE,
        router=router,
        experts=experts,
        shared=shared,
        shared_gate=families.linear(family) if shared_gate else None,
        num_experts=EXPERTS,
    )


def model_of(family: str, **parts):
    case = Case(
        lambda layers: block(layers, **parts), {"features": FEATURES}, on_vectors
    )
    return case.model(family)


@functools.cache
def golden(name):
    """Returns a block's tensors by the end of their names."""
    tensors = load_file(GOLDENS / "moe_blocks.safetensors")
    return {
        k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{name}.")
    }


def ours(name, kind):
    """Returns weights or gradients of a golden block as our tree.

    transformers keeps gate and up in one array, in halves or interleaved, and kernels
    as [experts, outputs, inputs] or the other way round.
    """
    theirs = {k[len(kind) + 1 :]: v for k, v in golden(name).items() if kind in k}
    router = "router" if name in ("gpt_oss", "llama4") else "gate"
    gate_up, down = theirs["experts.gate_up_proj"], theirs["experts.down_proj"]
    if router == "gate":
        gate_up, down = gate_up.swapaxes(1, 2), down.swapaxes(1, 2)
    gate, up = np.split(gate_up, 2, axis=-1)
    if name == "gpt_oss":
        gate, up = gate_up[..., ::2], gate_up[..., 1::2]
    parts = {"gate": gate, "up": up, "down": down}
    experts = {part: {"kernel": kernel} for part, kernel in parts.items()}
    tree = {"router": {"kernel": theirs[f"{router}.weight"].T}, "experts": experts}
    if name == "gpt_oss":
        tree["router"]["bias"] = theirs["router.bias"]
        both = theirs["experts.gate_up_proj_bias"]
        biases = both[:, ::2], both[:, 1::2], theirs["experts.down_proj_bias"]
        for part, bias in zip(("gate", "up", "down"), biases, strict=True):
            experts[part]["bias"] = bias
    for key, value in theirs.items():
        if key.startswith("shared_expert_gate"):
            tree["shared_gate"] = {"kernel": value[0]}
        elif key.startswith("shared_expert"):
            part = key.split(".")[1].removesuffix("_proj")
            tree.setdefault("shared", {})[part] = {"kernel": value.T}
    return tree


def variables_of(name, model):
    """Returns the golden weights; row t of the embedding is token t of the input."""
    x = golden(name)["x"].reshape(-1, FEATURES)
    table = np.zeros((VOCAB, FEATURES), np.float32)
    table[: len(x)] = x
    params = {"embedding": {"table": table}, "layer": ours(name, "weight")}
    state = {}
    if BLOCKS[name].get("selection_bias"):
        bias = golden(name)["weight.gate.e_score_correction_bias"]
        state = {"layer": {"router": {"selection_bias": bias}}}
    fresh = jax.eval_shape(model.init, KEY)
    variables = {"params": params, "state": state}
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, fresh)
    return jax.tree.map(jnp.asarray, variables)


def check_against_golden(name, model):
    variables, cotangent = variables_of(name, model), golden(name)["cotangent"]
    tokens = jnp.arange(12).reshape(2, 6)

    def objective(params):
        out = model.apply({**variables, "params": params}, tokens)
        return jnp.sum(out.hidden * cotangent), out.hidden

    gradients, y = jax.jit(jax.grad(objective, has_aux=True))(variables["params"])
    np.testing.assert_allclose(y, golden(name)["y"], rtol=0, atol=5e-6)
    dx = gradients.pop("embedding")["table"][:12].reshape(2, 6, FEATURES)
    np.testing.assert_allclose(dx, golden(name)["dx"], rtol=0, atol=2e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5),
        gradients,
        {"layer": ours(name, "grad")},
    )


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_is_the_block_of_transformers(name, family):
    check_against_golden(name, model_of(family, **BLOCKS[name]))


@pytest.mark.parametrize("name", ["gpt_oss", "llama4", "deepseek_v3"])
@pytest.mark.parametrize(
    "parts",
    [{"dispatch": Capacity(float(EXPERTS))}, {"dot": GroupedDot("ragged")}],
    ids=["capacity for all", "ragged"],
)
def test_stays_so_however_tokens_get_to_their_experts(name, parts):
    check_against_golden(name, model_of("nnx", **BLOCKS[name], **parts))


def sinks_of(model, variables, **inputs):
    (_, state, sinks), _ = value_and_gradients(model, variables, **inputs)
    return sinks, state


def test_sinks_are_the_sums_of_what_the_router_did():
    model = model_of("nnx", **BLOCKS["deepseek_v3"], dispatch=Capacity(0.5))
    variables = jax.jit(model.init)(KEY)
    inputs = packed_tokens()
    # The first document becomes padding.
    inputs["segment_ids"] = jnp.where(inputs["segment_ids"] == 1, 0, 2)
    sinks, _ = sinks_of(model, variables, **inputs)
    table = variables["params"]["embedding"]["table"]
    kernel = variables["params"]["layer"]["router"]["kernel"]
    logits = table[inputs["tokens"]] @ kernel
    choice = BLOCKS["deepseek_v3"]["routing"](logits)
    mask = balance.counted(Places(inputs["positions"], inputs["segment_ids"]))
    assert 0 < mask.sum() < mask.size

    counts = np.bincount(np.asarray(choice.experts)[mask].ravel(), minlength=EXPERTS)
    np.testing.assert_array_equal(sinks[LOAD].counts.value, counts)
    shares = sinks[LOAD].probability
    assert shares.weight == mask.sum()
    np.testing.assert_allclose(shares.sum.sum(), mask.sum(), rtol=1e-6)
    z = sinks[LOAD].z
    assert z.weight == mask.sum()
    np.testing.assert_allclose(z.sum, balance.router_z(logits, mask), rtol=1e-5)
    rows = sinks[LOAD].sequence_balance
    expected = balance.sequence_balance(choice.scores, 3, mask)
    assert rows.weight == 2
    np.testing.assert_allclose(rows.sum, expected.sum(), rtol=1e-5)
    groups = Capacity(0.5)(choice.experts.reshape(-1, 3), EXPERTS)
    dropped = sinks[DROPPED].value
    assert dropped == groups.dropped(mask.reshape(-1)) > 0


def test_nothing_is_dropped_without_a_capacity():
    model = model_of("nnx", **BLOCKS["mixtral"])
    sinks, _ = sinks_of(model, jax.jit(model.init)(KEY), **packed_tokens())
    assert sinks[DROPPED].value == 0
    assert sinks[LOAD].counts.value.sum() == 2 * packed_tokens()["tokens"].size


def test_other_tokens_of_a_dropless_batch_change_nothing():
    model = model_of("nnx", **BLOCKS["deepseek_v3"])
    variables, inputs = jax.jit(model.init)(KEY), packed_tokens(rows=4)
    run = jax.jit(lambda inputs: model.apply(variables, **inputs).hidden)
    both, one = run(inputs), run(jax.tree.map(lambda x: x[2:3], inputs))
    np.testing.assert_allclose(both[2:3], one, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "dispatch",
    [Dropless(), pytest.param(Capacity(0.7), marks=pytest.mark.slow)],
    ids=str,
)
def test_a_mesh_changes_nothing(dispatch):
    model = model_of("nnx", **BLOCKS["deepseek_v3"], dispatch=dispatch)
    variables, inputs = jax.jit(model.init)(KEY), packed_tokens(rows=4)
    expected = value_and_gradients(model, variables, **inputs)

    sharding = Sharding(MeshShape(data=2, fsdp=2, tensor=2).build(), AxisRules())
    on_mesh = model_of("nnx", **BLOCKS["deepseek_v3"], dispatch=dispatch)
    on_mesh.sharding = sharding
    put = lambda value, p: jax.device_put(value, sharding.named(p.full_axes))  # noqa: E731
    params = jax.tree.map(put, variables["params"], model.parameters())
    whole = jax.device_put(variables["state"], sharding.named(()))
    actual = value_and_gradients(on_mesh, {"params": params, "state": whole}, **inputs)
    jax.tree.map(assert_close, actual, expected)


def test_experts_on_an_axis_that_cuts_the_batch_too_are_not_gathered():
    """Each of eight devices has one expert and one row; tokens travel, not weights."""
    kind = dict(**BLOCKS["mixtral"], dispatch=Capacity(0.7))
    model = model_of("nnx", **kind)
    variables, inputs = jax.jit(model.init)(KEY), packed_tokens(rows=8)
    expected = value_and_gradients(model, variables, **inputs)

    def on_mesh(**rules):
        """Returns value and gradients, and how often a kernel's bytes are gathered."""
        model = model_of("nnx", **kind)
        rules = AxisRules(experts=("fsdp",), **rules)
        model.sharding = sharding = Sharding(MeshShape(fsdp=8).build(), rules)
        params = jax.device_put(
            variables["params"],
            jax.tree.map(lambda p: sharding.named(p.full_axes), model.parameters()),
        )
        run = functools.partial(value_and_gradients, model)
        given = {"params": params, "state": variables["state"]}
        compiled = jax.jit(run).lower(given, **inputs).compile()
        collectives = hlo.read(compiled.as_text()).collectives
        kernel = params["layer"]["experts"]["up"]["kernel"]
        assert kernel.addressable_shards[0].data.shape[0] == 1
        gathers = [c.payload for c in collectives if c.kind == "all-gather"]
        return compiled(given, **inputs), gathers.count(kernel.nbytes)

    actual, gathers = on_mesh()
    jax.tree.map(assert_close, actual, expected)
    gathered, gathers_of_all = on_mesh(cut_in_use=())
    jax.tree.map(assert_close, gathered, expected)
    assert gathers_of_all - gathers == 3  # gate, up and down


def assert_close(actual, expected):
    """Whole numbers are equal; sums may be taken in another order."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if expected.dtype == np.int32:
        np.testing.assert_array_equal(actual, expected)
    size = max(1.0, np.max(np.abs(expected)))
    np.testing.assert_allclose(actual / size, expected / size, rtol=0, atol=2e-6)


def stacked(family, execution, remat):
    def factory(layers):
        parts = block(layers, **BLOCKS["deepseek_v3"], dispatch=Capacity(0.7))
        return families.stack(layers, parts, execution=execution, remat=remat)

    return Case(factory, {"features": FEATURES}, on_vectors).model(family)


@pytest.fixture(scope="module")
def stack_variables():
    """Weights of three layers whose selection biases differ."""
    variables = stacked("nnx", Scan(), "none").init(KEY)
    shapes = jax.tree.map(jnp.shape, variables["state"])
    where = {"layer": {"layers_0": {"router": {"selection_bias": (3, EXPERTS)}}}}
    assert shapes == where
    assert not np.any(jax.tree.leaves(variables["state"])[0])
    bias = jnp.sin(jnp.arange(3.0 * EXPERTS)).reshape(3, EXPERTS)
    return {**variables, "state": jax.tree.map(lambda _: bias, variables["state"])}


@pytest.fixture(scope="module")
def scanned(stack_variables):
    model = stacked("nnx", Scan(), "none")
    return value_and_gradients(model, stack_variables, **packed_tokens())


@pytest.mark.parametrize(
    "remat", ["none", pytest.param("full", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("execution", [Scan(), Unroll()], ids=["scan", "unroll"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_stacks_keep_state_and_count_once(
    family, execution, remat, stack_variables, scanned
):
    model = stacked(family, execution, remat)
    results = value_and_gradients(model, stack_variables, **packed_tokens())
    (hidden, state, sinks), gradients = results
    (expected, _, expected_sinks), expected_gradients = scanned
    np.testing.assert_allclose(hidden, expected, rtol=0, atol=2e-6)
    jax.tree.map(assert_close, (sinks, gradients), (expected_sinks, expected_gradients))
    assert_same_bits(state, stack_variables["state"])
    counts = sinks[SinkKey(("layer", "layers_0", "router"), "load")].counts.value
    assert counts.shape == (3, EXPERTS)
    np.testing.assert_array_equal(
        counts.sum(1), [3 * packed_tokens()["tokens"].size] * 3
    )


def test_declares_experts_as_batched_kernels():
    layer = model_of("nnx", **BLOCKS["gpt_oss"]).parameters()["layer"]
    kernel = layer["experts"]["down"]["kernel"]
    assert kernel.shape == (EXPERTS, HIDDEN, FEATURES)
    assert kernel.axes == ("experts", "expert_mlp", "embed")
    assert (kernel.batched, kernel.contracted, kernel.fan_in) == (1, 1, HIDDEN)
    bias = layer["experts"]["gate"]["bias"]
    assert (bias.axes, bias.role) == (("experts", "expert_mlp"), "bias")
    assert (bias.batched, bias.contracted) == (1, 0)


def node(**changes):
    """Returns something with the fields of a MoE node."""
    limit = changes.pop("limit", None)
    routing = TopK(changes.pop("k", 2), limit=limit)
    fields = dict(num_experts=8, shared=None, shared_gate=None) | changes
    router = type("Node", (), {"routing": routing})
    return type("Node", (), fields | {"router": router})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"k": 9}, "TopK k (9) must not exceed num_experts (8)."),
        (
            {"limit": GroupLimit(3, 1, 1)},
            "GroupLimit groups (3) must divide num_experts (8).",
        ),
        (
            {"limit": GroupLimit(4, 1, 2), "k": 3},
            "GroupLimit best (2) and TopK k (3) must not exceed the experts of one"
            " group (2) and of all kept ones (2).",
        ),
        (
            {"shared_gate": "linear"},
            "MoE shared_gate must be None where shared is: it has nothing to gate.",
        ),
    ],
)
def test_refuses_what_does_not_fit_together(changes, problem):
    assert list(checks.check_moe(node(**changes))) == [problem]


def test_accepts_what_fits():
    assert not list(checks.check_moe(node(limit=GroupLimit(4, 2, 2), k=4)))
