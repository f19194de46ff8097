"""Trains: `python -m maxfdl.launch --fdl_config=experiments.llama2_nnx`.

Mutations and values follow, in flags (`--fiddler=to_linen --fdl_set=steps=50`) or
alone (`to_linen steps=50`). The same command again continues the run, and so does one
that differs in what is operational: how often it logs, its mesh, more steps.
"""

import shlex
import sys
from typing import Any

from absl import flags

from maxfdl import commandline
from maxfdl.errors import UserError
from maxfdl.run.leave import without_waiting
from maxfdl.run.processes import local, place
from maxfdl.run.render import RENDERERS, job_of
from maxfdl.terminal import session

FLAGS = flags.FLAGS

if "run_dir" not in FLAGS:  # generate has one, too
    flags.DEFINE_string(
        "run_dir", None, "Where the run leaves its files; default runs/<name>."
    )
if "profile_steps" not in FLAGS:
    flags.DEFINE_string(
        "profile_steps", None, "Trace these steps, FIRST:LAST, counted from 1."
    )
    flags.DEFINE_integer(
        "stop_at",
        None,
        "Save and stop after this step; the same command without it goes on.",
        lower_bound=1,
    )
    flags.DEFINE_bool(
        "extend",
        False,
        "Let a run go on to another number of steps although its learning rate has"
        " begun to fall to the old end.",
    )
    flags.DEFINE_string(
        "compiled",
        None,
        "Take the step from this file, which maxfdl.aot --executable wrote for the same"
        " graph and devices. Its code will run.",
    )
    flags.DEFINE_bool(
        "compilation_cache", True, "Keep compiled programs for the next start."
    )
if "render" not in FLAGS:
    flags.DEFINE_enum(
        "render",
        None,
        sorted(RENDERERS),
        "Print the file that starts this run on a cluster, and start nothing.",
    )
    flags.DEFINE_integer(
        "nodes", 1, "For --render: nodes, or slices of xpk.", lower_bound=1
    )
    flags.DEFINE_string(
        "accelerator_type",
        None,
        "For --render: what a node has, such as H100:8, or a slice, such as v5p-128.",
    )
    flags.DEFINE_string("image", None, "For --render: a container with maxfdl in it.")
for module in (place, local):
    module.define_flags()
    flags.adopt_module_key_flags(module)


def main(argv: list[str]) -> int:
    from maxfdl.run.processes.ending import current
    from maxfdl.run.signals import StopRequest

    with StopRequest(current()) as stop:
        _launch(stop)
    return stop.exit_code


def _launch(stop: Any) -> None:
    config = commandline.config_from_flags()
    if FLAGS.render is not None:
        return print(_rendered(config), end="")

    from maxfdl.run.directory import RunDirectory
    from maxfdl.run.processes.ending import current
    from maxfdl.run.runtime import start

    peers, executable = current(), _executable(config)
    directory = RunDirectory(FLAGS.run_dir or f"runs/{config.name}")
    profile = _profile(directory, config.steps)
    writes = peers is None or peers.place.process_id == 0
    if writes:
        directory.lock()
    try:
        if peers is not None:
            _check_same_run(peers, config, directory)
        start(compilation_cache=FLAGS.compilation_cache)
        writes = _adopts(directory, config) and writes
        _train(config, directory, profile, executable, writes, stop)
    finally:
        directory.unlock()


def _rendered(config: Any) -> str:
    """Returns the file that starts this run, with its flags, on a cluster."""
    own = ("render", "nodes", "accelerator_type", "image")
    arguments = local.without_flags(sys.argv[1:], own)
    job = job_of(
        config.name, arguments, FLAGS.nodes, FLAGS.accelerator_type, FLAGS.image
    )
    return RENDERERS[FLAGS.render](job)


def _check_same_run(peers: Any, config: Any, directory: Any) -> None:
    """Raises UserError unless all processes are about to take part in the same run."""
    from maxfdl.checkpoint.checkpointer import Checkpointer

    saved = Checkpointer(directory=directory.checkpoints)
    options = ("extend", "stop_at", "profile_steps", "compiled", "trust")
    asked = {f"--{name}": FLAGS[name].value for name in options}
    place = {"--run_dir": str(directory.path), "newest checkpoint": saved.latest()}
    commandline.check_same_run(peers, config, place | asked)
    holder = peers.meet("holder of the lock", directory.holder())
    if config.checkpoint is not None and directory.holder() != holder:
        raise UserError(
            f"{directory.path} must be one directory for all processes, on a file"
            f" system that they share; what process {peers.place.process_id} finds"
            " there is not what process 0 wrote."
        )


def _train(
    config: Any,
    directory: Any,
    profile: Any,
    executable: Any,
    writes: bool,
    stop: Any,
) -> None:
    import jax

    from maxfdl import graph
    from maxfdl.report.attention import attention_of
    from maxfdl.run.loop import RunOptions, run
    from maxfdl.run.progress import note, say

    graph_json = graph.dump_json(config, trust=tuple(FLAGS.trust))
    experiment = graph.build(config)
    if writes:
        directory.write(
            config_json=graph_json,
            config_text=graph.as_text(config),
            command=shlex.join(["python", "-m", "maxfdl.launch", *sys.argv[1:]]) + "\n",
        )
    options = RunOptions(
        graph_json=graph_json,
        stop_at=FLAGS.stop_at,
        profile=profile,
        executable=executable,
    )
    say(f"attention: {', '.join(attention_of(config))} ({jax.default_backend()})")
    for sentence in experiment.notes():
        note(sentence)
    run(experiment, directory, options, stop)


def _executable(config: Any) -> Any:
    """Returns the compiled step that the flag names, or None.

    Raises:
      UserError: If it cannot be read, or is of another graph.
    """
    from maxfdl import graph
    from maxfdl.run.executable import Executable

    if FLAGS.compiled is None:
        return None
    executable = Executable.read(FLAGS.compiled)
    compiled = graph.load_json(executable.graph_json, trust=tuple(FLAGS.trust))
    if lines := graph.diff(compiled, config):
        changes = "\n".join(f"  {line}" for line in lines)
        raise UserError(
            f"--compiled={FLAGS.compiled} is the step of another graph; compile this"
            " one with maxfdl.aot, leave --compiled out, or undo the difference:\n"
            f"{changes}"
        )
    return executable


def _profile(directory: Any, steps: int) -> Any:
    """Returns the profile that the flag asks for, or None."""
    from maxfdl.run.profile import Profile

    if FLAGS.profile_steps is None:
        return None
    profile = Profile.parse(FLAGS.profile_steps, directory.path / "profile")
    if profile.last > steps:
        raise UserError(
            f"--profile_steps={FLAGS.profile_steps} must end by the last step, {steps}."
        )
    return profile


def _adopts(directory: Any, config: Any) -> bool:
    """Returns whether `config` becomes the graph of the run in `directory`.

    It says which operational fields differ from those of an earlier start. A run that
    has taken all its steps already keeps the graph it has.

    Raises:
      UserError: If the directory holds results of another graph.
    """
    from maxfdl import graph
    from maxfdl.run.progress import say
    from maxfdl.saved_graph import check_schedule, refuse_another_run, saved_graph

    if not directory.has_results():
        return True
    saved = saved_graph(directory, tuple(FLAGS.trust))
    if saved is None:
        raise UserError(
            f"{directory.path} holds results of a run, but nothing in it tells of which"
            " graph; put its config.json back, or give another --run_dir."
        )
    refuse_another_run(directory, saved, config)
    taken = _newest(directory, config.emergency)
    changes = graph.summary(saved, config)
    if taken >= config.steps:
        return not changes
    remark = check_schedule(saved, config, taken, extend=FLAGS.extend)
    if changes:
        say("; ".join(filter(None, [f"continuing with {changes}", remark])))
    return True


def _newest(directory: Any, emergency: Any) -> int:
    """Returns the newest step that is saved, in `directory` or on a local disk, or 0;
    all processes must call.

    Args:
      directory: Of the run.
      emergency: The part of the graph that makes emergency checkpoints, or None.
    """
    from maxfdl import graph
    from maxfdl.checkpoint.checkpointer import Checkpointer
    from maxfdl.checkpoint.emergency import LocalSteps

    steps = [Checkpointer(directory=directory.checkpoints).latest() or 0]
    if emergency is not None:
        steps += LocalSteps(graph.build(emergency), directory.path).steps()
    return max(steps)


if __name__ == "__main__":
    with session():
        code = local.run_if_asked(sys.argv)
    if code is not None:
        sys.exit(code)
    with without_waiting():
        commandline.run(main)
