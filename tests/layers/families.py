"""Every layer class once, small, in whichever family: what the contract suite runs.

A case is a factory, as a graph would build it, and a way to call the layer. It runs
behind an embedding, inside a Model, so that weights, gradients, state and sinks are
reached by the one interface that both families have.
"""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from maxfdl.layers import linen, nnx
from maxfdl.layers.execution import Execution, Remat, Scan
from maxfdl.layers.linen.module import Module as LinenModule
from maxfdl.layers.nnx.module import Module as NnxModule
from maxfdl.model import LinenModel, Model, NnxModel
from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.dot import Dot
from maxfdl.ops.initializers import FanIn, Normal
from maxfdl.ops.rope import Rope

FEATURES, VOCAB = 16, 32
FAMILIES = {"nnx": nnx, "linen": linen}


def linear(family: ModuleType, **changes):
    return functools.partial(family.Linear, dot=Dot(), initializer=FanIn(), **changes)


def attention(family: ModuleType):
    projections = dict.fromkeys(("query", "key", "value", "out"), linear(family))
    return functools.partial(
        family.Attention,
        **projections,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rope=Rope(),
        attention=DotProductAttention(),
    )


def gated_mlp(family: ModuleType):
    projections = dict.fromkeys(("gate", "up", "down"), linear(family))
    return functools.partial(family.GatedMlp, **projections, hidden=24)


def decoder_layer(family: ModuleType, dropout: float = 0.0):
    return functools.partial(
        family.DecoderLayer,
        attention_norm=family.RMSNorm,
        attention=attention(family),
        mlp_norm=family.RMSNorm,
        mlp=gated_mlp(family),
        dropout=functools.partial(family.Dropout, rate=dropout),
    )


def stack(
    family: ModuleType,
    *layers: Callable,
    repeats: int = 3,
    execution: Execution | None = None,
    remat: Remat = "none",
):
    return functools.partial(
        family.Stack,
        layers=list(layers) or [decoder_layer(family)],
        repeats=repeats,
        execution=execution or Scan(),
        remat=remat,
    )


def decoder(family: ModuleType):
    two = [stack(family, repeats=1), stack(family, repeats=2)]
    return functools.partial(family.Decoder, stacks=two)


def transformer(family: ModuleType):
    return functools.partial(
        family.Transformer,
        embedding=functools.partial(family.Embedding, initializer=Normal()),
        decoder=decoder(family),
        final_norm=family.RMSNorm,
        head=functools.partial(family.Head, dot=Dot(), initializer=FanIn()),
        features=FEATURES,
        vocab_size=VOCAB,
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer class, set up and called.

    Args:
      factory: From a family to a factory of the layer.
      from_parent: What the parent passes to that factory.
      call: From layer, tokens, embedding and context to an array.
    """

    factory: Callable[[ModuleType], Callable]
    from_parent: dict[str, Any]
    call: Callable[..., jax.Array]

    def model(self, family: str) -> Model:
        layer = functools.partial(self.factory(FAMILIES[family]), **self.from_parent)
        embedding = functools.partial(
            FAMILIES[family].Embedding,
            initializer=Normal(1.0),
            vocab_size=VOCAB,
            features=FEATURES,
            dtype="float32",
        )
        alone, model = _ALONE[family]
        return model(
            module=functools.partial(
                alone, layer=layer, embedding=embedding, call=self.call
            )
        )


class NnxAlone(NnxModule):
    def __init__(self, *, layer, embedding, call, rngs):
        self.param_dtype = "float32"
        self.call = call
        self.embedding = embedding(rngs=rngs)
        self.layer = layer(rngs=rngs)

    def __call__(self, tokens, context):
        return self.call(self.layer, tokens, self.embedding, context), None


class LinenAlone(LinenModule, kw_only=True):
    layer: Callable
    embedding: Callable
    call: Callable
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens, context):
        embedding, layer = self.embedding(name="embedding"), self.layer(name="layer")
        return self.call(layer, tokens, embedding, context), None


_ALONE = {"nnx": (NnxAlone, NnxModel), "linen": (LinenAlone, LinenModel)}


def on_vectors(layer, tokens, embedding, context):
    return layer(embedding(tokens, context), context.at("layer"))


def on_table(head, tokens, embedding, context):
    unembedding = head(embedding.weights(context), context.at("layer"))
    return unembedding(embedding(tokens, context))


def beside_embedding(layer, tokens, embedding, context):
    return embedding(tokens, context) + layer(tokens, context.at("layer"))


def logits_beside_embedding(layer, tokens, embedding, context):
    hidden, unembedding = layer(tokens, context.at("layer"))
    return unembedding(hidden + embedding(tokens, context))


_WIDTH = {"features": FEATURES}
_SIZES = {"features": FEATURES, "vocab_size": VOCAB}
_LINEAR = {"inputs": {"embed": FEATURES}, "outputs": {"heads": 2, "head_dim": 4}}

CASES = {
    "Attention": Case(attention, _WIDTH, on_vectors),
    "Decoder": Case(decoder, _WIDTH, on_vectors),
    "DecoderLayer": Case(decoder_layer, _WIDTH, on_vectors),
    "Dropout": Case(
        lambda family: functools.partial(family.Dropout, rate=0.3), {}, on_vectors
    ),
    "Embedding": Case(
        lambda family: functools.partial(family.Embedding, initializer=Normal()),
        _SIZES | {"dtype": "float32"},
        beside_embedding,
    ),
    "GatedMlp": Case(gated_mlp, _WIDTH, on_vectors),
    "Head": Case(
        lambda family: functools.partial(family.Head, dot=Dot(), initializer=FanIn()),
        _SIZES,
        on_table,
    ),
    "Linear": Case(functools.partial(linear, use_bias=True), _LINEAR, on_vectors),
    "RMSNorm": Case(lambda family: family.RMSNorm, _WIDTH, on_vectors),
    "Stack": Case(stack, _WIDTH, on_vectors),
    "TiedHead": Case(
        lambda family: functools.partial(family.TiedHead, dot=Dot()),
        _SIZES,
        on_table,
    ),
    "Transformer": Case(transformer, {}, logits_beside_embedding),
}


def packed_tokens(rows: int = 2, length: int = 12) -> dict[str, jax.Array]:
    """Two documents a row, as `Model.apply` takes them."""
    first = np.arange(length) < length // 3
    positions = np.where(first, np.arange(length), np.arange(length) - length // 3)
    tile = lambda row: jnp.asarray(np.tile(row, (rows, 1)), jnp.int32)  # noqa: E731
    tokens = np.random.default_rng(0).integers(0, VOCAB, (rows, length))
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "segment_ids": tile(np.where(first, 1, 2)),
        "positions": tile(positions),
    }


@functools.cache
def _compiled(model: Model):
    def objective(params, state, inputs):
        out = model.apply({"params": params, "state": state}, **inputs)
        weights = jnp.cos(jnp.arange(out.hidden.size)).reshape(out.hidden.shape)
        return jnp.sum(out.hidden * weights), (out.hidden, out.state, out.sinks)

    return jax.jit(jax.grad(objective, has_aux=True))


def value_and_gradients(model: Model, variables, **inputs):
    """Returns the output, new state, sinks, and the gradients of a sum of it."""
    run = _compiled(model)
    gradients, results = run(variables["params"], variables["state"], inputs)
    return results, gradients


def assert_same_bits(actual, expected):
    """Fails unless two trees have the same structure, types and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for left, right in pairs:
        left, right = np.asarray(left), np.asarray(right)
        assert left.dtype == right.dtype and left.shape == right.shape
        np.testing.assert_array_equal(left, right)
