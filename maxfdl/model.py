"""Model: the pure-function face of either family of layers.

Trainers, engines and tools see this and nothing of NNX or Linen. Variables are plain
nested dicts of arrays, `{"params": ..., "state": ...}`, the same in both families, so
a jitted step flattens a few dozen leaves and not module objects.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from maxfdl.errors import UserError
from maxfdl.layers import linen as linen_layers
from maxfdl.layers import nnx as nnx_layers
from maxfdl.layers.cache import EmptyCache
from maxfdl.layers.context import Context, Rows
from maxfdl.layers.execution import Execution, Repeats
from maxfdl.layers.frozen import Frozen
from maxfdl.layers.layer import leaf_ops
from maxfdl.layers.linen.module import Declared
from maxfdl.layers.nnx.module import State, declaration_of, flat_names
from maxfdl.layers.parameter import Parameter, map_parameters, path_hash, whole_path
from maxfdl.layers.sinks import SinkKey
from maxfdl.markers import FromParent
from maxfdl.ops.mask import NOWHERE
from maxfdl.ops.state import StateDeclaration
from maxfdl.ops.unembedding import Unembedding
from maxfdl.sharding.sharding import Sharding

Tree = dict[str, Any]

Network = nnx_layers.Transformer | linen_layers.Transformer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """What a forward pass gives.

    Args:
      hidden: [B, T, D] after the last norm.
      unembedding: Makes logits of hidden vectors; a loss may do so tile by tile.
      state: The layers' new state.
      sinks: Side results by the layer that left them; a stack's have a leading dim.
      cache: What the next call of a cached document needs; empty without `cache`.
      ahead: Vectors like `hidden` that predict the token after the next, the one after
        that, and so on; none in calls that cache.
    """

    hidden: jax.Array
    unembedding: Unembedding
    state: Tree
    sinks: dict[SinkKey, Any]
    cache: dict[str, Any]
    ahead: tuple[jax.Array, ...] = ()

    @property
    def logits(self) -> jax.Array:
        """[B, T, V] float32, formed at this call."""
        return self.unembedding(self.hidden)


class Model:
    """A language model as pure functions of its variables.

    Args:
      module: Factory of the network, of the family that the subclass speaks.
      sharding: Mesh and rules; None computes on one device.
      frozen: Which parameters are not trained; None trains all.
    """

    def __init__(
        self,
        *,
        module: Annotated[Callable[..., Any], FromParent],
        sharding: Annotated[Sharding | None, FromParent] = None,
        frozen: Frozen | None = None,
    ):
        self._make_module = module
        self.sharding = sharding
        self._frozen = frozen

    @property
    def factory(self) -> Any:
        """The factory of the network, with the fields of its graph as keywords."""
        return self._make_module

    def on(self, sharding: Sharding | None) -> "Model":
        """Returns the same model with its arrays laid out otherwise."""
        other = copy.copy(self)
        other.sharding = sharding
        return other

    def parameters(self) -> Tree:
        """Returns the declaration of each parameter, as a tree like `params`."""
        return self._parameters

    @functools.cached_property
    def _parameters(self) -> Tree:
        declared = self._declared[0]
        return declared if self._frozen is None else self._frozen.marked(declared)

    def state(self) -> Tree:
        """Returns the declaration of each state of a layer, as a tree like `state`."""
        return self._declared[1]

    def init(self, key: jax.Array) -> Tree:
        """Returns fresh variables: each leaf follows from the key and its own path.

        The same key gives the same weights in both families and on every mesh.
        """

        def draw(path: str, parameter: Parameter) -> jax.Array:
            own = path_hash(whole_path(path, parameter))
            whole = parameter.whole
            values = whole.draw(jax.random.fold_in(key, own))
            return parameter.part_of(
                values.astype(whole.dtype or self.network.param_dtype)
            )

        state = jax.tree.map(StateDeclaration.first, self.state())
        return {"params": map_parameters(draw, self.parameters()), "state": state}

    def apart(self, variables: Mapping[str, Any]) -> Tree:
        """Returns variables for decoding: each repeat of a stack has its own arrays.

        `apply` takes them, too. They are views of the given ones on one CPU, and copies
        elsewhere.
        """

        def cut(leaf: Any, declaration: Parameter | StateDeclaration) -> Any:
            stacked = declaration.repeats is not None
            return Repeats.of(jnp.asarray(leaf)) if stacked else leaf

        declared = {"params": self.parameters(), "state": self.state()}
        return {
            name: jax.tree.map(cut, variables[name], declarations)
            for name, declarations in declared.items()
        }

    def apply(
        self,
        variables: Mapping[str, Any],
        tokens: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        key: jax.Array | None = None,
        rows: jax.Array | None = None,
        cache: Mapping[str, Any] | EmptyCache | None = None,
    ) -> Output:
        """Runs the network.

        Args:
          variables: As `init` gives them.
          tokens: [B, T] ids.
          segment_ids: [B, T] document of each token; None: a row is one document.
          positions: [B, T] place in the document; None: 0..T-1.
          key: Randomness of this step; None switches dropout off.
          rows: [B] number of each row in its batch, which its randomness follows from;
            None: 0..B-1.
          cache: `EmptyCache(length)` begins documents, one a row, of up to `length`
            tokens; what an earlier output held as `cache` goes on with them, and then
            `positions` must be given. Padding has the position NOWHERE.

        Raises:
          UserError: As `check_ids` and `check_positions`.
        """
        self.check_ids(tokens)
        if positions is None:
            if isinstance(cache, Mapping):
                raise ValueError("Model.apply with a cache needs positions [B, T].")
            self.check_positions(tokens.shape[1])
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        elif self.most_positions is not None and _is_known(positions):
            self.check_positions(_most_known(positions) + 1)
        if rows is None:
            rows = jnp.arange(tokens.shape[0])
        of_rows = Rows(positions, segment_ids, rows)
        context = Context(of_rows, key, self.sharding, cache=cache)
        (hidden, unembedding, ahead), state = self._run(variables, tokens, context)
        sinks, kept = context.sinks, context.kept
        return Output(hidden, unembedding, state, sinks, kept, ahead)

    def run(
        self, variables: Mapping[str, Any], x: jax.Array, context: Context
    ) -> tuple[Any, Tree]:
        """Returns what the module gives for `x`, and its new state.

        For parts of a network, such as a stack, which is given activations.
        """
        return self._run(variables, x, context)

    def logits(self, variables: Mapping[str, Any], tokens: jax.Array, **kwargs):
        """Returns [B, T, V] float32 logits; keywords as `apply`."""
        return self.apply(variables, tokens, **kwargs).logits

    def check_ids(self, tokens: Any, name: str = "tokens") -> None:
        """Refuses ids that the embedding has no row for, where they are known.

        A gather on the device would take another row, or NaN, without a word. Inside a
        jitted function ids are not known, and nothing is checked.

        Args:
          tokens: Ids of any shape, in an array or nested lists.
          name: What the caller calls them.

        Raises:
          UserError: Naming the first id that is negative, past the vocabulary, or no
            integer.
        """
        if not _is_known(tokens):
            return
        ids, size = np.asarray(tokens), self.network.vocab_size
        if ids.dtype.kind not in "iu":
            raise UserError(f"{name} ({ids.dtype}) must be ids, which are integers.")
        outside = (ids < 0) | (ids >= size)
        if outside.any():
            place = ", ".join(map(str, np.argwhere(outside)[0]))
            raise UserError(
                f"{name}[{place}] ({ids[outside][0]}) must be from 0 to {size - 1}, for"
                f" model.vocab_size is {size}; use the tokenizer of this model."
            )

    def check_positions(self, count: int, why: str = "") -> None:
        """Refuses documents with more positions than a learned table has.

        A gather on the device would take the last position for all that follow. Rotary
        embeddings have no table, and go on.

        Args:
          count: Positions that are needed, from 0 on.
          why: What needs them, as ` (a prompt of 60 tokens)`.

        Raises:
          UserError: Naming both numbers.
        """
        if self.most_positions is not None and count > self.most_positions:
            raise UserError(
                f"{count} positions are needed{why}, but the model has learned"
                f" {self.most_positions} (position_embedding.length); take fewer"
                " tokens."
            )

    def check_rows(self, rows: int, sharding: Sharding) -> None:
        """Refuses a batch of so many rows to train on, if a stack cannot cut it.

        Raises:
          UserError: As `Execution.check_rows` of that stack.
        """
        for op in leaf_ops(self._make_module):
            if isinstance(op, Execution):
                op.check_rows(rows, sharding)

    @functools.cached_property
    def most_positions(self) -> int | None:
        """Rows of the smallest learned table of positions; None: there is none."""
        declared = jax.tree.leaves(
            self.parameters(), is_leaf=lambda node: isinstance(node, Parameter)
        )
        tables = [p for p in declared if "positions" in p.axes]
        return min((p.shape[p.axes.index("positions")] for p in tables), default=None)

    @property
    def network(self) -> Any:
        """The module, without its arrays: for its fields, such as `vocab_size`."""
        raise NotImplementedError

    @functools.cached_property
    def stale_after(self) -> tuple[int, ...]:
        """Lengths past which what is cached of a document no longer holds: those that
        leaf ops, such as rotations, declare as their `stale_after`."""
        ops = leaf_ops(self._make_module)
        lengths = {getattr(op, "stale_after", None) for op in ops}
        return tuple(sorted(each for each in lengths if each is not None))

    @functools.cached_property
    def _declared(self) -> tuple[Tree, Tree]:
        """Declarations of parameters and of state."""
        raise NotImplementedError

    def _run(self, variables, tokens, context) -> tuple[Any, Tree]:
        """Returns what the network gives, and its new state."""
        raise NotImplementedError


def _is_known(array: Any) -> bool:
    """Says whether this process can read the values: all, and outside of a trace."""
    if not isinstance(array, jax.Array):
        return True
    return not isinstance(array, jax.core.Tracer) and array.is_fully_addressable


def _most_known(positions: jax.Array) -> int:
    """Returns the highest position; -1 if there is padding alone."""
    values = np.asarray(positions)
    return int(np.max(values, where=values < NOWHERE, initial=-1))


class NnxModel(Model):
    """Model of an NNX network: split once, merged inside each trace."""

    @functools.cached_property
    def network(self) -> nnx.Module:
        return nnx.eval_shape(lambda: self._make_module(rngs=nnx.Rngs(params=0)))

    @functools.cached_property
    def _abstract(self) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
        graphdef, params, state = nnx.split(self.network, nnx.Param, State)
        return graphdef, params, state

    @functools.cached_property
    def _declared(self) -> tuple[Tree, Tree]:
        _, params, state = self._abstract
        return _nested(params, declaration_of), _nested(state, declaration_of)

    def _run(self, variables, tokens, context):
        graphdef, params, state = self._abstract
        module = nnx.merge(
            graphdef,
            _filled(params, variables["params"]),
            _filled(state, variables["state"]),
        )
        given = module(tokens, context)
        new_state = nnx.state(module, State)
        return given, _nested(new_state, lambda v: v.get_value())


class LinenModel(Model):
    """Model of a Linen network."""

    @functools.cached_property
    def network(self) -> nn.Module:
        return self._make_module(parent=None)

    @functools.cached_property
    def _declared(self) -> tuple[Tree, Tree]:
        tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)

        def init(tokens):
            context = Context(Rows(jnp.zeros_like(tokens)))
            return self.network.init(jax.random.key(0), tokens, context)

        variables = jax.eval_shape(init, tokens)
        params, state = (
            jax.tree.map(
                lambda box: box.declaration,
                variables.get(collection, {}),
                is_leaf=lambda node: isinstance(node, Declared),
            )
            for collection in ("params", "state")
        )
        return params, _without_empty(state)

    def _run(self, variables, tokens, context):
        collections = {"params": variables["params"], "state": variables["state"]}
        given, updates = self.network.apply(
            collections, tokens, context, mutable=["state"]
        )
        return given, _without_empty(dict(updates).get("state", {}))


def _nested(state: nnx.State, value_of: Callable[[Any], Any]) -> Tree:
    """Returns NNX state as nested dicts under the names that Linen gives."""
    tree: Tree = {}
    for path, variable in nnx.to_flat_state(state):
        *parents, name = flat_names(path)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value_of(variable)
    return tree


def _filled(state: nnx.State, tree: Mapping[str, Any]) -> nnx.State:
    """Returns NNX state with the values of a nested dict."""
    filled = []
    for path, variable in nnx.to_flat_state(state):
        value = tree
        for name in flat_names(path):
            value = value[name]
        filled.append((path, variable.replace(value)))
    return nnx.from_flat_state(filled)


def _without_empty(tree: Mapping[str, Any]) -> Tree:
    """Drops the empty dicts that layers without state leave."""
    kept = {
        name: _without_empty(value) if isinstance(value, Mapping) else value
        for name, value in tree.items()
    }
    return {k: v for k, v in kept.items() if not (isinstance(v, dict) and not v)}
