"""Training of a part of the parameters: no gradient, no state, and the same numbers."""

import functools
import types

import jax
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.errors import UserError
from maxfdl.layers.frozen import frozen, trained
from maxfdl.model import Model
from maxfdl.mutations import (
    average_weights,
    freeze,
    gradient_accumulation,
    mesh,
    offload_optimizer,
    offload_parameters,
    to_linen,
    use_adafactor,
    use_muon,
    use_muonclip,
    use_schedule_free,
    use_sgd,
    zero1,
)
from tests import tiny
from tests.layers.families import assert_same_bits

PATHS = ("embedding", "**.mlp.up", "decoder.stacks[0].layers[0].attention")
freezing = functools.partial(freeze, paths=PATHS)

RUNS = {
    "nnx": (),
    "linen": (to_linen,),
    "microbatches on replicas, sharded state": (
        functools.partial(mesh, data=2, fsdp=2, tensor=1),
        functools.partial(gradient_accumulation, steps=2),
        zero1,
    ),
    "on the host": (offload_optimizer, offload_parameters, average_weights),
}


def parts(program, tree):
    """Returns the frozen and the trained part of a tree like the parameters."""
    declared = program.trainer.model.parameters()
    return frozen(declared, tree), trained(declared, tree)


def num_bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def program_of(*mutations):
    return tiny.program(
        tiny.experiment(*mutations), devices=4 if zero1 in mutations else 1
    )


@functools.cache
def on_one_device(steps):
    """Returns losses and state of a run with a frozen part."""
    return tiny.train(tiny.experiment(freezing), steps)


@pytest.mark.parametrize("run", RUNS)
def test_what_is_frozen_keeps_every_bit_and_the_rest_trains_alike(run):
    mutations = RUNS[run]
    losses, state = tiny.train(
        tiny.experiment(freezing, *mutations), 3, 4 if zero1 in mutations else 1
    )
    program = program_of(freezing, *mutations)
    before, _ = parts(program, tiny.begin(program)["params"])
    after, changed = parts(program, state["params"])
    assert_same_bits(jax.device_get(after), jax.device_get(before))
    expected, reference = on_one_device(3)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, changed, parts(program, reference["params"])[1])


def test_gradients_are_those_of_all_parameters_for_what_is_trained():
    whole, part = program_of(), program_of(freezing)
    batch = whole.place(tiny.batch(0))
    all_grads, _ = jax.jit(whole.trainer.gradients_of)(tiny.begin(whole), batch)
    grads, _ = jax.jit(part.trainer.gradients_of)(tiny.begin(part), batch)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8)
    jax.tree.map(close, grads, parts(part, all_grads)[1])


RULES = {
    "adamw": (2, ()),
    "sgd": (0, (use_sgd,)),
    "muon": (None, (use_muon,)),
    "adafactor": (None, (use_adafactor,)),
    "schedule-free": (2, (use_schedule_free,)),
}


@pytest.mark.parametrize("family", [(), (to_linen,)], ids=["nnx", "linen"])
@pytest.mark.parametrize("rule", RULES)
def test_bytes_are_those_of_what_is_trained(rule, family):
    copies, mutations = RULES[rule]
    whole = program_of(*mutations, *family)
    part = program_of(freezing, *mutations, *family)
    state = jax.eval_shape(part.trainer.init)
    grads, _ = jax.eval_shape(part.trainer.gradients_of, state, part.abstract_batch())
    fixed, changing = parts(part, state["params"])
    assert num_bytes(fixed) > num_bytes(changing) / 4
    assert num_bytes(state["params"]) == num_bytes(fixed) + num_bytes(changing)
    assert num_bytes(grads) == num_bytes(changing)
    assert jax.tree.structure(grads) == jax.tree.structure(changing)
    counters = 16
    if copies is not None:
        excess = num_bytes(state["optimizer"]) - copies * num_bytes(changing)
        assert 0 <= excess <= counters
    of_whole = jax.eval_shape(whole.trainer.init)
    assert num_bytes(state["optimizer"]) <= num_bytes(of_whole["optimizer"])


def test_frozen_weights_may_be_stored_in_another_type():
    narrow = functools.partial(freezing, dtype="bfloat16")
    program = program_of(narrow)
    fixed, changing = parts(program, program.abstract_state()["params"])
    kinds = [
        {leaf.dtype.name for leaf in jax.tree.leaves(t)} for t in (fixed, changing)
    ]
    assert kinds == [{"bfloat16"}, {"float32"}]
    losses, state = tiny.train(tiny.experiment(narrow), 3)
    np.testing.assert_allclose(losses, on_one_device(3)[0], rtol=5e-3)
    kept = jax.tree.map(lambda x: x.dtype, state["params"])
    assert kept == jax.tree.map(lambda x: x.dtype, program.abstract_state()["params"])


def test_what_is_evaluated_and_exported_is_whole():
    program = program_of(freezing, average_weights)
    state = tiny.begin(program)
    state, _ = program.compile_step().run(state, program.place(tiny.batch(0)))
    found = program.evaluated(state)
    assert jax.tree.structure(found["params"]) == jax.tree.structure(state["params"])
    fixed, average = parts(program, found["params"])
    assert_same_bits(fixed, parts(program, state["params"])[0])
    kept = state["updates"]["weight_average"]["average"]
    jax.tree.map(np.testing.assert_array_equal, average, kept)


def test_a_checkpoint_of_a_frozen_run_goes_on_with_the_same_bits(tmp_path):
    program = program_of(freezing)
    run, state = program.compile_step().run, tiny.begin(program)
    state, _ = run(state, program.place(tiny.batch(0)))
    saved = Checkpointer(directory=tmp_path)
    saved.save(1, state, types.SimpleNamespace(get_state=dict), "{}")
    read = saved.read(1, program.abstract_state())
    saved.close()
    on, restored = (run(each, program.place(tiny.batch(1))) for each in (state, read))
    assert_same_bits(jax.device_get(restored), jax.device_get(on))


@pytest.mark.parametrize("paths", [("**.query",), ("**.key",), ("**.query.kernel",)])
def test_qk_clip_of_frozen_queries_and_keys_is_refused(paths):
    config = tiny.experiment(
        use_muonclip, functools.partial(freeze, paths=paths), num_kv_heads=4
    )
    made = graph.build(config)
    with pytest.raises(UserError, match="QkClip scales query and key .* are frozen"):
        made.make_trainer(made.make_sharding(jax.devices()[:1]))


def test_a_model_knows_what_it_trains():
    model = graph.build(tiny.experiment(freezing)).make_model()
    assert isinstance(model, Model)
    declared = model.parameters()
    assert not declared["embedding"]["table"].trained
    assert declared["head"]["kernel"].trained
