"""Times the step of an experiment: `python -m maxfdl.bench experiments.maxtext_shape`.

Trains on one random batch that stays on the devices; reads no text and saves nothing.
Compiles afresh, unless JAX_COMPILATION_CACHE_DIR is set. Mutations and values may
follow, as for `maxfdl.launch`.
"""

import dataclasses
import os
from typing import Any

from absl import flags

from maxfdl import commandline
from maxfdl.report import json_file

FLAGS = flags.FLAGS

if "warmup" not in FLAGS:
    flags.DEFINE_integer("steps", 10, "How many steps are timed.", lower_bound=1)
    flags.DEFINE_integer(
        "warmup", 2, "Steps after the first that are not timed.", lower_bound=0
    )
flags.adopt_module_key_flags(json_file)

# Above this share of the CPUs, other work makes figures of a CPU worthless.
_BUSY = 0.5


def main(argv: list[str]) -> None:
    load = os.getloadavg()
    config = commandline.config_from_flags()

    import jax

    from maxfdl import graph
    from maxfdl.run.benchmark import measure
    from maxfdl.run.runtime import start

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
    from maxfdl.report.text import devices_text, size_text
    from maxfdl.run.progress import quantity

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
