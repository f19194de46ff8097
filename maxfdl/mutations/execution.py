"""How stacks run: as a scan over repeats, unrolled, or as stages of a pipeline."""

from typing import Literal, TypeVar

import fiddle as fdl

from maxfdl.errors import MutationError
from maxfdl.graph import copy, nodes_of, swap
from maxfdl.layers.execution import Scan, Unroll
from maxfdl.layers.pipeline import Pipeline, Pipeline1F1B
from maxfdl.mutations.roles import is_stack
from maxfdl.mutations.scope import MODEL, network_in

C = TypeVar("C", bound=fdl.Buildable)


_PIPELINES = {"gpipe": Pipeline, "1f1b": Pipeline1F1B}


def scan_layers(cfg: C, *, unroll: int = 1, under: str = MODEL) -> C:
    """Runs equal layers as a loop, so that compile time does not grow with depth.

    Each trip of the loop runs `unroll` repeats. Same parameters and mathematics.

    Raises:
      MutationError: If there is no stack.
    """
    out = copy(cfg)
    for stack in nodes_of(network_in(out, under), is_stack):
        swap(stack.execution, Scan, unroll=unroll)
    return out


def unroll_layers(cfg: C, *, under: str = MODEL) -> C:
    """Runs layers one after the other, without a loop, so that XLA may fuse them.

    Same parameters and mathematics; compile time grows with depth. `scan_layers` is the
    inverse.

    Raises:
      MutationError: If there is no stack.
    """
    out = copy(cfg)
    for stack in nodes_of(network_in(out, under), is_stack):
        swap(stack.execution, Unroll)
    return out


def pipeline(
    cfg: C,
    *,
    stages: int,
    microbatches: int,
    repeats: int = 1,
    schedule: Literal["gpipe", "1f1b"] = "gpipe",
    hold_weights: bool = False,
    under: str = MODEL,
) -> C:
    """Runs layers as `stages` of a pipeline, which cuts rows into `microbatches`.

    Each microbatch passes through all stages `repeats` times (circular, interleaved).
    With the schedule `1f1b`, activations take the memory of a few microbatches, and the
    forward pass runs twice. Stacks of fewer layers than `stages * repeats` run as a
    loop before or after. The stages lie on the mesh axis `stage`, which
    `mesh(stage=...)` sets. Where `fsdp` cuts the weights, too, each layer gathers its
    own for every microbatch; with `hold_weights`, a device gathers those of its stages
    once a step and holds them. Same parameters and mathematics, see
    `maxfdl.layers.pipeline`. `scan_layers` is the inverse.

    Raises:
      MutationError: If there is no stack, or all have too few layers.
    """
    out = copy(cfg)
    stacks = nodes_of(network_in(out, under), is_stack)
    units = stages * repeats
    if max(stack.repeats for stack in stacks) < units:
        longest = max(stack.repeats for stack in stacks)
        raise MutationError(
            f"pipeline stages ({stages}) times repeats ({repeats}) must be at most the"
            f" repeats of a stack, of which the longest has {longest}; take fewer"
            " stages."
        )
    for stack in stacks:
        if stack.repeats < units:
            swap(stack.execution, Scan)
        else:
            swap(
                stack.execution,
                _PIPELINES[schedule],
                stages=stages,
                microbatches=microbatches,
                repeats=repeats,
                hold_weights=hold_weights,
            )
    return out
