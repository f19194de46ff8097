"""Compiles a step for devices that are elsewhere, and says what it will take there.

    python -m maxfdl.aot experiments.llama2_nnx batch_size=16 --topology=v5e:4x4

It compiles the very step that `maxfdl.launch` would, for slices of TPUs, on any machine
with libtpu (extra `tpu`). Without --topology it compiles for the devices that are here.
It prints, for each device, the memory that the step needs and whether it is there, the
FLOPs, every collective with the bytes it sends, and the least time of a step by the
data sheet of the chip. Mutations and values may follow, as for `maxfdl.launch`.

`--compare=EXPRESSION` compiles another one, too; the values of the command line hold
for both, its mutations for the first alone. `--search` tries meshes, remat and tiling,
at most `--budget` compilations, and prints each as it is done, then the best as a
command to launch. Ctrl-C ends a search early, with the best so far.

Exit code 1 says that the step (the first one, with `--compare`; all that were tried,
with `--search`) does not fit into the memory of a device.
"""

import shlex
import traceback
from collections.abc import Sequence
from typing import Any

from absl import flags

from maxfdl import commandline
from maxfdl.errors import UserError
from maxfdl.report import json_file, topology
from maxfdl.run.leave import without_waiting
from maxfdl.terminal import INTERRUPTED

FLAGS = flags.FLAGS

flags.adopt_module_key_flags(json_file)
flags.adopt_module_key_flags(topology)

# This module may be imported under two names (`python -m` makes one `__main__`).
if "compare" not in FLAGS:
    flags.DEFINE_string("compare", None, "Another expression, shown beside the first.")
    flags.DEFINE_string(
        "executable", None, "Where to save the step for maxfdl.launch --compiled."
    )
    flags.DEFINE_bool("search", False, "Try other meshes, remat and tiling.")
    flags.DEFINE_integer(
        "budget", 12, "How many steps a search compiles at most.", lower_bound=1
    )

FITS, DOES_NOT_FIT, TROUBLE = 0, 1, 2


def main(argv: list[str]) -> int:
    """Compiles and reports; returns the exit code."""
    try:
        return _main()
    except UserError:
        raise
    except Exception:  # a bug would exit with 1, which says that it does not fit
        traceback.print_exc()
        return TROUBLE


def _main() -> int:
    _refuse_meaningless_flags()
    configs = [commandline.config_from_flags()]
    devices = _devices()
    json_file.write_if_asked({})  # it would be late to find out at the end
    if FLAGS.search:
        return _search(devices)

    from maxfdl import graph
    from maxfdl.report.ahead import compile_ahead, program_of
    from maxfdl.run import executable

    if FLAGS.executable is not None:
        executable.check_place(FLAGS.executable)
    if FLAGS.compare is not None:
        other = graph.resolve(FLAGS.compare, trust=tuple(FLAGS.trust))
        configs.append(commandline.with_values(other))
    # Whatever is wrong with either graph is found before one compiles.
    programs = [program_of(graph.build(config), devices) for config in configs]
    reports = []
    for config, program in zip(configs, programs, strict=True):
        report, step = compile_ahead(config.name, program)
        if step is not None and not reports and FLAGS.executable is not None:
            graph_json = graph.dump_json(config, trust=tuple(FLAGS.trust))
            executable.write(FLAGS.executable, step, program, graph_json)
        reports.append(report)
    _print(reports)
    return FITS if reports[0].fits else DOES_NOT_FIT


def _refuse_meaningless_flags() -> None:
    """Raises UserError for flags that would do nothing."""
    topology.check_flags()
    if FLAGS["budget"].present and not FLAGS.search:
        raise UserError("--budget has no meaning without --search; add that.")
    for name in ("compare", "executable"):
        if FLAGS.search and FLAGS[name].value is not None:
            raise UserError(f"--{name} has no meaning with --search; leave one out.")


def _devices() -> Sequence[Any]:
    """Returns the devices to compile for."""
    import jax

    return topology.devices() or jax.devices()


def _print(reports: Sequence[Any]) -> None:
    from maxfdl.report import ahead_text

    first, *others = reports
    figures = first.as_json()
    if not others:
        print("\n".join(ahead_text.lines(first)))
    else:
        print("\n".join(ahead_text.side_by_side(reports)))
        figures["compare"] = others[0].as_json()
    json_file.write_if_asked(figures)


def _search(devices: Sequence[Any]) -> int:
    from maxfdl.report import ahead_text, search
    from maxfdl.run.background import each_in_background

    found, make, is_whole = [], commandline.config_from_flags, True
    try:
        for trial in each_in_background(search.trials(make, devices, FLAGS.budget)):
            found.append(trial)
            print(ahead_text.line(trial), flush=True)
    except KeyboardInterrupt:
        is_whole = False
        print("interrupted; of what was tried so far:")
    best = search.best(found)
    figures: dict[str, Any] = {"trials": [trial.as_json() for trial in found]}
    if best is None or best.report is None:
        print("nothing that was tried fits")
    else:
        print("\n" + "\n".join(ahead_text.lines(best.report)))
        print("\nto launch it:\n  " + _command(best.mutations))
        figures |= best.report.as_json()
        figures["expression"] = _expression(best.mutations)
    json_file.write_if_asked(figures)
    if not is_whole:
        return INTERRUPTED
    return DOES_NOT_FIT if best is None else FITS


def _expression(mutations: Sequence[str]) -> str:
    base = [] if FLAGS.fdl_config is None else [FLAGS.fdl_config]
    return "+".join([*base, *FLAGS.fiddler, *mutations])


def _command(mutations: Sequence[str]) -> str:
    """Returns the command that trains what this one compiled, so changed."""
    words = ["python", "-m", "maxfdl.launch"]
    if FLAGS.fdl_config_file is not None:
        words.append(f"--fdl_config_file={FLAGS.fdl_config_file}")
        words += [f"--fiddler={each}" for each in (*FLAGS.fiddler, *mutations)]
    else:
        words.append(_expression(mutations))
    for name in ("fdl_tags_set", "fdl_overrides", "fdl_set", "trust"):
        words += [f"--{name}={value}" for value in FLAGS[name].value or ()]
    return shlex.join(words)


if __name__ == "__main__":
    with without_waiting():
        commandline.run(main)
