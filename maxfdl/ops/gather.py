"""What a product asks of a mesh whose devices hold shards of its kernel."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax


@runtime_checkable
class Gather(Protocol):
    """Where arrays with the dims of a kernel lie, whose shards several devices hold.

    `maxfdl.sharding.sharding.Gather` is one.
    """

    def __call__(self, a: jax.Array) -> jax.Array:
        """Gathers the shards of an array."""
        ...

    def cut(self, a: jax.Array) -> jax.Array:
        """Leaves each device its shard of an array."""
        ...

    @property
    def lanes(self) -> int:
        """Into how many parts the devices cut the rows of activations."""
        ...

    def by_lane(self, a: jax.Array) -> jax.Array:
        """Leaves each device its place along the first dim, which counts lanes."""
        ...

    def whole(self, a: jax.Array) -> jax.Array:
        """Gathers an array that has other dims, such as scales of the kernel."""
        ...


@runtime_checkable
class GroupGather(Gather, Protocol):
    """The same for kernels of groups, whose rows each device has some of."""

    def done(self) -> "GroupGather":
        """Returns the same for a kernel that is gathered already."""
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
