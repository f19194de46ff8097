"""What every layer is told about the call, and where it leaves side results."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.typing import DTypeLike

from maxfdl.layers.cache import EmptyCache
from maxfdl.layers.parameter import path_hash
from maxfdl.layers.sinks import SinkKey, Sinks
from maxfdl.ops.later import places_with_later
from maxfdl.ops.mask import Places
from maxfdl.ops.product import Depth
from maxfdl.sharding.gather import Gather
from maxfdl.sharding.memory import on_device
from maxfdl.sharding.sharding import Sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What a call is told of its rows: arrays whose first dim counts them.

    Whatever cuts a batch into parts cuts these along with the activations.

    Args:
      positions: [B, T] position of each token in its document.
      segment_ids: [B, T] document of each token in its row, or None if a row is one.
      numbers: [B] number of each row in its batch: with the key, it decides what of the
        row is random. Needed where there is a key.
    """

    positions: jax.Array
    segment_ids: jax.Array | None = None
    numbers: jax.Array | None = None

    @property
    def places(self) -> Places:
        return Places(self.positions, self.segment_ids)


class Outbox:
    """Where the layers of one call leave what is no activation, during one trace.

    Attributes:
      sinks: Side results.
      kept: Caches for the next call, by path.
    """

    def __init__(self):
        self.sinks: dict[SinkKey, Any] = {}
        self.kept: dict[str, Any] = {}


@dataclasses.dataclass(eq=False)
class Context:
    """Passed along with the activations; a child gets `context.at(its name)`.

    Args:
      rows: What belongs to the rows of the call.
      key: Randomness of this step; None switches dropout off.
      sharding: Where arrays lie; None on a single device.
      path: Names from the model down to the layer that holds this context.
      cache: What earlier calls left for this one, by path; None: nothing is kept.
      depth: Which layers of a decoder the call is for; None outside of decoders.
      outbox: What `emit` and `store` fill, the same for all layers of the call.
    """

    rows: Rows
    key: jax.Array | None = None
    sharding: Sharding | None = None
    path: tuple[str, ...] = ()
    cache: Mapping[str, Any] | EmptyCache | None = None
    depth: Depth | None = None
    outbox: Outbox = dataclasses.field(default_factory=Outbox)

    @property
    def positions(self) -> jax.Array:
        return self.rows.positions

    @property
    def places(self) -> Places:
        return self.rows.places

    @property
    def sinks(self) -> dict[SinkKey, Any]:
        """Side results so far."""
        return self.outbox.sinks

    @property
    def kept(self) -> dict[str, Any]:
        """Caches for the next call so far, by path."""
        return self.outbox.kept

    def at(self, name: str) -> "Context":
        """Returns the context of the child called `name`."""
        return dataclasses.replace(self, path=(*self.path, name))

    def at_depth(self, depth: Depth | None) -> "Context":
        """Returns the context of those layers of a decoder."""
        return dataclasses.replace(self, depth=depth)

    def in_cycle(self, layer: int, cycle: int) -> "Context":
        """Returns the context of a layer of a stack, whose cycle has `cycle` layers."""
        depth = self.depth and self.depth.of_cycle(layer, cycle)
        return self.at(f"layers_{layer}").at_depth(depth)

    def where_later(self, steps: int) -> "Context":
        """Returns the context in which only tokens count that have another of their
        document `steps` further on."""
        places = places_with_later(self.places, steps)
        rows = dataclasses.replace(self.rows, segment_ids=places.segment_ids)
        return dataclasses.replace(self, rows=rows)

    def for_layer(
        self, index: jax.Array | int, cache: Mapping[str, Any] | None = None
    ) -> "Context":
        """Returns the context of repeat `index` of a stack: own key, nothing emitted.

        `cache` is what `stacked_cache` gives, cut to this repeat.
        """
        key = None if self.key is None else jax.random.fold_in(self.key, index)
        kept = cache if isinstance(self.cache, Mapping) else self.cache
        return dataclasses.replace(self, key=key, cache=kept, outbox=Outbox())

    def row_keys(self) -> jax.Array:
        """Returns a key for each row at this place.

        It follows from step, repeat, path and the row's number in the batch, and never
        from the order of calls, or from how the batch is cut.
        """
        assert self.key is not None and self.rows.numbers is not None
        here = jax.random.fold_in(self.key, path_hash("/".join(self.path)))
        return jax.vmap(jax.random.fold_in, (None, 0))(here, self.rows.numbers)

    def emit(self, name: str, value: Any) -> None:
        """Leaves a side result under a name that this layer uses once."""
        key = SinkKey(self.path, name)
        assert key not in self.sinks, f"sink {key} was filled twice"
        self.sinks[key] = value

    def collect(self, sinks: Sinks, kept: Mapping[str, Any]) -> None:
        """Takes over what an inner context, such as a stack's, was left."""
        assert not self.sinks.keys() & sinks.keys()
        self.sinks.update(sinks)
        self.kept.update(kept)

    @property
    def caches(self) -> bool:
        """Whether this call keeps its tokens for later ones, or goes on with some."""
        return self.cache is not None

    @property
    def starts_cache(self) -> bool:
        """Whether nothing comes before the tokens of this call that caches them."""
        return isinstance(self.cache, EmptyCache)

    def cached(self, make: Callable[[int], Any]) -> Any | None:
        """Returns this layer's cache; None if the call keeps none.

        The call that starts caches gets `make(length)`, an empty one for that many
        tokens.
        """
        if isinstance(self.cache, EmptyCache):
            return make(self.cache.length)
        return None if self.cache is None else self.cache["/".join(self.path)]

    def store(self, value: Any) -> None:
        """Keeps this layer's cache for the next call."""
        self.kept["/".join(self.path)] = value

    def stacked_cache(self) -> dict[str, Any]:
        """Returns the caches below this path, whose arrays count repeats."""
        if not isinstance(self.cache, Mapping):
            return {}
        prefix = "/".join((*self.path, ""))
        return {k: v for k, v in self.cache.items() if k.startswith(prefix)}

    def constrain(self, x: jax.Array, *axes: str) -> jax.Array:
        """Pins activations to the mesh by the logical names of their dims."""
        return x if self.sharding is None else self.sharding.constrain(x, axes)

    def weight(self, value: jax.Array, axes: tuple[str, ...], dtype: DTypeLike):
        """Returns a parameter ready for use in `dtype`, see `Sharding.gather`.

        What lies in the memory of the host comes to the device here.
        """
        value = on_device(value)
        if self.sharding is None:
            return value.astype(dtype)
        return self.sharding.gather(value, axes, dtype)

    def gather_of(self, axes: tuple[str, ...]) -> Gather | None:
        """Returns what gathers an array that lies as a parameter with these dims."""
        return None if self.sharding is None else Gather(self.sharding, axes)


def apply_if(layer: Any | None, x: jax.Array, context: Context) -> jax.Array:
    """Returns `layer(x, context)`, or `x` where there is no such layer."""
    return x if layer is None else layer(x, context)
