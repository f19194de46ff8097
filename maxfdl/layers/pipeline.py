"""Pipeline parallelism: layers of a stack on several devices, one after the other.

The rows of a batch are cut into microbatches. A stage of the pipeline runs some of the
layers, on one microbatch after the other, and all stages run at once (GPipe, Huang et
al. 2018, https://arxiv.org/abs/1811.06965). A microbatch may pass through all stages
several times, which makes for a smaller bubble (Narayanan et al. 2021,
https://arxiv.org/abs/2104.04473, section 2.2).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
from jax.sharding import PartitionSpec

from maxfdl.errors import UserError
from maxfdl.layers.context import Context
from maxfdl.layers.execution import (
    Execution,
    Layers,
    Remat,
    Results,
    Scan,
    joined,
)
from maxfdl.layers.one_forward_one_backward import OneForwardOneBackward
from maxfdl.layers.parameter import Parameter
from maxfdl.layers.schedule import Schedule
from maxfdl.layers.stages import Stages
from maxfdl.ops.cost import is_counting
from maxfdl.sharding.line import Line
from maxfdl.sharding.memory import on_device
from maxfdl.sharding.mesh import STAGE
from maxfdl.sharding.sharding import Sharding


@dataclasses.dataclass(frozen=True)
class Pipeline(Execution):
    """Runs the repeats of a stack as stages, each on another microbatch.

    The largest multiple of `stages * repeats` of the stack's repeats goes through the
    pipeline, and the rest runs before it. A stage runs equally many layers each time
    that a microbatch comes by; with several `repeats`, stages take turns at the layers.
    Outputs, state, side results and gradients are those of `Scan`, with sums in another
    order. A stage has nothing to do in `(S - 1) / (M R + S - 1)` of the time.

    The stages lie on the mesh axis `stage`, equally many on each of its devices;
    without that axis they run in turn. Outside the pipeline it cuts rows, as `data`
    does. Calls that cache, as in decoding, run all layers in sequence. So do those
    whose rows are no multiple of `microbatches`; those of a training batch must be, see
    `check_rows`.

    What `remat` keeps for the backward pass, it keeps of each stage and microbatch.

    Args:
      stages: S, a multiple of the mesh axis `stage`.
      microbatches: M, a multiple of the mesh axis `stage`; with `repeats`, a multiple
        of `stages`.
      repeats: R, how often a microbatch passes through all stages.
      hold_weights: Whether a device gathers the weights of its stages once a step, in
        the type they are stored in, and holds them. Else it gathers those of a layer
        each time that it runs, `M R + S - 1` times in a forward pass. Weights, and
        their gradients until the step ends, then lie whole in its memory along `fsdp`.
    """

    in_loop = True
    _stages: ClassVar[type[Stages]] = Stages

    stages: int
    microbatches: int
    repeats: int = 1
    hold_weights: bool = False

    @staticmethod
    def check_config(node):
        for field in ("stages", "microbatches", "repeats"):
            if getattr(node, field) < 1:
                yield f"Pipeline {field} ({getattr(node, field)}) must be at least 1."
        if node.repeats > 1 and node.stages > 0 and node.microbatches % node.stages:
            yield (
                f"Pipeline microbatches ({node.microbatches}) must be a multiple of"
                f" stages ({node.stages}) where repeats ({node.repeats}) is above 1."
            )

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.stages, self.microbatches, self.repeats)

    @property
    def in_sequence(self) -> Execution:
        return Scan()

    def rest(self, repeats: int) -> int:
        """Returns how many of a stack's repeats run before the pipeline."""
        return repeats % (self.stages * self.repeats)

    def dim(self, repeats: int) -> str:
        # The devices along the mesh axis `stage` cannot share a rest evenly.
        return "layers" if self.rest(repeats) else "stages"

    def check_rows(self, rows: int, sharding: Sharding) -> None:
        self._check_devices(sharding.size(STAGE))
        # Each of these shards computes the gradients of its own rows.
        parts = math.prod(sharding.size(axis) for axis in sharding.parallel)
        if rows % (parts * self.microbatches):
            raise UserError(
                f"The rows of a batch that a pipeline is given ({rows}) must be a"
                f" multiple of its microbatches ({self.microbatches}) times the shards"
                f" of the rows ({parts}, mesh axes"
                f" {' x '.join(sharding.parallel) or 'none'}); change batch_size, or"
                " take fewer microbatches."
            )
        rows = rows // parts // self.microbatches
        alone = (*sharding.alone, STAGE, *sharding.parallel)
        inner = dataclasses.replace(sharding, alone=alone)
        inner.check("rows of a microbatch", (rows,), ("batch",))

    def _check_devices(self, devices: int) -> None:
        for name in ("stages", "microbatches"):
            if getattr(self, name) % devices:
                raise UserError(
                    f"Pipeline {name} ({getattr(self, name)}) must be a multiple of the"
                    f" mesh axis 'stage' ({devices}); change one of them."
                )

    def run(
        self, layers: Layers, x: jax.Array, context: Context, remat: Remat
    ) -> tuple[jax.Array, Results]:
        # What stages compute in bubbles is no work of the model.
        if x.shape[0] % self.microbatches or is_counting():
            return self.in_sequence.run(layers, x, context, remat)
        rest = self.rest(layers.repeats)
        if not rest:
            return self._run(layers, x, context, remat)
        if rest == layers.repeats:
            return self.in_sequence.run(layers, x, context, remat)
        first, others = layers.cut([rest, layers.repeats - rest])
        x, before = self.in_sequence.run(first, x, context, remat)
        x, after = self._run(others, x, context, remat)
        return x, joined((before, after))

    def _run(
        self, layers: Layers, x: jax.Array, context: Context, remat: Remat
    ) -> tuple[jax.Array, Results]:
        """Runs repeats all of which go through the pipeline."""
        stages = functools.partial(self._stages, self.schedule, layers, remat)
        # Each iteration reads all of them, so what is in host memory comes once.
        params = on_device(layers.params)
        declared = layers.parameters() if self.hold_weights else None
        arrays = params, layers.state, x, context.rows, context.key
        sharding = context.sharding
        devices = 1 if sharding is None else sharding.size(STAGE)
        self._check_devices(devices)
        if sharding is None or devices == 1:
            params, context = _held(declared, params, context)
            x, state, sinks = stages(context, Line())(params, *arrays[1:])
            return x, Results(state, sinks, {})

        def of_device(params, *arrays):
            inner = dataclasses.replace(context, sharding=sharding.within_stage())
            params, inner = _held(declared, params, inner)
            return stages(inner, Line(STAGE, devices))(params, *arrays)

        cut, whole = PartitionSpec(STAGE), PartitionSpec()
        x, state, sinks = jax.shard_map(
            of_device,
            mesh=sharding.mesh,
            in_specs=(cut, cut, cut, cut, whole),
            out_specs=(cut, cut, cut),
            axis_names={STAGE},
            check_vma=False,
        )(*arrays)
        return x, Results(state, sinks, {})


class Pipeline1F1B(Pipeline):
    """A pipeline whose activations take the memory of a few microbatches.

    They are those of `2 R S - 1` microbatches at the entrance of a stage, however many
    there are; `Pipeline` keeps `M R + S - 1`. It runs the forward pass twice, see
    `one_forward_one_backward.py`.
    """

    _stages = OneForwardOneBackward


def _held(
    declared: Sequence[Parameter] | None, params: Any, context: Context
) -> tuple[Any, Context]:
    """Returns parameters as the stages of a device hold them, and their context.

    Args:
      declared: Of all parameters, for them to be gathered; None: they stay as they are.
    """
    sharding = context.sharding
    if sharding is None or declared is None:
        return params, context
    leaves, form = jax.tree.flatten(params)
    pairs = zip(leaves, declared, strict=True)
    held = [sharding.gather(leaf, each.full_axes) for leaf, each in pairs]
    whole = sharding.with_whole_weights()
    return form.unflatten(held), dataclasses.replace(context, sharding=whole)
