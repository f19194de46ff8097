r"""Times the step of an experiment: `python -m maxfdl.bench experiments.maxtext_shape`.

Trains on one random batch that stays on the devices; reads no text and saves nothing.
Compiles afresh, unless JAX_COMPILATION_CACHE_DIR is set. Mutations and values may
follow, as for `maxfdl.launch`.

With `--accelerator` it takes no experiment: it checks the first device here, and how
fast it trains, in at most `--accelerator_minutes`. It prints a line per check: passed,
measured, refused (a kernel that does not take such a mask, a batch that does not fit),
skipped, or failed, which gives exit code 1. `maxfdl.run.accelerator` has the checks. On
a machine with a card, in a checkout of this repository:

    python3 -m venv .venv
    .venv/bin/pip install '.[gpu]'
    .venv/bin/python -m maxfdl.bench --accelerator --json=accelerator.json

Where that machine has no network, but JAX for its card in a Python of its own, carry
what else is needed as wheels. On a machine with network, for the other's version of
Python (here 3.12):

    pip download -d wheels --no-deps --only-binary=:all: --python-version 3.12 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --platform manylinux_2_28_x86_64 fiddle libcst graphviz ml-collections \
        tensorboardX grain array-record portpicker tokamax==0.0.12 qwix einshape \
        immutabledict typeguard==2.13.3 pydantic pydantic-core annotated-types \
        typing-inspection

and on the one with the card:

    python3 -m pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site python3 -m maxfdl.bench --accelerator --json=accelerator.json
"""

import dataclasses
import os
import sys
import time
from typing import Any

from absl import flags

from maxfdl import commandline
from maxfdl.errors import UserError
from maxfdl.report import json_file
from maxfdl.run.processes import place

FLAGS = flags.FLAGS

if "warmup" not in FLAGS:
    flags.DEFINE_integer("steps", 10, "How many steps are timed.", lower_bound=1)
    flags.DEFINE_integer(
        "warmup", 2, "Steps after the first that are not timed.", lower_bound=0
    )
    flags.DEFINE_bool(
        "accelerator", False, "Check and measure the accelerator that is here."
    )
    flags.DEFINE_float(
        "accelerator_minutes", 8.0, "How long that may take.", lower_bound=0.1
    )
    flags.DEFINE_list(
        "accelerator_only",
        [],
        "Which parts: attention, losses, offload, product, llama, fp8, flags.",
    )
flags.adopt_module_key_flags(json_file)
place.define_flags()
flags.adopt_module_key_flags(place)

# Flags that mean something without --accelerator only, and with it only.
_OF_AN_EXPERIMENT = (
    "fdl_config",
    "fdl_config_file",
    "fiddler",
    "fdl_tags_set",
    "fdl_overrides",
    "fdl_set",
    "fdl_help",
    "trust",
    "steps",
    "warmup",
)
_OF_THE_ACCELERATOR = ("accelerator_minutes", "accelerator_only")

# Above this share of the CPUs, other work makes figures of a CPU worthless.
_BUSY = 0.5


def main(argv: list[str]) -> None:
    _refuse_meaningless_flags()
    if FLAGS.accelerator:
        _check_accelerator()
    else:
        _time_experiment()


def _refuse_meaningless_flags() -> None:
    """Raises a UserError for a flag that would do nothing."""
    if FLAGS.accelerator:
        names = _OF_AN_EXPERIMENT
        why = "with --accelerator, whose experiments are its own; leave one of them out"
    else:
        names = _OF_THE_ACCELERATOR
        why = "without --accelerator; add that, or leave this out"
    for name in names:
        if FLAGS[name].present:
            raise UserError(f"--{name} has no meaning {why}.")


def _check_accelerator() -> None:
    """Runs the checks in child processes: this one must not take the device."""
    from maxfdl.run.accelerator import report, suite
    from maxfdl.run.accelerator.processes import in_children

    started, outcomes = time.monotonic(), []
    json_file.write_if_asked({})  # it would be late to find out at the end
    checks = suite.run(
        make_experiment,
        in_children,
        minutes=FLAGS.accelerator_minutes,
        only=FLAGS.accelerator_only,
    )
    for outcome in checks:
        outcomes.append(outcome)
        print(report.line(outcome), flush=True)
        seconds = time.monotonic() - started
        json_file.write_if_asked(report.as_json(outcomes, seconds))
    print(report.summary(outcomes, time.monotonic() - started))
    if report.failed(outcomes):
        sys.exit(1)


def make_experiment(expression: str) -> Any:
    from maxfdl import graph

    return graph.build(graph.resolve(expression))


def _time_experiment() -> None:
    load = os.getloadavg()
    config = commandline.config_from_flags()

    import jax

    from maxfdl import graph
    from maxfdl.run.benchmark import measure
    from maxfdl.run.processes.ending import current
    from maxfdl.run.runtime import start

    if (peers := current()) is not None:
        commandline.check_same_run(
            peers, config, {"--steps": FLAGS.steps, "--warmup": FLAGS.warmup}
        )
    start(compilation_cache=False)
    figures = measure(graph.build(config), steps=FLAGS.steps, warmup=FLAGS.warmup)
    run = {
        "name": config.name,
        "device_kind": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "num_devices": jax.device_count(),
        "batch_size": config.batch_size,
        "sequence_length": config.sequence_length,
        "steps": FLAGS.steps,
        "warmup": FLAGS.warmup,
        "load_average_before": load,
        "load_average_after": os.getloadavg(),
        "num_cpus": os.cpu_count(),
    }
    if jax.process_index() == 0:
        print("\n".join(lines(run, figures)))
        json_file.write_if_asked({**run, **dataclasses.asdict(figures)})


def lines(run: dict[str, Any], figures: Any) -> list[str]:
    """Returns the figures as a person reads them."""
    from maxfdl.report.text import devices_text
    from maxfdl.run.progress import quantity
    from maxfdl.sharding.room import size_text

    step = figures.step_seconds
    rows, length = run["batch_size"], run["sequence_length"]
    mfu = "not known for this chip" if figures.mfu is None else f"{figures.mfu:.1%}"
    source = {"device": "counted by the device", "compiler": "planned by the compiler"}
    return [
        f"{run['name']} on {devices_text(run['num_devices'])} ({run['device_kind']}),"
        f" batch {rows} x {length} = {rows * length:,} tokens",
        f"first step: {figures.first_step_seconds:.2f} s after the process started",
        f"compile: {figures.compile_seconds:.2f} s, after"
        f" {figures.trace_seconds:.2f} s of tracing",
        f"step: {step.median:.4g} s (p10 {step.p10:.4g}, p90 {step.p90:.4g};"
        f" {run['steps']} steps)",
        f"CPU time: {figures.cpu_seconds_per_step:.4g} s a step",
        f"speed: {quantity(figures.tokens_per_second)} tokens/s,"
        f" {figures.model_tflops_per_second:.4g} model TFLOP/s, MFU {mfu}",
        f"peak memory: {size_text(figures.peak_bytes)} a device"
        f" ({source[figures.peak_bytes_from]})",
        f"dispatch: {figures.dispatch_microseconds:.0f} microseconds a step",
        *_load_lines(run),
    ]


def _load_lines(run: dict[str, Any]) -> list[str]:
    before, after = run["load_average_before"], run["load_average_after"]
    shown = [
        f"load average: {before[0]:.2f} before, {after[0]:.2f} after,"
        f" on {run['num_cpus']} CPUs"
    ]
    if before[0] > _BUSY * run["num_cpus"]:
        shown.append(
            "warning: the machine was busy before this began; these times are not those"
            " of a quiet one"
        )
    return shown


if __name__ == "__main__":
    commandline.run(main)
