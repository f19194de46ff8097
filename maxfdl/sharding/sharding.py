"""Rules applied on a mesh: from logical dims to shardings of arrays."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import jax
from jax.sharding import NamedSharding, PartitionSpec

from maxfdl.errors import UserError
from maxfdl.sharding.mesh import REPLICA
from maxfdl.sharding.rules import AxisRules, dims

DATA = "data"
"""The mesh axis along which copies of one model see other rows of a batch."""


@dataclasses.dataclass(frozen=True)
class Sharding:
    """A mesh and the rules for it.

    Args:
      mesh: The devices; of a program that runs on each shard apart, their abstraction.
      rules: Which mesh axes cut which dims.
      apart: Mesh axes whose shards run apart, so that an array here is one shard's.
      alone: Mesh axes whose shards do too, and train models of their own: sums over a
        batch do not cross them.
    """

    mesh: jax.sharding.Mesh
    rules: AxisRules
    apart: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()

    @property
    def manual(self) -> tuple[str, ...]:
        """Mesh axes that XLA does not shard arrays over here."""
        return (*self.alone, *self.apart)

    def within(self, axes: tuple[str, ...]) -> "Sharding":
        """Returns the sharding inside a `shard_map` over these mesh axes.

        A `shard_map` may stand in another: axes that run apart already still do.
        """
        mesh = cast(jax.sharding.Mesh, jax.sharding.get_abstract_mesh())
        apart = tuple(dict.fromkeys((*self.apart, *axes)))
        return dataclasses.replace(self, mesh=mesh, apart=apart)

    def within_replica(self) -> "Sharding":
        """Returns the sharding of one replica, inside a `shard_map` over `replica`."""
        mesh = cast(jax.sharding.Mesh, jax.sharding.get_abstract_mesh())
        return dataclasses.replace(self, mesh=mesh, alone=(REPLICA,))

    def size(self, axis: str) -> int:
        """Returns the devices along a mesh axis: 1 where the mesh lacks it."""
        return self.mesh.shape.get(axis, 1)

    @property
    def data_parallel(self) -> int:
        """Whole copies of a model that see other rows of its batch: 1 where rules cut
        parameters along the mesh axis `data`, too."""
        cut_by = {dim for dim in dims() if DATA in getattr(self.rules, dim)}
        return self.size(DATA) if cut_by == {"batch"} else 1

    def psum(self, x: jax.Array) -> jax.Array:
        """Returns the `psum` of `x` over the axes `apart`; no gradient flows."""
        x = jax.lax.stop_gradient(x)
        return jax.lax.psum(x, self.apart) if self.apart else x

    def spec(
        self,
        axes: Sequence[str | None],
        only: Sequence[str] | None = None,
    ) -> PartitionSpec:
        """Returns the PartitionSpec of an array whose dims have these names.

        A mesh axis serves one dim only: the first that asks. Axes of size 1 and, if
        `only` is given, all others are left out.
        """
        taken = set(self.manual)
        if only is not None:
            taken.update(set(self.mesh.axis_names) - set(only))
        entries = []
        for axis in axes:
            wanted = () if axis is None else getattr(self.rules, axis)
            free = tuple(a for a in wanted if a not in taken and self.size(a) > 1)
            taken.update(free)
            entries.append(free[0] if len(free) == 1 else free or None)
        return PartitionSpec(*entries)

    def named(self, axes: Sequence[str | None]) -> NamedSharding:
        """Returns the sharding of a stored array with these dims."""
        return NamedSharding(self.mesh, self.spec(axes))

    def batch_axes(self) -> tuple[str, ...]:
        """Returns the mesh axes that cut the rows of a batch."""
        here = [a for a in self.rules.batch if a not in self.manual]
        return tuple(a for a in here if self.size(a) > 1)

    def share_of_rows(self) -> tuple[int, int]:
        """Returns which share of a batch's rows this process feeds, and of how many.

        Processes whose devices hold the same rows feed the same share.

        Raises:
          UserError: If the rows of its devices are no share of the whole.
        """
        parts = math.prod(self.mesh.shape[axis] for axis in self.batch_axes())
        places = self.named(("batch",)).devices_indices_map((parts,))
        mine = [places[device][0] for device in jax.local_devices() if device in places]
        here = sorted({rows.start or 0 for rows in mine})
        size, first = len(here), here[0]
        if here != [*range(first, first + size)] or parts % size or first % size:
            raise UserError(
                f"mesh {dict(self.mesh.shape)} cuts a batch into {parts} parts, of"
                f" which the devices of this process hold the parts {here}; they must"
                " be neighbours, and begin at a multiple of their number: give the axes"
                f" that cut the batch ({', '.join(self.batch_axes())}) sizes that"
                " divide the number of processes, or are a multiple of it."
            )
        return first // size, parts // size

    def constrain(self, x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
        """Pins an activation; its batch claims the mesh axes before its width does."""
        sharding = NamedSharding(self.mesh, self.spec(axes))
        return jax.lax.with_sharding_constraint(x, sharding)

    def spec_in_use(self, axes: Sequence[str]) -> PartitionSpec:
        """Returns the PartitionSpec of a weight with these dims while it is used.

        It is the stored one without the mesh axes that cut the tokens, but for dims
        that stay cut.
        """
        of_tokens = {*self.rules.batch, *self.rules.sequence}

        def in_use(axis: str, entry: Any) -> Any:
            if entry is None or axis in self.rules.cut_in_use:
                return entry
            names = (entry,) if isinstance(entry, str) else entry
            left = tuple(name for name in names if name not in of_tokens)
            return left[0] if len(left) == 1 else left or None

        return PartitionSpec(*map(in_use, axes, self.spec(axes)))

    def gather(self, weight: jax.Array, axes: Sequence[str]) -> jax.Array:
        """Pins a weight for use, see `spec_in_use`."""
        sharding = NamedSharding(self.mesh, self.spec_in_use(axes))
        return jax.lax.with_sharding_constraint(weight, sharding)

    def gather_of(self, axes: tuple[str, ...]) -> "Gather":
        """Returns what gathers arrays that lie as a weight with these dims does."""
        return Gather(self, axes)

    def check(self, path: str, shape: Sequence[int], axes: Sequence[str]) -> None:
        """Refuses an array that its rules cannot cut evenly.

        Raises:
          UserError: Naming the parameter, the dim and the mesh axes.
        """
        for dim, axis, entry in zip(shape, axes, self.spec(axes), strict=True):
            names = (entry,) if isinstance(entry, str) else entry or ()
            parts = math.prod(self.mesh.shape[name] for name in names)
            if dim % parts:
                raise UserError(
                    f"{path}: dim {axis!r} of size {dim} cannot be cut into {parts} by"
                    f" mesh axis {' x '.join(names)}; change the size, the mesh, or"
                    f" sharding.{axis}."
                )


@dataclasses.dataclass(frozen=True)
class Gather:
    """Where arrays lie that have the dims of one weight.

    Args:
      sharding: The mesh and the rules.
      axes: Logical names of the dims of the weight.
    """

    sharding: Sharding
    axes: tuple[str, ...]

    def __call__(self, a: jax.Array) -> jax.Array:
        """Gathers an array for use, in the type that it has.

        Pinning it as it is stored first keeps XLA from gathering what it is made of.
        """
        return self.sharding.gather(self.cut(a), self.axes)

    def cut(self, a: jax.Array) -> jax.Array:
        """Pins an array to lie as the weight is stored."""
        place = self.sharding.named(self.axes)
        return jax.lax.with_sharding_constraint(a, place)

    @property
    def lanes(self) -> int:
        """Into how many parts the mesh cuts the rows of a batch."""
        axes = self.sharding.batch_axes()
        return math.prod(self.sharding.mesh.shape[axis] for axis in axes)

    def by_lane(self, a: jax.Array) -> jax.Array:
        """Pins an array whose first dim counts lanes: each lies with its rows."""
        others = [PartitionSpec.UNCONSTRAINED] * (a.ndim - 1)
        spec = PartitionSpec(*self.sharding.spec(("batch",)), *others)
        place = NamedSharding(self.sharding.mesh, spec)
        return jax.lax.with_sharding_constraint(a, place)

    def whole(self, a: jax.Array) -> jax.Array:
        """Gathers an array of other dims, such as scales, to every device."""
        place = NamedSharding(self.sharding.mesh, PartitionSpec())
        return jax.lax.with_sharding_constraint(a, place)
