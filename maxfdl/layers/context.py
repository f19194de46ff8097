"""What every layer is told about the call, and where it leaves side results."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.typing import DTypeLike

from maxfdl.layers.parameter import path_hash
from maxfdl.sharding.sharding import Sharding


@dataclasses.dataclass(frozen=True)
class Context:
    """Passed along with the activations; a child gets `context.at(its name)`.

    Args:
      positions: [B, T] position of each token in its document.
      segment_ids: [B, T] document of each token in its row, or None if a row is one.
      key: Randomness of this step; None switches dropout off.
      sharding: Where arrays lie; None on a single device.
      path: Names from the model down to the layer that holds this context.
      sinks: Side results by path, filled by `emit` during one trace.
    """

    positions: jax.Array
    segment_ids: jax.Array | None = None
    key: jax.Array | None = None
    sharding: Sharding | None = None
    path: tuple[str, ...] = ()
    sinks: dict[str, Any] = dataclasses.field(default_factory=dict)

    def at(self, name: str) -> "Context":
        """Returns the context of the child called `name`."""
        return dataclasses.replace(self, path=(*self.path, name))

    def for_layer(self, index: jax.Array | int) -> "Context":
        """Returns the context of repeat `index` of a stack: own key, empty sinks."""
        key = None if self.key is None else jax.random.fold_in(self.key, index)
        return dataclasses.replace(self, key=key, sinks={})

    def layer_key(self) -> jax.Array:
        """Returns the key of this place: by step, repeat and path, never by order."""
        assert self.key is not None
        return jax.random.fold_in(self.key, path_hash("/".join(self.path)))

    def emit(self, name: str, value: Any) -> None:
        """Leaves a side result, to be found under this layer's path and `name`."""
        path = "/".join((*self.path, name))
        assert path not in self.sinks, f"sink {path} was filled twice"
        self.sinks[path] = value

    def collect(self, sinks: Mapping[str, Any]) -> None:
        """Takes over the side results of an inner context, such as a stack's."""
        assert not self.sinks.keys() & sinks.keys()
        self.sinks.update(sinks)

    def constrain(self, x: jax.Array, *axes: str) -> jax.Array:
        """Pins activations to the mesh by the logical names of their dims."""
        return x if self.sharding is None else self.sharding.constrain(x, axes)

    def weight(self, value: jax.Array, axes: tuple[str, ...], dtype: DTypeLike):
        """Returns a parameter ready for use in `dtype`: cast, then gathered.

        The cast comes first so that what crosses the mesh is in the compute type.
        """
        value = value.astype(dtype)
        return value if self.sharding is None else self.sharding.gather(value, axes)
