"""Which XLA flags make a step faster here.

XLA reads its flags once, so each candidate has a process of its own. What helps goes
into the table of `maxfdl.train.compiler_options`, with the card and the figures in
BUILD_NOTES.md.
"""

import dataclasses
import functools

from maxfdl.run.accelerator.check import Bench, Check, Outcome
from maxfdl.run.accelerator.speed import measure_graph, text_of
from maxfdl.train.compiler_options import xla_flags

# Of those that MaxText's recipes and NVIDIA's pages on JAX set, the ones that matter on
# one GPU.
CANDIDATES = {
    "no_triton_gemm": "--xla_gpu_enable_triton_gemm=false",
    "no_command_buffer": "--xla_gpu_enable_command_buffer=",
    "double_buffering": "--xla_gpu_enable_while_loop_double_buffering=true",
    "no_rematerialization": "--xla_disable_hlo_passes=rematerialization",
}
HELPS = 1.02  # times the tokens per second; less is noise


def checks(platform: str) -> list[Check]:
    """Returns a check per candidate; there are none but for GPUs."""
    if platform != "gpu":
        return []
    return [
        Check(
            f"flags/{name}",
            functools.partial(probe, flag),
            seconds=120,
            is_alone=True,
            environment={"XLA_FLAGS": f"{xla_flags()} {flag}"},
            if_killed="refused",  # XLA ends a process that has a flag it does not know
        )
        for name, flag in CANDIDATES.items()
    ]


def probe(flag: str, bench: Bench) -> Outcome:
    """Measures the fastest Llama so far again, with the flag that is set."""
    fastest = _fastest_llama(bench)
    if fastest is None:
        return Outcome("skipped", "no Llama ran that this could be compared to")
    figures = measure_graph(fastest.figures["graph"], bench)
    times = figures.tokens_per_second / fastest.figures["tokens_per_second"]
    verdict = "helps" if times >= HELPS else "does not help"
    return Outcome(
        "measured",
        f"{flag} {verdict}: {times:.3f} times the speed of {fastest.name},"
        f" {text_of(figures)}",
        {**dataclasses.asdict(figures), "flag": flag, "times_the_speed": times},
    )


def _fastest_llama(bench: Bench) -> Outcome | None:
    ran = [
        outcome
        for name, outcome in bench.earlier.items()
        if name.startswith("llama/") and outcome.status == "measured"
    ]
    return max(ran, key=lambda o: o.figures["tokens_per_second"], default=None)
