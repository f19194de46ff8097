"""Generation with caches, against the forward pass without."""

import functools
import math

import fiddle as fdl
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdl_configs import layers
from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.inference import NOTHING, Generator, Sampler, generate
from maxfdl.inference.generator import _rounded
from maxfdl.layers.execution import Repeats
from maxfdl.mutations.family import to_linen
from maxfdl.mutations.mesh import mesh
from maxfdl.ops.rope import LongRope
from tests import tiny

PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]]


@functools.cache
def made(*mutations):
    model = graph.build(tiny.experiment(*mutations)).make_model()
    return model, model.init(jax.random.key(0))


@functools.cache
def with_positions(length):
    """Returns the mutation that adds a table of positions."""

    def mutation(config):
        config = graph.copy(config)
        config.model.position_embedding = layers.position_embedding(length)
        config.sequence_length = length
        return config

    return mutation


def uncached(model, variables, prompt, count):
    """The likeliest continuation, by a forward pass of the whole text per token."""
    logits_of = jax.jit(model.logits)
    row = list(prompt)
    for _ in range(count):
        padded = jnp.asarray([row + [0] * (48 - len(row))])
        row.append(int(jnp.argmax(logits_of(variables, padded)[0, len(row) - 1])))
    return row[len(prompt) :]


@pytest.mark.parametrize("mutations", [(), (to_linen,)], ids=["nnx", "linen"])
def test_greedy_tokens_are_those_of_the_uncached_model(mutations):
    model, variables = made(*mutations)
    out = generate(model, variables, PROMPTS, max_new_tokens=21)
    assert out == [uncached(model, variables, prompt, 21) for prompt in PROMPTS]
    assert [row.reason for row in out] == ["length"] * 3


def test_an_array_of_prompts_will_do():
    model, variables = made()
    prompts = np.asarray([[3, 1, 4], [1, 5, 9]])
    assert generate(model, variables, prompts, max_new_tokens=5) == generate(
        model, variables, prompts.tolist(), max_new_tokens=5
    )


@pytest.mark.parametrize(
    "row, message",
    [
        ([1, 2, -1], r"tokens\[1\]\[2\] \(-1\) must be from 0 to {last}, for"),
        ([1, 10**6], r"tokens\[1\]\[1\] \(1000000\) must be from 0 to {last}, for"),
        ([2**40], r"tokens\[1\]\[0\] \(1099511627776\) must be from"),
        ([1.5], r"tokens\[1\] \(float64\) must be ids, which are integers"),
        (["a"], r"tokens\[1\] \(<U1\) must be ids, which are integers"),
    ],
)
@pytest.mark.parametrize("mutations", [(), (to_linen,)], ids=["nnx", "linen"])
def test_ids_without_a_row_in_the_model_are_refused(row, message, mutations):
    model, variables = made(*mutations)
    message = message.format(last=model.network.vocab_size - 1)
    with pytest.raises(UserError, match=message):
        generate(model, variables, [[1, 2, 3], row], max_new_tokens=2)
    with pytest.raises(UserError, match=message):
        next(Generator(model).stream(variables, [[1], row], max_new_tokens=2))


def test_a_row_ends_after_a_stop_token():
    model, variables = made()
    whole = generate(model, variables, PROMPTS, max_new_tokens=12)
    stop = whole[0][4]
    out = generate(model, variables, PROMPTS, max_new_tokens=12, stop_tokens=[stop])
    for full, row in zip(whole, out, strict=True):
        stops = stop in full
        assert row == (full[: full.index(stop) + 1] if stops else full)
        assert row.reason == ("stop" if stops else "length")
    assert out[0].reason == "stop"


def test_a_single_new_token_comes_from_the_prompt_alone():
    model, variables = made()
    out = generate(model, variables, PROMPTS, max_new_tokens=1)
    assert out == [uncached(model, variables, prompt, 1) for prompt in PROMPTS]


def test_a_drawn_row_depends_on_its_seed_and_on_nothing_beside_it():
    model, variables = made()
    settings = dict(max_new_tokens=14, temperature=1.0, top_k=40, top_p=0.95)
    together = generate(model, variables, PROMPTS, seed=[1, 2, 3], **settings)
    for prompt, seed, row in zip(PROMPTS, [1, 2, 3], together, strict=True):
        assert generate(model, variables, [prompt], seed=seed, **settings) == [row]
    same = [PROMPTS[0]] * 3
    drawn = generate(model, variables, same, seed=[1, 2, 1], **settings)
    assert drawn[0] == drawn[2] == together[0] != drawn[1]


def test_a_drawn_row_does_not_depend_on_how_many_tokens_are_wanted():
    model, variables = made()
    settings = dict(temperature=1.0, seed=4)
    short = generate(model, variables, PROMPTS[:1], max_new_tokens=5, **settings)
    long = generate(model, variables, PROMPTS[:1], max_new_tokens=40, **settings)
    assert long[0][:5] == short[0]


def test_a_high_repetition_penalty_makes_all_tokens_new():
    model, variables = made()
    (row,) = generate(
        model, variables, PROMPTS[2:], max_new_tokens=30, repetition_penalty=1e6
    )
    text = PROMPTS[2] + row
    assert len(set(text)) == len(text)


def test_a_stream_gives_a_token_a_row_until_the_last_ends():
    model, variables = made()
    whole = generate(model, variables, PROMPTS, max_new_tokens=12)
    stop = whole[0][4]
    generator = Generator(model, stop_tokens=[stop], run_length=3)
    steps = [*generator.stream(variables, PROMPTS, max_new_tokens=12)]
    expected = generate(
        model, variables, PROMPTS, max_new_tokens=12, stop_tokens=[stop]
    )
    assert len(steps) == max(map(len, expected))
    for i, row in enumerate(expected):
        column = [int(step[i]) for step in steps]
        assert column == row + [NOTHING] * (len(steps) - len(row))


def test_texts_of_other_lengths_share_the_compiled_programs():
    model, variables = made()
    generator = Generator(model)
    for length, new in ((3, 5), (9, 7), (12, 8)):
        generator.generate(variables, [[1] * length], max_new_tokens=new)
    assert generator._prefill._cache_size() == 2  # caches for 16 and for 24
    assert generator._decode._cache_size() == 2


def test_lengths_are_rounded_up_to_a_few_sizes():
    sizes = {_rounded(n): n for n in range(1, 100)}
    assert list(sizes) == [16, 24, 32, 48, 64, 96, 128]
    assert all(size >= n for size, n in sizes.items())


@pytest.mark.parametrize(
    "shape",
    [
        dict(fsdp=1, tensor=1),
        dict(fsdp=8, tensor=1),
        dict(fsdp=2, tensor=2, context=2),
    ],
    ids=str,
)
def test_a_mesh_gives_the_tokens_of_one_device(shape):
    model, variables = made()
    expected = generate(model, variables, PROMPTS, max_new_tokens=10)
    experiment = graph.build(tiny.experiment(functools.partial(mesh, **shape)))
    devices = jax.devices()[: math.prod(shape.values())]
    trainer = experiment.make_trainer(experiment.make_sharding(devices))
    places = {k: trainer.state_shardings()[k] for k in ("params", "state")}
    placed = jax.device_put(variables, places)
    assert generate(trainer.model, placed, PROMPTS, max_new_tokens=10) == expected


@pytest.mark.parametrize(
    "prompts, settings, message",
    [
        ([[1], []], {}, r"rows of \[1, 0\]"),
        ([], {}, "at least one row"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens .0. must be at least 1"),
        ([[1]], {"temperature": -0.5}, "temperature .-0.5. must not be negative"),
    ],
)
def test_what_cannot_be_is_refused(prompts, settings, message):
    model, variables = made()
    with pytest.raises(ValueError, match=message):
        generate(model, variables, prompts, **{"max_new_tokens": 4} | settings)


@pytest.mark.parametrize("mutations", [(), (to_linen,)], ids=["nnx", "linen"])
def test_documents_end_where_learned_positions_do(mutations):
    model, variables = made(with_positions(8), *mutations)
    # The last token is drawn and never read, so it needs no position.
    (row,) = generate(model, variables, [[1] * 6], max_new_tokens=3)
    assert len(row) == 3
    with pytest.raises(UserError) as error:
        generate(model, variables, [[1], [1] * 6], max_new_tokens=4)
    assert str(error.value) == (
        "9 positions are needed (for a prompt of 6 tokens and max_new_tokens 4), but"
        " the model has learned 8 (position_embedding.length); take fewer tokens."
    )


def test_documents_that_memory_has_no_room_for_are_refused():
    model, variables = made()
    with pytest.raises(
        UserError, match="caches of 402653184 tokens need .* GiB of mem"
    ):
        generate(model, variables, [[1]], max_new_tokens=3 * 10**8)
    with pytest.raises(UserError, match="max_new_tokens .* below 1073741824 tokens"):
        generate(model, variables, [[1]], max_new_tokens=10**12)


def test_a_prompt_is_traced_once():
    config, traced = tiny.experiment(), []
    model = graph.build(config).make_model()
    apply = model.apply
    model.apply = lambda *args, **kwargs: traced.append(1) or apply(*args, **kwargs)
    Generator(model).generate(model.init(jax.random.key(0)), [[1]], max_new_tokens=1)
    assert len(traced) == 2  # of the prompt and of the next token


def test_a_sampler_may_be_given_to_a_generator():
    model, variables = made()
    generator = Generator(model, Sampler(temperature=1.0, min_p=0.01))
    rows = generator.generate(variables, PROMPTS, max_new_tokens=6, seed=1)
    assert rows == generate(
        model, variables, PROMPTS, max_new_tokens=6, seed=1, temperature=1.0, min_p=0.01
    )


@pytest.mark.parametrize("mutations", [(), (to_linen,)], ids=["nnx", "linen"])
def test_a_document_is_read_anew_where_its_rotation_changes(mutations):
    config = tiny.experiment()
    config.model.decoder.stacks[0].layers[0].attention.rope = fdl.Config(
        LongRope,
        short_factors=(1.0, 1.5, 2.0, 3.0),
        long_factors=(8.0, 6.0, 5.0, 4.0),
        original_length=10,
        attention_factor=1.0,
    )
    for mutation in mutations:
        config = mutation(config)
    model = graph.build(config).make_model()
    variables = model.init(jax.random.key(0))
    assert model.stale_after == (10,)
    prompts = [list(range(length)) for length in (8, 9, 11)]
    out = generate(model, variables, prompts, max_new_tokens=4)
    logits_of = jax.jit(model.logits)
    for prompt, tokens in zip(prompts, out, strict=True):
        row = list(prompt)
        for _ in range(4):
            # A row of just that length: tokens to come would turn the others.
            logits = logits_of(variables, jnp.asarray([row]))
            row.append(int(jnp.argmax(logits[0, -1])))
        assert tokens == row[len(prompt) :]


@pytest.mark.parametrize("mutations", [(), (to_linen,)], ids=["nnx", "linen"])
def test_arrays_that_lie_apart_give_the_logits_of_stacked_ones(mutations):
    model, variables = made(*mutations)
    tokens = jnp.asarray([PROMPTS[2]])
    run = jax.jit(model.logits)
    expected = run(variables, tokens)
    np.testing.assert_allclose(run(model.apart(variables), tokens), expected, atol=1e-5)


def test_arrays_of_one_cpu_that_lie_apart_take_no_memory():
    params = {"w": jnp.arange(3 * 16 * 16.0).reshape(3, 16, 16)}
    first, second, third = Repeats.of(params["w"])
    np.testing.assert_array_equal(second, params["w"][1])
    start, size = params["w"].unsafe_buffer_pointer(), first.nbytes
    assert [x.unsafe_buffer_pointer() for x in (first, second, third)] == [
        start + i * size for i in range(3)
    ]


def test_decoding_neither_cuts_nor_stacks_the_arrays_of_layers():
    model, variables = made()
    generator = Generator(model)
    rows = generator._prefill(16, variables, generator._padded([[1, 2]], [9], 0))
    program = generator._decode.lower(model.apart(variables), rows).compile()
    stacked = [x.shape for x in jax.tree.leaves(variables["params"]["decoder"])]
    caches = [(3, *x.shape) for x in jax.tree.leaves(rows.cache)]
    assert {shape[0] for shape in stacked} == {3}
    text = program.as_text()
    for shape in (*stacked, *caches):
        assert f"[{','.join(map(str, shape))}]" not in text
