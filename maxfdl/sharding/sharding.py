"""Rules applied on a mesh: from logical dims to shardings of arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from maxfdl.errors import UserError
from maxfdl.sharding.mesh import REPLICA, STAGE
from maxfdl.sharding.rings import Rings, all_gather, reduce_scatter, rings_of
from maxfdl.sharding.rules import AxisRules, dims
from maxfdl.sharding.shares import Shares
from maxfdl.sharding.spec import Cuts, names_of

DATA = "data"
"""The mesh axis along which copies of one model see other rows of a batch."""


@dataclasses.dataclass(frozen=True)
class Sharding:
    """A mesh and the rules for it.

    Args:
      mesh: The devices; inside a `shard_map`, their abstraction.
      rules: Which mesh axes cut which dims.
      apart: Manual mesh axes along which devices have other rows or tokens of the same
        batch. An array here is the part of one device.
      alone: Manual mesh axes along which devices have other models or layers, as
        DiLoCo's replicas and the stages of a pipeline do: sums over a batch do not
        cross them.
      devices: The devices where `mesh` is their abstraction, if they are known.
    """

    mesh: Mesh
    rules: AxisRules
    apart: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    devices: Mesh | None = None

    @property
    def manual(self) -> tuple[str, ...]:
        """Mesh axes that XLA does not shard arrays over here."""
        return (*self.alone, *self.apart)

    def within(self, axes: tuple[str, ...]) -> "Sharding":
        """Returns the sharding inside a `shard_map` over these mesh axes.

        A `shard_map` may stand in another: axes that run apart already still do.
        """
        apart = tuple(dict.fromkeys((*self.apart, *axes)))
        return dataclasses.replace(self._abstract(), apart=apart)

    def within_replica(self) -> "Sharding":
        """Returns the sharding of one replica, inside a `shard_map` over `replica`."""
        return self._alone(REPLICA)

    def within_stage(self) -> "Sharding":
        """Returns the sharding of one stage, inside a `shard_map` over `stage`."""
        return self._alone(STAGE)

    def _alone(self, axis: str) -> "Sharding":
        return dataclasses.replace(self._abstract(), alone=(*self.alone, axis))

    def with_whole_rows(self) -> "Sharding":
        """Returns the sharding without the mesh axes that cut rows along their tokens.

        They then cut no other dim either.
        """
        axes = self.rules.sequence
        left = {
            name: tuple(axis for axis in getattr(self.rules, name) if axis not in axes)
            for name in dims()
        }
        rules = dataclasses.replace(self.rules, **left | {"residual": ()})
        return dataclasses.replace(self, rules=rules)

    def with_whole_weights(self) -> "Sharding":
        """Returns the sharding for layers whose weights are gathered already.

        Mesh axes that cut rows or tokens then cut no dim of a weight, except the dims
        in `rules.cut_in_use`, such as experts, which are never gathered.
        """
        of_tokens = {*self.rules.batch, *self.rules.sequence}
        keep = {"batch", "sequence", "residual", "stages", "layers"}
        keep.update(self.rules.cut_in_use)
        left = {
            name: tuple(a for a in getattr(self.rules, name) if a not in of_tokens)
            for name in dims()
            if name not in keep
        }
        rules = dataclasses.replace(self.rules, **left)
        return dataclasses.replace(self, rules=rules)

    def _abstract(self) -> "Sharding":
        """Returns the sharding on the mesh as it is inside a `shard_map`."""
        mesh = cast(Mesh, jax.sharding.get_abstract_mesh())
        return dataclasses.replace(self, mesh=mesh, devices=self._known_devices())

    def size(self, axis: str) -> int:
        """Returns the devices along a mesh axis: 1 where the mesh lacks it."""
        return self.mesh.shape.get(axis, 1)

    @property
    def data_parallel(self) -> int:
        """Whole copies of a model that see other rows of its batch: 1 where rules cut
        parameters along the mesh axis `data`, too."""
        cut_by = {dim for dim in dims() if DATA in getattr(self.rules, dim)}
        return self.size(DATA) if cut_by == {"batch"} else 1

    @property
    def parallel(self) -> tuple[str, ...]:
        """Mesh axes along which each device computes the gradients of its own rows.

        They cut the rows, and every weight is gathered along them for use. Along other
        axes that cut rows, such as `expert`, some weights stay cut and tokens travel.
        """
        stay = {a for dim in self.rules.cut_in_use for a in getattr(self.rules, dim)}
        stay.update(self.rules.stages, self.rules.layers)
        return tuple(axis for axis in self.batch_axes() if axis not in stay)

    def psum(self, x: jax.Array) -> jax.Array:
        """Returns the `psum` of `x` over the axes `apart`; no gradient flows."""
        x = lax.stop_gradient(x)
        return lax.psum(x, self.apart) if self.apart else x

    def spec(
        self,
        axes: Sequence[str | None],
        only: Sequence[str] | None = None,
    ) -> PartitionSpec:
        """Returns the PartitionSpec of an array whose dims have these names.

        A mesh axis serves one dim only: the first that asks. Axes of size 1 and, if
        `only` is given, all others are left out.
        """
        return self._spec(axes, self.manual, only)

    def _spec(
        self,
        axes: Sequence[str | None],
        without: Sequence[str],
        only: Sequence[str] | None = None,
    ) -> PartitionSpec:
        taken = set(without)
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

    def shares_of_rows(self) -> Shares:
        """Returns the shares of a batch's rows that this process feeds.

        They are those that its devices hold. Processes whose devices hold the same rows
        feed the same shares.
        """
        parts = math.prod(self.mesh.shape[axis] for axis in self.batch_axes())
        places = self.named(("batch",)).devices_indices_map((parts,))
        mine = [places[device][0] for device in jax.local_devices() if device in places]
        return Shares.of((rows.start or 0 for rows in mine), parts)

    def constrain(self, x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
        """Pins an activation; its batch claims the mesh axes before its width does."""
        sharding = NamedSharding(self.mesh, self.spec(axes))
        return lax.with_sharding_constraint(x, sharding)

    def spec_in_use(self, axes: Sequence[str | None]) -> PartitionSpec:
        """Returns the PartitionSpec of a weight with these dims while it is used.

        It is the stored one without the mesh axes that cut rows or tokens, except in
        the dims of `rules.cut_in_use`.
        """
        of_tokens = {*self.rules.batch, *self.rules.sequence}

        def in_use(axis: str | None, entry: Any) -> Any:
            if entry is None or axis in self.rules.cut_in_use:
                return entry
            left = tuple(name for name in names_of(entry) if name not in of_tokens)
            return left[0] if len(left) == 1 else left or None

        return PartitionSpec(*map(in_use, axes, self.spec(axes)))

    def gather(
        self,
        weight: jax.Array,
        axes: Sequence[str | None],
        dtype: DTypeLike | None = None,
    ) -> jax.Array:
        """Returns a weight ready for use: cast to `dtype`, then gathered.

        The cast comes first so that what crosses the mesh is in the compute type. Along
        mesh axes that run apart, the gradient comes back by one reduce-scatter, in the
        type that `rules.reduce` says. Along others XLA chooses how.
        """
        dtype = jnp.dtype(dtype or weight.dtype)
        if not (cuts := self.cuts(axes)):
            return self._pinned_for_use(weight.astype(dtype), axes)
        if not jnp.issubdtype(weight.dtype, jnp.floating):
            return self.whole(weight.astype(dtype), cuts, axes)
        return _gathered(self, tuple(axes), dtype, weight.dtype, weight)

    def cuts(self, axes: Sequence[str | None]) -> Cuts:
        """Returns which dims of a weight lie cut along mesh axes that run apart, and
        are gathered for use."""
        stored = self._spec(axes, self.alone)
        apart = [
            (dim, tuple(name for name in names_of(entry) if name in self.apart))
            for dim, (axis, entry) in enumerate(zip(axes, stored, strict=True))
            if axis not in self.rules.cut_in_use
        ]
        return tuple((dim, names) for dim, names in apart if names)

    def whole(
        self, x: jax.Array, cuts: Cuts, axes: Sequence[str | None] | None = None
    ) -> jax.Array:
        """Returns an array gathered along the dims in `cuts`.

        With the names of its dims, it is first gathered along the other mesh axes.
        """

        def gathered(x: jax.Array) -> jax.Array:
            for dim, names in cuts:
                for name in reversed(names):
                    x = all_gather(x, name, dim, self.rings(name))
            return x

        if axes is None:
            return gathered(x)
        return self._beside_others(gathered, cuts, axes)(self._pinned_for_use(x, axes))

    def reduce(
        self, gradient: jax.Array, axes: Sequence[str | None], dtype: DTypeLike
    ) -> jax.Array:
        """Returns the gradient of a weight, as the weight is stored.

        Along mesh axes that run apart and cut the weight, shards add up theirs, in the
        type of `gradient` or in float32; along others they do so at the end of a step.
        """
        if self.rules.reduce == "float32" or self._is_on_cpu():
            gradient = gradient.astype(jnp.float32)
        cuts = self.cuts(axes)

        def scattered(gradient: jax.Array) -> jax.Array:
            for dim, names in cuts:
                for name in names:
                    gradient = reduce_scatter(gradient, name, dim, self.rings(name))
            return gradient

        gradient = self._beside_others(scattered, cuts, axes)(gradient)
        place = self.named(axes)
        return lax.with_sharding_constraint(gradient, place).astype(dtype)

    def _beside_others(
        self, function: Callable, cuts: Cuts, axes: Sequence[str | None]
    ) -> Callable:
        """Returns `function` of a weight, such as its gather along `cuts`, run by each
        device on the part of the other dims that it uses.

        Left to itself, XLA gathers these dims first: a gather over `fsdp` would be that
        of all experts, on every device.
        """
        dims = {dim for dim, _ in cuts}
        in_use = self.spec_in_use(axes)
        kept = [None if dim in dims else entry for dim, entry in enumerate(in_use)]
        if not cuts or not any(kept):
            return function
        return self.on_each(function, (PartitionSpec(*kept),), PartitionSpec(*kept))

    def rings(self, axis: str) -> Rings:
        """Returns the rings of the network that a mesh axis consists of."""
        devices = self._known_devices()
        return (self.size(axis),) if devices is None else rings_of(devices, axis)

    def _is_on_cpu(self) -> bool:
        """Returns whether XLA:CPU runs this, which aborts on a sum of bfloat16 inside a
        `shard_map` beside automatic mesh axes (JAX 0.10.2 and 0.12)."""
        devices = self._known_devices()
        return devices is not None and devices.devices.flat[0].platform == "cpu"

    def _known_devices(self) -> Mesh | None:
        return self.mesh if isinstance(self.mesh, Mesh) else self.devices

    def _pinned_for_use(self, x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
        place = NamedSharding(self.mesh, self.spec_in_use(axes))
        return lax.with_sharding_constraint(x, place)

    def on_each(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """Returns `function` run by each device on its own part of the arguments."""
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(self.mesh.axis_names) - set(self.manual),
            check_vma=False,
        )

    def axes_of_tokens(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Returns the mesh axes that cut the rows of a batch, and their tokens."""
        batch, sequence = self.spec(("batch", "sequence"))
        return names_of(batch), names_of(sequence)

    def axes_of_experts(self) -> tuple[str, ...]:
        """Returns the mesh axes that cut experts while they are used."""
        return names_of(self.spec_in_use(("experts",))[0])

    def axes_of_rows(self) -> tuple[str, ...]:
        """Returns the mesh axes that cut the rows that experts see."""
        batch, sequence = self.axes_of_tokens()
        return tuple(dict.fromkeys((*batch, *sequence, *self.axes_of_experts())))

    def check(self, path: str, shape: Sequence[int], axes: Sequence[str]) -> None:
        """Refuses an array that its rules cannot cut evenly.

        Raises:
          UserError: Naming the parameter, the dim and the mesh axes.
        """
        for dim, axis, entry in zip(shape, axes, self.spec(axes), strict=True):
            names = names_of(entry)
            parts = math.prod(self.mesh.shape[name] for name in names)
            if dim % parts:
                fitting = [n for n in range(1, parts) if dim % n == 0]
                raise UserError(
                    f"{path}: dim {axis!r} of size {dim} cannot be cut into {parts} by"
                    f" mesh axis {' x '.join(names)}; {_listed(fitting)} would fit:"
                    f" change the mesh, the size, or sharding.{axis}."
                )


def _listed(numbers: Sequence[int]) -> str:
    """Returns `1`, `1 or 2`, or `1, 2 or 4`; of many numbers the largest four."""
    *others, last = map(str, numbers[-4:])
    return f"{', '.join(others)} or {last}" if others else last


# Written out, so that the gradient is reduced in the type of the products, or in
# float32, before it is cast to the type that the weight is stored in.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _gathered(sharding, axes, dtype, stored_dtype, weight):
    return sharding.whole(cast_in_loop(weight, dtype), sharding.cuts(axes), axes)


def _gathered_forward(sharding, axes, dtype, stored_dtype, weight):
    return _gathered(sharding, axes, dtype, stored_dtype, weight), None


def _gathered_backward(sharding, axes, dtype, stored_dtype, _, gradient):
    return (sharding.reduce(gradient, axes, stored_dtype),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def cast_in_loop(weight: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns `weight.astype(dtype)`, by operations that XLA leaves inside of a loop.

    XLA moves a plain cast of each layer's weights before the loop over layers, where it
    makes a copy of the weights of all layers that stays until the backward pass ends.
    The upper half of a float32 number that has the precision of bfloat16 is that number
    in bfloat16. A NaN becomes the one whose upper half is a NaN: of others, the bits
    that set them apart from infinity may all lie in the lower half.
    """
    if weight.dtype != jnp.float32 or dtype != jnp.bfloat16:
        return weight.astype(dtype)
    rounded = lax.reduce_precision(weight, exponent_bits=8, mantissa_bits=7)
    rounded = jnp.where(jnp.isnan(weight), jnp.nan, rounded)
    upper_half = lax.bitcast_convert_type(rounded, jnp.uint32) >> 16
    return lax.bitcast_convert_type(upper_half.astype(jnp.uint16), jnp.bfloat16)
