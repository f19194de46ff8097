"""Which mesh axes shard each logical dim."""

import dataclasses

from maxfdl.sharding.mesh import axis_names

MeshAxes = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class AxisRules:
    """One field per logical dim; its value names the mesh axes that cut it.

    A weight is gathered for use along the mesh axes that cut the batch. The dims that
    `cut_in_use` names are left out of this: `("experts",)` leaves each device its own
    experts where `experts` names such an axis.

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
    cut_in_use: tuple[str, ...] = ()

    @staticmethod
    def check_config(node):
        dims = [field.name for field in dataclasses.fields(AxisRules)]
        dims.remove("cut_in_use")
        for name in node.cut_in_use:
            if name not in dims:
                yield (
                    f"AxisRules cut_in_use names the dim {name!r}, which must be one of"
                    f" {', '.join(dims)}."
                )
        for name in dims:
            for axis in getattr(node, name):
                if axis not in axis_names():
                    yield (
                        f"AxisRules {name} names the mesh axis {axis!r}, which"
                        f" must be one of {', '.join(axis_names())}."
                    )
