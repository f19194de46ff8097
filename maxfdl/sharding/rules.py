"""Which mesh axes shard each logical dim."""

import dataclasses

from maxfdl.sharding.mesh import axis_names

MeshAxes = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class AxisRules:
    """One field per logical dim; its value names the mesh axes that cut it.

    The default is fully sharded data parallelism (ZeRO-3, Rajbhandari et al. 2020)
    over `fsdp`, with Megatron's cuts (Shoeybi et al. 2019) over `tensor`.
    """

    batch: MeshAxes = ("data", "fsdp")
    sequence: MeshAxes = ()
    embed: MeshAxes = ("fsdp",)
    heads: MeshAxes = ("tensor",)
    kv_heads: MeshAxes = ("tensor",)
    head_dim: MeshAxes = ()
    mlp: MeshAxes = ("tensor",)
    experts: MeshAxes = ()
    expert_mlp: MeshAxes = ("tensor",)
    vocab: MeshAxes = ("tensor",)
    norm: MeshAxes = ()
    taps: MeshAxes = ()
    positions: MeshAxes = ()
    rank: MeshAxes = ()
    latent: MeshAxes = ()
    pair: MeshAxes = ()
    layers: MeshAxes = ()

    @staticmethod
    def check_config(node):
        for field in dataclasses.fields(AxisRules):
            for axis in getattr(node, field.name):
                if axis not in axis_names():
                    yield (
                        f"AxisRules {field.name} names the mesh axis {axis!r}, which"
                        f" must be one of {', '.join(axis_names())}."
                    )
