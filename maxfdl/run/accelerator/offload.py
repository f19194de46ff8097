"""What is offloaded lies in the host's memory, and training does not notice."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from maxfdl.run.accelerator.check import Bench, Check, Outcome
from maxfdl.run.accelerator.training import Trained, largest_difference, train
from maxfdl.sharding.memory import HOST

TOLERANCE = 1e-5  # relative, of losses in float32 without TF32
STEPS = 5

# All compute the same; the first keeps everything in the memory of the device.
_MUTATIONS = {
    "nothing": "remat",
    "optimizer": "remat+offload_optimizer",
    "activations": "offload_activations",
}
_SHARE = 0.5  # of the bytes that moved, by which those of the device must fall


class _Run(NamedTuple):
    """Losses, and bytes: on device and host as the compiler planned them, of state on
    the host, and in use on the device between steps (None: it does not count them)."""

    losses: list[float]
    device: int
    host: int
    state_on_host: int
    in_use: int | None

    @classmethod
    def of(cls, trained: Trained) -> "_Run":
        memory = trained.step.run.memory_analysis()
        leaves = jax.tree.leaves(trained.state)
        return cls(
            losses=trained.losses,
            device=trained.step.peak_bytes(),
            host=memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes,
            state_on_host=sum(
                leaf.nbytes for leaf in leaves if leaf.sharding.memory_kind == HOST
            ),
            in_use=trained.bytes_in_use,
        )


def checks() -> list[Check]:
    return [
        Check(f"offload/{what}", functools.partial(compare, what))
        for what in ("optimizer", "activations")
    ]


def compare(what: str, bench: Bench) -> Outcome:
    """Trains some steps with and without: same losses, fewer bytes on the device."""
    graph = "experiments.llama2_smoke" if bench.is_small else "fdl_configs.bench.deep"
    before = _run(bench.make, f"{graph}+{_MUTATIONS['nothing']}")
    after = _run(bench.make, f"{graph}+{_MUTATIONS[what]}")
    difference = largest_difference(after.losses, before.losses)
    is_right = difference <= TOLERANCE
    text = f"losses within {difference:.1e} ({TOLERANCE:.0e} is allowed)"
    if bench.is_small:
        text = f"{text}; a CPU has one memory, so bytes are not compared"
    else:
        fell, found = _bytes_fell(what, before, after)
        is_right, text = is_right and fell, f"{text}; {found}"
    figures = {
        "largest_difference": difference,
        "before": before._asdict(),
        "after": after._asdict(),
    }
    return Outcome("passed" if is_right else "failed", text, figures)


def _bytes_fell(what: str, before: _Run, after: _Run) -> tuple[bool, str]:
    """Returns whether the device holds less by what moved, and the figures as a text.

    State moves for good, so that its bytes between steps fall too.
    """
    of_state = what == "optimizer"
    moved = after.state_on_host if of_state else after.host
    fell = moved > 0 and before.device - after.device >= _SHARE * moved
    text = (
        f"{_mib(moved)} moved to the host, the step takes {_mib(after.device)} of the"
        f" device instead of {_mib(before.device)}"
    )
    if of_state and before.in_use is not None and after.in_use is not None:
        fell = fell and before.in_use - after.in_use >= _SHARE * moved
        text = (
            f"{text}, {_mib(after.in_use)} instead of {_mib(before.in_use)} between"
            " steps"
        )
    return fell, text


@functools.cache
def _run(make: Callable[[str], Any], graph: str) -> _Run:
    with jax.default_matmul_precision("highest"):
        return _Run.of(train(make(graph), STEPS))


def _mib(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB"
