"""How the laws try each mutation. A new mutation needs an entry in `CASES`."""

import dataclasses
from collections.abc import Callable

import fiddle as fdl

from maxfdl.graph.expression import parse_call
from maxfdl.graph.names import mutations
from maxfdl.graph.resolve import mutate
from maxfdl.layers.execution import Unroll
from maxfdl.model import LinenModel
from maxfdl.train.auxiliary import BatchBalance, SequenceBalance

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


def _accumulation(cfg: fdl.Buildable) -> str:
    steps = getattr(cfg.trainer.gradients, "steps", 1)
    return f"gradient_accumulation(steps={steps})"


def _router_losses(cfg: fdl.Buildable) -> str:
    kinds = {SequenceBalance: "sequence_balance", BatchBalance: "batch_balance"}
    terms = {
        kinds.get(fdl.get_callable(term), "z"): term.coefficient
        for term in cfg.loss.auxiliary
    }
    arguments = ",".join(f"{name}={value}" for name, value in terms.items())
    return f"router_losses({arguments})"


def _selection_bias(cfg: fdl.Buildable) -> str:
    updates = cfg.trainer.state_updates
    return f"selection_bias(rate={updates[0].rate if updates else 0.0})"


def _rule(cfg: fdl.Buildable) -> str:
    rule = cfg.optimizer.rule
    return f"use_adamw(b1={rule.b1}, b2={rule.b2}, epsilon={rule.epsilon})"


CASES = {
    "compute_dtype": Case(
        call="compute_dtype(dtype=bfloat16)",
        decides="type of activations",
        undo=lambda cfg: f"compute_dtype(dtype={cfg.model.dtype})",
    ),
    "gradient_accumulation": Case(
        call="gradient_accumulation(steps=4)",
        decides="microbatches",
        undo=_accumulation,
    ),
    "mesh": Case(call="mesh(data=2, fsdp=2, tensor=2)", decides="mesh", undo=_mesh),
    "param_dtype": Case(
        call="param_dtype(dtype=bfloat16)",
        decides="type of parameters",
        undo=lambda cfg: f"param_dtype(dtype={cfg.model.param_dtype})",
    ),
    "remat": Case(call="remat(policy=full)", decides="remat", undo=_remat),
    "router_losses": Case(
        call="router_losses(sequence_balance=1e-4,batch_balance=0.02,z=1e-3)",
        decides="auxiliary losses",
        undo=_router_losses,
    ),
    "scan_layers": Case(
        call="scan_layers(unroll=2)", decides="execution", undo=_execution
    ),
    "selection_bias": Case(
        call="selection_bias(rate=1e-3)",
        decides="updates of the layers' state",
        undo=_selection_bias,
    ),
    "to_linen": Case(call="to_linen", decides="family", undo=_family),
    "to_nnx": Case(call="to_nnx", decides="family", undo=_family),
    "unroll_layers": Case(call="unroll_layers", decides="execution", undo=_execution),
    **{
        name: Case(call=call, decides="update rule", undo=_rule)
        for name, call in {
            "use_adam_pax": "use_adam_pax",
            "use_adamw": "use_adamw(b2=0.99)",
            "use_lion": "use_lion",
            "use_muon": "use_muon(coefficients=dion)",
            "use_sgd": "use_sgd(momentum=0.9)",
        }.items()
    },
    "vocab_tiling": Case(
        call="vocab_tiling(num_tiles=4)",
        decides="tiles of the loss",
        undo=lambda cfg: "vocab_tiling(num_tiles=1)",
    ),
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
