"""What a product asks of a mesh whose devices hold shards of its kernel."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
from jax.typing import DTypeLike


@runtime_checkable
class Gather(Protocol):
    """Where arrays with the dims of a kernel lie, whose shards several devices hold.

    `maxfdl.sharding.gather.Gather` is one.
    """

    def __call__(self, a: jax.Array) -> jax.Array:
        """Gathers the shards of an array."""
        ...

    def weight(self, a: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Gathers the kernel itself, cast to `dtype`; it has a gradient."""
        ...

    def cut(self, a: jax.Array, dtype: DTypeLike) -> jax.Array:
        """Leaves each device its shard of the kernel's gradient, in the type of `a`.

        Devices that run apart add theirs up, in `dtype`.
        """
        ...

    def done(self) -> "Gather":
        """Returns the same for a kernel that is gathered already."""
        ...

    @property
    def cuts(self) -> Sequence[tuple[int, tuple[str, ...]]]:
        """Dims of the kernel of which a function here sees one shard: those that are
        cut along mesh axes that run apart."""
        ...

    def whole_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the kernel whose part here has the shape `shape`."""
        ...

    @property
    def lanes(self) -> int:
        """Into how many parts the devices cut the rows of activations."""
        ...

    def by_lane(self, a: jax.Array) -> jax.Array:
        """Leaves each device its place along the first dim, which counts lanes."""
        ...

    def greatest(self, a: jax.Array, dims: Sequence[int]) -> jax.Array:
        """Returns the greatest of what shards found along these dims of the kernel."""
        ...

    def whole(self, a: jax.Array, dims: Sequence[int | None]) -> jax.Array:
        """Gathers an array that has other dims, such as scales of the kernel.

        Args:
          a: The array.
          dims: For each of its dims the dim of the kernel along which it counts.
        """
        ...


@runtime_checkable
class GroupGather(Gather, Protocol):
    """The same for kernels of groups, whose rows each device has some of."""

    def done(self) -> "GroupGather":
        """Returns the same for kernels that are gathered already."""
        ...

    def each(
        self,
        function: Callable,
        inputs: Sequence[str],
        output: str,
        reduce: Callable = jax.lax.psum,
    ) -> Callable:
        """Returns `function` run by each device on its own rows and groups."""
        ...
