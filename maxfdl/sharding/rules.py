"""Which mesh axes shard each logical dim."""

import dataclasses
from typing import Literal

from maxfdl.sharding.mesh import REPLICA, STAGE, axis_names

MeshAxes = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class AxisRules:
    """One field per logical dim; its value names the mesh axes that cut it.

    The default is fully sharded data parallelism (ZeRO-3, Rajbhandari et al. 2020)
    over `fsdp`, with Megatron's cuts (Shoeybi et al. 2019) over `tensor`. Sequences are
    cut over `context` and experts over `expert`; both axes shard the other parameters
    as `fsdp` does, and rows are cut over `expert`, too. The axis `stage` cuts the
    layers of a pipeline (`stages`), and is one more axis like `fsdp` outside of it.

    Where a mesh axis cuts both a weight and the tokens, the weight is gathered over it
    for use, for each device needs all of it for its own tokens. The dims in
    `cut_in_use` are not: such weights stay where they lie, and tokens travel to them,
    as they do to experts (Lepikhin et al. 2020, https://arxiv.org/abs/2006.16668).

    `sequence` cuts the tokens where layers mix features of each: queries, keys, values,
    hidden features. `residual` cuts them between, where norms and residuals work on
    each token alone: with `("context", "tensor")` each of the tensor-parallel shards
    has other tokens there (sequence parallelism, Korthikanti et al. 2022,
    https://arxiv.org/abs/2205.05198), whose activations take less memory. An all-reduce
    per product of two cut kernels then is a reduce-scatter and an all-gather.

    Args:
      cut_in_use: Logical dims along which weights are never gathered for use.
      reduce: Type in which devices add up the gradients of a weight that they gathered:
        `compute`, that of its products, or `float32`, at twice the traffic. A sum of
        bfloat16 numbers over a torus of 4 x 4 devices is off by 4e-3 of its norm, over
        16 x 16 by 7e-3.
    """

    batch: MeshAxes = (REPLICA, "data", STAGE, "fsdp", "expert")
    sequence: MeshAxes = ("context",)
    residual: MeshAxes = ("context",)
    embed: MeshAxes = ("fsdp", STAGE, "context", "expert")
    heads: MeshAxes = ("tensor",)
    kv_heads: MeshAxes = ("tensor",)
    head_dim: MeshAxes = ()
    mlp: MeshAxes = ("tensor",)
    experts: MeshAxes = ("expert",)
    expert_mlp: MeshAxes = ("tensor",)
    vocab: MeshAxes = ("tensor",)
    norm: MeshAxes = ()
    taps: MeshAxes = ()
    history: MeshAxes = ()
    positions: MeshAxes = ()
    rank: MeshAxes = ("fsdp", "expert")
    latent: MeshAxes = ("fsdp", "expert")
    pair: MeshAxes = ()
    groups: MeshAxes = ()
    stages: MeshAxes = (STAGE,)
    layers: MeshAxes = ()
    cut_in_use: tuple[str, ...] = ("experts",)
    reduce: Literal["compute", "float32"] = "compute"

    @staticmethod
    def check_config(node):
        for dim in dims():
            axes = (*axis_names(), REPLICA) if dim == "batch" else axis_names()
            for axis in getattr(node, dim):
                if axis not in axes:
                    yield (
                        f"AxisRules {dim} names the mesh axis {axis!r}, which"
                        f" must be one of {', '.join(axes)}."
                    )
        for dim in node.cut_in_use:
            if dim not in dims():
                yield (
                    f"AxisRules cut_in_use names the dim {dim!r}, which must be one of"
                    f" {', '.join(dims())}."
                )


def dims() -> tuple[str, ...]:
    """Returns the names of the logical dims that there are rules for."""
    names = [field.name for field in dataclasses.fields(AxisRules)]
    return tuple(name for name in names if name not in ("cut_in_use", "reduce"))
