"""How a stack of equal layers runs: written once, in plain JAX, for both families.

A stack hands over `layer_fn(params, state, x, context) -> x, state`, which runs one
repeat, and trees of arrays whose leading dim counts repeats. Whether that is a loop
in the compiled program or not, and what the backward pass keeps, is decided here.

For decoding, each leaf may be `Repeats` instead: an array of its own for each repeat.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.ad_checkpoint import checkpoint_policies as policies
from jax.sharding import SingleDeviceSharding

from maxfdl.layers.cache import EmptyCache
from maxfdl.layers.context import Context
from maxfdl.layers.parameter import Parameter
from maxfdl.layers.segments import Segment
from maxfdl.layers.sinks import Sinks
from maxfdl.ops.product import Depth
from maxfdl.ops.state import StateDeclaration
from maxfdl.sharding.memory import on_device
from maxfdl.sharding.sharding import Sharding

LayerFn = Callable[[Any, Any, jax.Array, Context], tuple[jax.Array, Any]]
Policy = Literal["none", "full", "dots", "dots_no_batch", "attention_out"]
Name = Literal[
    "layer_in",
    "query",
    "key",
    "value",
    "attention_out",
    "attention_projected",
    "mlp_gate",
    "mlp_up",
    "mlp_down",
    "router_logits",
    "expert_gate",
    "expert_up",
    "expert_down",
]

_POLICIES = {
    "full": policies.nothing_saveable,
    "dots": policies.dots_saveable,
    "dots_no_batch": policies.dots_with_no_batch_dims_saveable,
    "attention_out": policies.save_only_these_names("attention_out"),
}


class Repeats(tuple[Any, ...]):
    """A leaf of a stack whose repeats have an array each, without the leading dim."""

    @classmethod
    def of(cls, stacked: jax.Array) -> "Repeats":
        """Returns the parts of a stacked array.

        Of an array on one CPU they are views, which take no memory.
        """
        if _is_on_one_cpu(stacked):
            # A sharding over a mesh of one would count the dim that is gone.
            (device,) = stacked.devices()
            place = SingleDeviceSharding(device) if stacked.committed else None
            views = np.asarray(stacked)
            return cls(jax.device_put(view, place, may_alias=True) for view in views)
        return cls(stacked[i] for i in range(stacked.shape[0]))


def _is_on_one_cpu(array: jax.Array) -> bool:
    if isinstance(array, jax.core.Tracer):
        return False
    return [device.platform for device in array.devices()] == ["cpu"]


jax.tree_util.register_pytree_node(
    Repeats, lambda parts: (tuple(parts), None), lambda _, parts: Repeats(parts)
)


@dataclasses.dataclass(frozen=True)
class SaveNamed:
    """The backward pass keeps named tensors and computes the rest again.

    `layer_in` is the input of a cycle of layers, which is kept in device memory unless
    it is in `offload`. `query`, `key` and `value` are what attention takes,
    `attention_out` what it gives, `attention_projected` that after the projection.
    `mlp_gate` and `mlp_up` are hidden features before the activation, `mlp_down` what
    the layer gives; so are `expert_gate`, `expert_up` and `expert_down`, of experts. A
    class of layers lists those that it gives in `named_tensors`.

    Args:
      save: Names of what stays in the memory of the device.
      offload: Names of what goes to the memory of the host and comes back when it is
        needed. A CPU has one memory, where this changes nothing.
    """

    save: tuple[Name, ...] = ()
    offload: tuple[Name, ...] = ()

    @staticmethod
    def check_config(node):
        names = (*node.save, *node.offload)
        if not names:
            yield "SaveNamed save and offload must name a tensor; 'full' keeps none."
        for name in dict.fromkeys(n for n in names if names.count(n) > 1):
            yield f"SaveNamed save and offload must name {name!r} once only."

    def policy(self) -> Callable:
        """Returns what `jax.checkpoint` asks about each intermediate."""
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(self.save),
            names_which_can_be_offloaded=list(self.offload),
            offload_src="device",
            offload_dst="pinned_host",
        )


Remat = Policy | SaveNamed


def rematerialised(function: Callable, remat: Remat, prevent_cse: bool) -> Callable:
    """Returns `function` so that its backward pass keeps only what `remat` names.

    `none` keeps every intermediate. `full` keeps the input alone and computes the
    rest again, `dots` keeps the matrix products, `dots_no_batch` those without batch
    dims (projections, not attention scores), `attention_out` what attention mixed.
    `prevent_cse` keeps XLA from merging the second computation with the first, which
    it cannot do across the trips of a loop.
    """
    if remat == "none":
        return function
    policy = remat.policy() if isinstance(remat, SaveNamed) else _POLICIES[remat]
    return jax.checkpoint(function, policy=policy, prevent_cse=prevent_cse)


@dataclasses.dataclass(frozen=True)
class Layers:
    """Repeats of a stack: how one runs, and the arrays of all.

    Args:
      run: Runs one repeat.
      params, state: Their arrays, whose leading dim counts repeats.
      parameters: Returns the declarations of the leaves of `params`, in order.
      states: Declarations of the leaves of `state`, in order.
      caches: What earlier calls have cached, by path; the leading dim counts repeats.
      depth: Layers of the decoder that these are among, which all compute the same
        program; None: they are in no decoder.
      first: Number of the first repeat in the stack.
      are_all: Whether these are all repeats of the stack.
    """

    run: LayerFn
    params: Any
    state: Any
    parameters: Callable[[], Sequence[Parameter]]
    states: Sequence[StateDeclaration]
    caches: Any
    depth: Depth | None = None
    first: jax.Array | int = 0
    are_all: bool = True

    @property
    def repeats(self) -> int:
        return num_repeats((self.params, self.state))

    def cut(self, sizes: Sequence[int]) -> "list[Layers]":
        """Returns parts of so many repeats each, in order.

        See `Unroll` for `lax.split`, and for arrays on the host.
        """
        if len(sizes) == 1:
            return [self]
        stops = [*itertools.accumulate(sizes)]

        def parts(leaf: Any) -> Sequence[Any]:
            if not _is_apart(leaf):
                return lax.split(leaf, sizes, axis=0)
            runs = zip(stops, sizes, strict=True)
            return [Repeats(leaf[stop - size : stop]) for stop, size in runs]

        tree = on_device((self.params, self.state, self.caches))
        leaves, form = jax.tree.flatten(tree, is_leaf=_is_apart)
        cut = []
        for part, stop, size in zip(
            zip(*map(parts, leaves), strict=True), stops, sizes, strict=True
        ):
            params, state, caches = form.unflatten(part)
            arrays = dict(params=params, state=state, caches=caches)
            first = self.first + stop - size
            cut.append(dataclasses.replace(self, **arrays, first=first, are_all=False))
        return cut


class Results(NamedTuple):
    """What repeats leave besides activations: arrays whose leading dim counts them.

    Args:
      state: New state of the layers.
      sinks: Side results, by the layer that left them.
      kept: Caches for the next call, by path.
    """

    state: Any
    sinks: Sinks
    kept: dict[str, Any]


class Execution:
    """How the repeats of a stack run: `execution(body, x, per_repeat)` runs them."""

    in_loop: ClassVar[bool]
    """Whether the compiled program has one body for all repeats."""

    @property
    def in_sequence(self) -> "Execution":
        """What runs a call that caches, or whose rows must stay together."""
        return self

    def dim(self, repeats: int) -> str:
        """Returns the logical name of the dim that counts a stack's repeats."""
        return "layers"

    def check_rows(self, rows: int, sharding: Sharding) -> None:
        """Refuses a batch of so many rows to train on, if it cannot be cut on the mesh.

        Raises:
          UserError: Naming what does not divide what.
        """

    def __call__(self, body: Callable, x: jax.Array, per_repeat: Any) -> Any:
        raise NotImplementedError

    def run(
        self, layers: Layers, x: jax.Array, context: Context, remat: Remat
    ) -> tuple[jax.Array, Results]:
        """Runs all repeats, one after the other."""

        def one_repeat(x, params, state, cache, index):
            inner = context.for_layer(index, cache).at_depth(layers.depth)
            x = checkpoint_name(x, "layer_in")
            x, state = layers.run(params, state, x, inner)
            return x, Results(state, inner.sinks, inner.kept)

        # XLA makes no loop of one trip, which is what the ends of a decoder may be.
        in_loop = self.in_loop and (layers.are_all or layers.repeats > 1)
        one_repeat = rematerialised(one_repeat, remat, not in_loop)

        def body(x, per_repeat):
            return one_repeat(x, *per_repeat)

        indexes = jnp.arange(layers.repeats, dtype="uint32")
        indexes = indexes + jnp.asarray(layers.first, indexes.dtype)
        return self(body, x, (layers.params, layers.state, layers.caches, indexes))


@dataclasses.dataclass(frozen=True)
class Scan(Execution):
    """One compiled body for all repeats: compile time does not grow with depth.

    Args:
      unroll: Repeats per trip of the loop.
    """

    in_loop = True
    unroll: int = 1

    @staticmethod
    def check_config(node):
        if node.unroll < 1:
            yield f"Scan unroll ({node.unroll}) must be at least 1."

    def __call__(self, body: Callable, x: jax.Array, per_repeat: Any):
        return lax.scan(body, x, per_repeat, unroll=self.unroll)


@dataclasses.dataclass(frozen=True)
class Unroll(Execution):
    """A copy of the body for every repeat: XLA may fuse across layers.

    The stacked arrays are cut by `lax.split`, whose transpose is one concatenation;
    indexing would add up a full-sized gradient per repeat. Those on the host are
    fetched whole, for XLA cuts none there.
    """

    in_loop = False

    def __call__(self, body: Callable, x: jax.Array, per_repeat: Any):
        leaves, treedef = jax.tree.flatten(on_device(per_repeat))
        repeats = leaves[0].shape[0]
        cut = [lax.split(leaf, [1] * repeats, axis=0) for leaf in leaves]
        outs = []
        for pieces in zip(*cut, strict=True):
            x, out = body(x, treedef.unflatten([lax.squeeze(p, [0]) for p in pieces]))
            outs.append(out)
        return x, jax.tree.map(lambda *values: jnp.stack(values), *outs)


class EachRepeat(Execution):
    """The repeats one after the other, each with arrays of its own: for decoding.

    A loop would copy each layer's weights out of the stack before it reads them, and
    read and write the caches of all layers whole for each token. Here nothing is cut or
    stacked, so that weights are read where they lie and caches change in place.
    """

    in_loop = False

    def __call__(self, body: Callable, x: jax.Array, per_repeat: Any):
        outs = []
        for i in range(num_repeats(per_repeat)):
            x, out = body(x, _each(lambda leaf, i=i: leaf[i], per_repeat))
            outs.append(out)
        return x, jax.tree.map(lambda *values: Repeats(values), *outs)


def num_repeats(tree: Any) -> int:
    """Returns how many repeats the arrays of a stack are of."""
    leaf = jax.tree.leaves(tree, is_leaf=_is_apart)[0]
    return len(leaf) if _is_apart(leaf) else leaf.shape[0]


def are_apart(tree: Any) -> bool:
    """Returns whether the arrays of a stack lie apart, as `Repeats`."""
    return any(map(_is_apart, jax.tree.leaves(tree, is_leaf=_is_apart)))


def _is_apart(leaf: Any) -> bool:
    return isinstance(leaf, Repeats)


def _each(function: Callable, tree: Any) -> Any:
    return jax.tree.map(function, tree, is_leaf=_is_apart)


def joined(outs: Sequence[Any]) -> Any:
    """Returns what comes out of all repeats of what came out of each part of them."""

    def join(*leaves: Any) -> Any:
        if _is_apart(leaves[0]):
            return Repeats(itertools.chain(*leaves))
        return jnp.concatenate(leaves)

    if len(outs) == 1:
        return outs[0]
    return jax.tree.map(join, *outs, is_leaf=_is_apart)


def run_stack(
    layers: Layers,
    segments: Sequence[Segment],
    x: jax.Array,
    context: Context,
    execution: Execution,
    remat: Remat,
) -> tuple[jax.Array, Any]:
    """Runs all repeats and returns the output and the new stacked state.

    Each segment runs by itself: the arrays are cut between them, once. Side results and
    caches of the layers come out stacked too, under their path. Where parameters or
    state lie apart, so does all that comes out, and `EachRepeat` runs in place of
    `execution`.
    """
    if are_apart((layers.params, layers.state)):
        execution = EachRepeat()
    elif context.caches:
        execution = execution.in_sequence
    outs = []
    parts = layers.cut([len(segment.repeats) for segment in segments])
    for segment, part in zip(segments, parts, strict=True):
        part = dataclasses.replace(part, depth=segment.depth)
        x, out = execution.run(part, x, context, remat)
        outs.append(out)
    state, sinks, kept = joined(outs)
    if isinstance(context.cache, EmptyCache) and context.cache.apart:
        kept = _each(lambda x: x if _is_apart(x) else Repeats.of(x), kept)
    context.collect(sinks, kept)
    return x, state
