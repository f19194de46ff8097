"""Which graph a run has, by its config and by its checkpoints."""

import jax.numpy as jnp
import pytest

from maxfdl import graph
from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.errors import UserError
from maxfdl.graph.expression import parse_call
from maxfdl.graph.resolve import mutate
from maxfdl.ops.experts import Capacity, Dropless
from maxfdl.run.directory import RunDirectory
from maxfdl.saved_graph import check_schedule, differences, saved_graph
from tests import tiny


class Data:
    def get_state(self):
        return 0


def with_seed(seed):
    config = tiny.experiment()
    config.seed = seed
    return config


@pytest.fixture
def make_run(tmp_path):
    """Returns a function that makes a run of graphs: of its config, of its steps."""

    def make(config, **saved):
        run = RunDirectory(tmp_path)
        if config is not None:
            text = graph.dump_json(config)
            run.write(config_json=text, config_text="", command="")
        checkpointer = Checkpointer(directory=run.checkpoints)
        for step, cfg in saved.items():
            number = int(step.removeprefix("step"))
            state = {"step": jnp.int32(number)}
            checkpointer.save(number, state, Data(), graph.dump_json(cfg))
        checkpointer.close()
        return run

    return make


def test_a_directory_without_a_run_has_none(make_run):
    assert saved_graph(make_run(None)) is None


def test_config_and_checkpoints_may_agree(make_run):
    config = with_seed(20)
    assert saved_graph(make_run(config, step1=config, step2=config)) == config


@pytest.mark.parametrize("steps", [("step1",), ("step1", "step2")])
def test_without_a_config_the_checkpoints_tell(make_run, steps):
    config = with_seed(20)
    assert saved_graph(make_run(None, **dict.fromkeys(steps, config))) == config


def test_a_step_whose_record_is_damaged_tells_nothing(make_run):
    run = make_run(None, step1=with_seed(20), step2=with_seed(20))
    (run.checkpoints / "2" / "_CHECKPOINT_METADATA").write_text("{")
    assert saved_graph(run) == with_seed(20)


def test_a_config_of_another_run_is_refused(make_run):
    run = make_run(with_seed(30), step1=with_seed(20), step2=with_seed(20))
    with pytest.raises(UserError) as error:
        saved_graph(run)
    assert str(error.value) == (
        f"{run.path}: config.json and checkpoints/2 are graphs of two runs; put the"
        " right config.json back, or delete it (the checkpoints hold the graph, too),"
        " or move checkpoints/2 out of the directory. From the one to the other:\n"
        "  ~ seed: 30 -> 20"
    )


@pytest.mark.parametrize("has_config", [False, True])
def test_a_step_of_another_run_is_refused(make_run, has_config):
    config = with_seed(20) if has_config else None
    run = make_run(config, step1=with_seed(30), step2=with_seed(20))
    message = "and checkpoints/1 are graphs of two runs; .*move checkpoints/1 out"
    with pytest.raises(UserError, match=message):
        saved_graph(run)


# How a run operates may change between two starts.

BASE = "experiments.llama2_smoke"
OPERATIONAL = [
    "trainer.log_every=3",
    "trainer.eval_every=7",
    "trainer.eval_batches=1",
    "trainer.sample_tokens=9",
    "trainer.guard.stop_after=2",
    "checkpoint.every_steps=7",
    "checkpoint.keep=9",
    "metrics.tensorboard=False",
    "data.prefetch=0",
    "data.skip_bad=3",
    "model.decoder.stacks[0].layers[0].attention.attention.implementation=xla",
    "name=other",
    "steps=77",
    "optimizer.schedule.decay_steps=5",
    "sharding.vocab=()",
    "stop_at_loss(loss=2.0)",
    "mesh(data=2,tensor=4)",
    "remat(full)",
    'offload_activations(names=["layer_in"])',
    "unroll_layers",
    "scan_layers(unroll=2)",
    "vocab_tiling(num_tiles=4)",
    "vocab_tiling(tokens_per_tile=8)",
    "gradient_accumulation(steps=2)",
    "zero1",
    "offload_optimizer",
    "offload_parameters",
]
ANOTHER_RUN = [
    "seed=5",
    "batch_size=16",
    "sequence_length=16",
    "init_from=folder",
    "data.shuffle=False",
    "data.eval_fraction=0.2",
    "model.dtype=bfloat16",
    "model.features=64",
    "loss.cross_entropy.z_loss=0.1",
    "optimizer.schedule.peak=0.5",
    "optimizer.schedule.warmup_steps=1",
    "optimizer.schedule.final_fraction=0.5",
    "optimizer.clip.max_norm=2.0",
    "use_adafactor",
    "use_schedule(kind=linear)",
    "skip_spikes",
    "average_weights(decay=0.9)",
    "batch_ramp_up(start=4,steps=2)",
]


def changed(base, change):
    """Returns a graph after `path=value`, or after a mutation."""
    path, _, value = change.partition("=")
    if "(" in path or not value:
        return mutate(base, parse_call(change), ())
    return graph.set_value(base, path, value)


@pytest.mark.parametrize("change", OPERATIONAL)
def test_a_graph_that_differs_in_how_it_operates_is_the_same_run(change):
    first = graph.resolve(BASE)
    second = changed(first, change)
    assert graph.diff(first, second) and graph.summary(first, second)
    assert differences(first, second) == differences(second, first) == []


@pytest.mark.parametrize("change", ANOTHER_RUN)
def test_a_graph_that_learns_something_else_is_another_run(change):
    first = graph.resolve(BASE)
    second = changed(first, change)
    assert differences(first, second) and differences(second, first)
    busy = changed(changed(second, "mesh(data=8)"), "trainer.log_every=3")
    assert differences(first, busy) == differences(first, second)


@pytest.mark.parametrize("change", ["router_losses(batch_balance=0.1)", "capacity"])
def test_microbatches_are_of_another_run_where_a_term_is_taken_of_each(change):
    first = graph.resolve("experiments.zoo_smoke(family=mixtral)+router_losses")
    assert not differences(first, changed(first, "gradient_accumulation(steps=2)"))
    if change == "capacity":
        for node in graph.nodes_of(first, Dropless):
            graph.swap(node, Capacity, factor=1.0)
    else:
        first = changed(first, change)
    second = changed(first, "gradient_accumulation(steps=2)")
    assert any("trainer.gradients" in line for line in differences(first, second))
    assert not differences(first, changed(first, "mesh(data=2,tensor=4)"))


def test_graphs_of_config_and_checkpoints_may_differ_in_how_they_operate(make_run):
    first = graph.resolve(BASE)
    second = changed(changed(first, "mesh(data=8)"), "steps=77")
    assert saved_graph(make_run(second, step1=first)) == second


# The end of the schedule may move where no rate of a step that was taken moves with it.

COSINE = "use_schedule(kind=cosine,warmup_steps=4)"
FIXED = "use_schedule(kind=linear,decay_steps=12)"
WSD = "use_schedule(kind=wsd,decay_steps=5)"


def course(kind, change, taken):
    """Checks a run of 20 steps that goes on after `taken` with a change."""
    first = changed(changed(graph.resolve(BASE), "steps=20"), kind)
    check_schedule(first, changed(first, change), taken)


@pytest.mark.parametrize(
    "kind, change, taken",
    [
        ("use_schedule(kind=constant)", "steps=30", 20),
        ("use_schedule(kind=inverse_square_root,warmup_steps=4)", "steps=30", 20),
        (FIXED, "steps=30", 20),
        (FIXED, "steps=15", 10),
        (COSINE, "optimizer.schedule.decay_steps=16", 10),
        (COSINE, "steps=30", 0),
        (COSINE, "trainer.log_every=3", 10),
        (WSD, "steps=30", 15),
        (WSD, "steps=17", 12),
        (WSD, "optimizer.schedule.decay_steps=8", 12),
    ],
)
def test_another_end_is_no_question_where_no_rate_of_the_steps_taken_moves(
    kind, change, taken
):
    course(kind, change, taken)


@pytest.mark.parametrize(
    "kind, change, taken",
    [
        (COSINE, "steps=30", 10),
        (COSINE, "steps=30", 20),
        (COSINE, "steps=15", 10),
        (COSINE, "optimizer.schedule.decay_steps=9", 10),
        ("use_schedule(kind=linear)", "steps=30", 10),
        (FIXED, "optimizer.schedule.decay_steps=9", 10),
        (WSD, "steps=30", 16),
        (WSD, "steps=17", 13),
        (WSD, "optimizer.schedule.decay_steps=8", 13),
    ],
)
def test_another_end_needs_to_be_asked_for_where_the_rate_falls_to_it(
    kind, change, taken
):
    with pytest.raises(UserError, match=f"after step {taken} add --extend to go on"):
        course(kind, change, taken)


def test_the_refusal_of_another_end_tells_how_to_keep_the_old_one():
    with pytest.raises(UserError) as error:
        first = changed(changed(graph.resolve(BASE), "steps=20"), COSINE)
        second = changed(changed(first, "steps=30"), "trainer.log_every=7")
        check_schedule(first, second, 10)
    assert str(error.value) == (
        "the learning rate of this run (WarmupCosine) falls to its end at step 20, and"
        " steps 20 -> 30 moves that end to step 30; after step 10 add --extend to"
        " go on with the rates that lead there, or optimizer.schedule.decay_steps=16 to"
        " keep the old end and go on at the final rate, or undo the difference."
    )
    first = changed(changed(graph.resolve(BASE), "steps=20"), COSINE)
    second = changed(first, "steps=30")
    kept = changed(second, "optimizer.schedule.decay_steps=16")
    assert check_schedule(first, kept, 10) == ""
    assert check_schedule(first, kept, 10, extend=True) == ""


def test_another_end_that_is_asked_for_is_told_with_the_rate_that_it_gives():
    first = changed(changed(graph.resolve(BASE), "steps=20"), COSINE)
    assert check_schedule(first, changed(first, "steps=30"), 10, extend=True) == (
        "the learning rate now falls to its end at step 30, and not at 20: that of the"
        " next step is 0.00887, and not 0.00722"
    )


def test_a_config_that_cannot_be_read_is_one_sentence(make_run):
    run = make_run(with_seed(20))
    (run.path / "config.json").write_text("{")
    with pytest.raises(UserError, match=f"{run.path}/config.json: .*not a saved graph"):
        saved_graph(run)
    (run.path / "config.json").unlink()
    (run.path / "config.json").mkdir()
    with pytest.raises(UserError, match="must be a file, but it is a folder"):
        saved_graph(run)
