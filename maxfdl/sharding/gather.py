"""What a product is given to gather its kernel, and to reduce the kernel's gradient.

Products in few bits gather codes and scales instead of the weight, so they call this
themselves; `Sharding.gather` does the same for a weight in the type of activations.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from maxfdl.sharding.rings import reduce_scatter
from maxfdl.sharding.sharding import Sharding
from maxfdl.sharding.spec import Cuts, names_of


@dataclasses.dataclass(frozen=True)
class Gather:
    """Where arrays lie that have the dims of one weight.

    Args:
      sharding: The mesh and the rules.
      axes: Logical names of the dims of the weight.
      is_done: Whether arrays come gathered already.
    """

    sharding: Sharding
    axes: tuple[str, ...]
    is_done: bool = False

    def done(self) -> "Gather":
        """Returns the same for a weight that is gathered already."""
        return dataclasses.replace(self, is_done=True)

    def __call__(self, a: jax.Array) -> jax.Array:
        """Gathers an array for use, in the type that it has.

        Pinning it as it is stored first keeps XLA from gathering what it is made of.
        """
        if self.is_done:
            return a
        stored = lax.with_sharding_constraint(a, self.sharding.named(self.axes))
        return self.sharding.whole(stored, self.cuts, self.axes)

    def weight(self, a: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Gathers a weight in `dtype`, see `Sharding.gather`."""
        return self.sharding.gather(a, self.axes, dtype)

    def cut(self, a: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Leaves each device its shard of the gradient of the weight.

        Shards that run apart add theirs up in `dtype`. The result has the type of `a`.
        """
        if self.is_done:
            return a
        summed = a.astype(dtype) if self.cuts else a
        return self.sharding.reduce(summed, self.axes, a.dtype)

    @property
    def cuts(self) -> Cuts:
        """Dims that are cut along mesh axes that run apart, and gathered for use."""
        return () if self.is_done else self.sharding.cuts(self.axes)

    def whole_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the weight whose part here has the shape `shape`."""
        whole = list(shape)
        for dim, names in self.cuts:
            whole[dim] *= math.prod(map(self.sharding.size, names))
        return tuple(whole)

    def each(
        self,
        function: Callable,
        inputs: Sequence[str],
        output: str,
        reduce: Callable = lax.psum,
    ) -> Callable:
        """Returns `function` run by each device on its own rows and experts.

        Each array has one letter per dim. m is what every device has its own of: rows
        in the order of experts, blocks of such rows, or the number of rows of each
        expert. e, d and f are the experts, inputs and outputs of the weight. A dim with
        any other letter is whole on every device.

        Devices that compute the same part of the output from different inputs reduce
        it. The gradient of the weight, `edf`, is reduce-scattered to where the weight
        is stored.

        Args:
          function: Of arrays, to one.
          inputs, output: Letters of the arrays.
          reduce: `psum` or `pmax`.
        """
        in_specs = tuple(map(self._spec, inputs))
        out_spec = self._spec(output)
        is_gradient = output == "edf" and not self.is_done
        given = {name for spec in in_specs for e in spec for name in names_of(e)}
        left = given - {name for entry in out_spec for name in names_of(entry)}

        def own(*args):
            result, over = function(*args), left
            if is_gradient:
                for dim, axes in self._scattered(out_spec, left):
                    for axis in axes:
                        rings = self.sharding.rings(axis)
                        result = reduce_scatter(result, axis, dim, rings)
                    over = over - set(axes)
            return reduce(result, tuple(sorted(over))) if over else result

        if is_gradient:
            stored = dict(self._scattered(out_spec, left))
            entries = [stored.get(dim, entry) for dim, entry in enumerate(out_spec)]
            return self.sharding.on_each(own, in_specs, PartitionSpec(*entries))
        return self.sharding.on_each(own, in_specs, out_spec)

    def _spec(self, letters: str) -> PartitionSpec:
        rows = self.sharding.axes_of_rows()
        in_use = dict(zip("edf", self.sharding.spec_in_use(self.axes), strict=True))
        for letter in "df":
            kept = tuple(a for a in names_of(in_use[letter]) if a not in rows)
            in_use[letter] = kept or None
        return PartitionSpec(*[{"m": rows, **in_use}.get(c) for c in letters])

    def _scattered(
        self, spec: PartitionSpec, summed: set[str]
    ) -> list[tuple[int, tuple[str, ...]]]:
        """Returns the dims of a gradient along which devices keep a part of a sum."""
        stored = map(names_of, self.sharding.spec(self.axes))
        return [
            (dim, axes)
            for dim, axes in enumerate(stored)
            if axes and spec[dim] is None and summed.issuperset(axes)
        ]

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
        return lax.with_sharding_constraint(a, place)

    def greatest(self, a: jax.Array, dims: Sequence[int]) -> jax.Array:
        """Returns the greatest of what shards found along these dims of the weight."""
        names = tuple(name for dim, by in self.cuts if dim in dims for name in by)
        return lax.pmax(lax.stop_gradient(a), names) if names else a

    def whole(self, a: jax.Array, dims: Sequence[int | None]) -> jax.Array:
        """Gathers an array of other dims, such as scales, to every device.

        Args:
          a: The array.
          dims: For each of its dims the dim of the weight along which it counts.
        """
        of_weight = dict(self.cuts)
        cuts = [(i, of_weight[d]) for i, d in enumerate(dims) if d in of_weight]
        place = NamedSharding(self.sharding.mesh, PartitionSpec())
        return self.sharding.whole(lax.with_sharding_constraint(a, place), tuple(cuts))
