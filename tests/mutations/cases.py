"""How the laws try each mutation. A new mutation needs an entry in `CASES`."""

import dataclasses
from collections.abc import Callable

import fiddle as fdl

from maxfdl.graph.expression import parse_call
from maxfdl.graph.names import mutations
from maxfdl.graph.resolve import mutate
from maxfdl.layers.execution import Unroll
from maxfdl.model import LinenModel

MUTATIONS = sorted(mutations())


@dataclasses.dataclass(frozen=True)
class Case:
    """One mutation on trial.

    Args:
      call: What to apply, as `--fiddler` takes it.
      decides: What it is that the mutation decides. Of two that decide the same, the
        later wins; any others commute.
      undo: From the graph as it was, the call that brings it back.
    """

    call: str
    decides: str
    undo: Callable[[fdl.Buildable], str]


def _family(cfg: fdl.Buildable) -> str:
    return "to_linen" if fdl.get_callable(cfg.backend) is LinenModel else "to_nnx"


def _execution(cfg: fdl.Buildable) -> str:
    execution = cfg.model.decoder.stacks[0].execution
    if fdl.get_callable(execution) is Unroll:
        return "unroll_layers"
    return f"scan_layers(unroll={execution.unroll})"


def _remat(cfg: fdl.Buildable) -> str:
    return f"remat(policy={cfg.model.decoder.stacks[0].remat})"


def _mesh(cfg: fdl.Buildable) -> str:
    mesh = cfg.mesh
    return f"mesh(data={mesh.data}, fsdp={mesh.fsdp}, tensor={mesh.tensor})"


CASES = {
    "compute_dtype": Case(
        call="compute_dtype(dtype=bfloat16)",
        decides="type of activations",
        undo=lambda cfg: f"compute_dtype(dtype={cfg.model.dtype})",
    ),
    "mesh": Case(call="mesh(data=2, fsdp=2, tensor=2)", decides="mesh", undo=_mesh),
    "param_dtype": Case(
        call="param_dtype(dtype=bfloat16)",
        decides="type of parameters",
        undo=lambda cfg: f"param_dtype(dtype={cfg.model.param_dtype})",
    ),
    "remat": Case(call="remat(policy=full)", decides="remat", undo=_remat),
    "scan_layers": Case(
        call="scan_layers(unroll=2)", decides="execution", undo=_execution
    ),
    "to_linen": Case(call="to_linen", decides="family", undo=_family),
    "to_nnx": Case(call="to_nnx", decides="family", undo=_family),
    "unroll_layers": Case(call="unroll_layers", decides="execution", undo=_execution),
}

NOT_COMMUTING: dict[frozenset[str], str] = {}
"""Pairs that decide different things and yet do not commute, with the reason."""


def case(name: str) -> Case:
    assert name in CASES, (
        f"maxfdl.mutations.{name} has no entry in tests/mutations/cases.py; add a"
        " call to try, what it decides, and the call that undoes it."
    )
    return CASES[name]


def apply(cfg: fdl.Buildable, *calls: str) -> fdl.Buildable:
    """Returns `cfg` after `calls`, spelled as on the command line."""
    for call in calls:
        cfg = mutate(cfg, parse_call(call))
    return cfg
