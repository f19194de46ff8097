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
from maxfdl.ops.delta_rule import GatedDeltaRule
from maxfdl.ops.dot import Dot
from maxfdl.ops.experts import Capacity, Dropless
from maxfdl.ops.glu import ClampedSwiGlu, Glu
from maxfdl.ops.grouped_dot import GroupedDot
from maxfdl.ops.initializers import FanIn, Normal
from maxfdl.ops.later import later
from maxfdl.ops.mask import Causal, SlidingWindow
from maxfdl.ops.rope import Rope
from maxfdl.ops.routing import Choice, GroupLimit, TopK
from maxfdl.ops.temperature import LogTemperature

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
        mask=Causal(),
        attention=DotProductAttention(),
    )


def attention_with_all(family: ModuleType):
    """Attention that has every optional part."""
    return functools.partial(
        attention(family),
        mask=SlidingWindow(4),
        attention=DotProductAttention(scale=0.3, soft_cap=2.0),
        query_norm=functools.partial(family.PerHead, norm=family.UnitRMSNorm),
        key_norm=functools.partial(family.AcrossHeads, norm=family.LayerNorm),
        temperature=LogTemperature(scale=0.5, floor=2),
        gate=linear(family),
        sinks=functools.partial(family.AttentionSinks, initializer=Normal()),
    )


def latent_attention(family: ModuleType):
    names = ("latent", "rope_key", "key", "value", "out")
    return functools.partial(
        family.LatentAttention,
        query=low_rank_linear(family),
        latent_norm=family.RMSNorm,
        **dict.fromkeys(names, linear(family)),
        num_heads=2,
        latent_dim=6,
        nope_dim=4,
        rope_dim=2,
        value_dim=3,
        rope=Rope(layout="pairs"),
        mask=Causal(),
        attention=DotProductAttention(),
    )


def low_rank_linear(family: ModuleType):
    return functools.partial(
        family.LowRankLinear,
        down=linear(family),
        norm=family.RMSNorm,
        up=linear(family),
        rank=3,
    )


def convolution(family: ModuleType):
    return functools.partial(family.CausalConvolution, width=3, initializer=FanIn())


def gated_delta_net(family: ModuleType):
    names = ("query", "key", "value", "beta", "decay", "output_gate", "out")
    return functools.partial(
        family.GatedDeltaNet,
        **dict.fromkeys(names, linear(family)),
        convolution=convolution(family),
        delta_rule=GatedDeltaRule(chunk=4),
        norm=family.GatedRMSNorm,
        num_key_heads=2,
        num_value_heads=4,
        key_dim=8,
        value_dim=6,
    )


def gated_mlp(family: ModuleType):
    projections = dict.fromkeys(("gate", "up", "down"), linear(family))
    return functools.partial(family.GatedMlp, **projections, hidden=24, glu=Glu())


def mlp(family: ModuleType):
    projections = dict.fromkeys(("up", "down"), linear(family, use_bias=True))
    return functools.partial(family.Mlp, **projections, hidden=24, activation="gelu")


def router(family: ModuleType, **routing):
    return functools.partial(
        family.Router,
        routing=TopK(2, **routing),
        initializer=FanIn(),
        use_bias=True,
        use_selection_bias=True,
    )


def grouped_linear(family: ModuleType):
    return functools.partial(
        family.GroupedLinear, dot=GroupedDot(), initializer=FanIn(), use_bias=True
    )


def experts(family: ModuleType, **changes):
    parts = dict(glu=ClampedSwiGlu(1.7, 0.5), dispatch=Capacity(1.0)) | changes
    projections = dict.fromkeys(("gate", "up", "down"), grouped_linear(family))
    return functools.partial(family.Experts, **projections, hidden=6, **parts)


def moe(family: ModuleType):
    """A mixture that has every optional part."""
    limit = GroupLimit(groups=2, kept=1, best=2)
    return functools.partial(
        family.MoE,
        router=router(family, score="sigmoid", renormalise=True, limit=limit),
        experts=experts(family, dispatch=Dropless(), glu=Glu(), weighted="input"),
        shared=gated_mlp(family),
        shared_gate=linear(family),
        num_experts=4,
    )


def decoder_layer(family: ModuleType, dropout: float = 0.0):
    return functools.partial(
        family.DecoderLayer,
        attention_norm=family.RMSNorm,
        attention=attention(family),
        attention_post_norm=family.RMSNorm,
        mlp_norm=family.RMSNorm,
        mlp=gated_mlp(family),
        dropout=functools.partial(family.Dropout, rate=dropout),
    )


def parallel_layer(family: ModuleType):
    return functools.partial(
        family.ParallelDecoderLayer,
        norm=functools.partial(family.LayerNorm, use_bias=False),
        attention=attention(family),
        mlp=gated_mlp(family),
        dropout=family.Dropout,
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


def later_token(family: ModuleType):
    norms = ("hidden_norm", "embedding_norm", "final_norm")
    return functools.partial(
        family.LaterToken,
        **dict.fromkeys(norms, family.RMSNorm),
        projection=linear(family),
        stack=stack(family, repeats=1),
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
        position_embedding=functools.partial(
            family.PositionEmbedding, initializer=Normal(), length=12
        ),
        head=functools.partial(family.Head, dot=Dot(), initializer=FanIn()),
        later_token=later_token(family),
        later_tokens=2,
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
        self.vocab_size = VOCAB
        self.call = call
        self.embedding = embedding(rngs=rngs)
        self.layer = layer(rngs=rngs)

    def __call__(self, tokens, context):
        return self.call(self.layer, tokens, self.embedding, context), None, ()


class LinenAlone(LinenModule, kw_only=True):
    layer: Callable
    embedding: Callable
    call: Callable
    param_dtype: str = "float32"
    vocab_size: int = VOCAB

    @nn.compact
    def __call__(self, tokens, context):
        embedding, layer = self.embedding(name="embedding"), self.layer(name="layer")
        return self.call(layer, tokens, embedding, context), None, ()


_ALONE = {"nnx": (NnxAlone, NnxModel), "linen": (LinenAlone, LinenModel)}


def on_vectors(layer, tokens, embedding, context):
    return layer(embedding(tokens, context), context.at("layer"))


def told_the_next(layer, tokens, embedding, context):
    x, told = embedding(tokens, context), embedding(later(tokens, 1), context)
    hidden, normed = layer(x, told, context.at("layer"))
    return hidden + normed


def on_heads(layer, tokens, embedding, context):
    x = embedding(tokens, context)
    heads = x.reshape(*x.shape[:-1], 2, -1)
    return layer(heads, context.at("layer")).reshape(x.shape)


def beside_vectors(layer, tokens, embedding, context):
    return embedding(tokens, context) + layer(context.at("layer"))


def gated_by_itself(norm, tokens, embedding, context):
    x = embedding(tokens, context)
    return norm(x, x, context.at("layer"))


def on_table(head, tokens, embedding, context):
    unembedding = head(embedding.stored(), context.at("layer"))
    return unembedding(embedding(tokens, context))


def beside_embedding(layer, tokens, embedding, context):
    return embedding(tokens, context) + layer(tokens, context.at("layer"))


def logits_beside_embedding(layer, tokens, embedding, context):
    hidden, unembedding, ahead = layer(tokens, context.at("layer"))
    return unembedding(sum(ahead, hidden) + embedding(tokens, context))


def weights_of(router, tokens, embedding, context):
    choice = router(embedding(tokens, context), context.at("layer"))
    return choice.weights


def in_groups(layer, tokens, embedding, context):
    x = embedding(tokens, context)
    groups = Dropless()(tokens.reshape(-1, 1) % 4, 4)
    rows = layer(groups.gather(x.reshape(-1, FEATURES)), groups, context.at("layer"))
    return groups.combine(rows, None)


def to_chosen(layer, tokens, embedding, context):
    x = embedding(tokens, context)
    chosen = jnp.stack([tokens % 4, (tokens + 1) % 4], axis=-1)
    choice = Choice(chosen, jnp.abs(x[..., :2]), x[..., :4])
    return layer(x, choice, context.at("layer"))


_WIDTH = {"features": FEATURES}
_EXPERTS = {"num_experts": 4}
_SIZES = {"features": FEATURES, "vocab_size": VOCAB}
_LINEAR = {"inputs": {"embed": FEATURES}, "outputs": {"heads": 2, "head_dim": 4}}

CASES = {
    "Attention": Case(attention_with_all, _WIDTH, on_vectors),
    "AcrossHeads": Case(
        lambda family: functools.partial(family.AcrossHeads, norm=family.RMSNorm),
        {"heads": 2, "features": FEATURES // 2},
        on_heads,
    ),
    "CausalConvolution": Case(
        convolution, {"channels": {"embed": FEATURES}}, on_vectors
    ),
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
    "Experts": Case(experts, _WIDTH | _EXPERTS, to_chosen),
    "GatedDeltaNet": Case(gated_delta_net, _WIDTH, on_vectors),
    "GatedMlp": Case(gated_mlp, _WIDTH, on_vectors),
    "GatedRMSNorm": Case(lambda family: family.GatedRMSNorm, _WIDTH, gated_by_itself),
    "GroupedLinear": Case(
        grouped_linear,
        _EXPERTS | {"inputs": {"embed": FEATURES}, "outputs": {"expert_mlp": 6}},
        in_groups,
    ),
    "Head": Case(
        lambda family: functools.partial(family.Head, dot=Dot(), initializer=FanIn()),
        _SIZES | {"dtype": "float32"},
        on_table,
    ),
    "LatentAttention": Case(latent_attention, _WIDTH, on_vectors),
    "LaterToken": Case(later_token, _WIDTH, told_the_next),
    "LayerNorm": Case(lambda family: family.LayerNorm, _WIDTH, on_vectors),
    "Linear": Case(functools.partial(linear, use_bias=True), _LINEAR, on_vectors),
    "LowRankLinear": Case(low_rank_linear, _LINEAR, on_vectors),
    "Mlp": Case(mlp, _WIDTH, on_vectors),
    "MoE": Case(moe, _WIDTH, on_vectors),
    "ParallelDecoderLayer": Case(parallel_layer, _WIDTH, on_vectors),
    "PerHead": Case(
        lambda family: functools.partial(family.PerHead, norm=family.RMSNorm),
        {"heads": 2, "features": FEATURES // 2},
        on_heads,
    ),
    "PositionEmbedding": Case(
        lambda family: functools.partial(
            family.PositionEmbedding, initializer=Normal(), length=12
        ),
        _WIDTH,
        on_vectors,
    ),
    "RMSNorm": Case(
        lambda family: functools.partial(family.RMSNorm, epsilon=0.3),
        _WIDTH,
        on_vectors,
    ),
    "Router": Case(router, _WIDTH | _EXPERTS, weights_of),
    "ScaledEmbedding": Case(
        lambda family: functools.partial(family.ScaledEmbedding, initializer=Normal()),
        _SIZES | {"dtype": "float32"},
        beside_embedding,
    ),
    "AttentionSinks": Case(
        lambda family: functools.partial(family.AttentionSinks, initializer=Normal()),
        {"heads": FEATURES},
        beside_vectors,
    ),
    "Stack": Case(stack, _WIDTH, on_vectors),
    "TiedHead": Case(
        lambda family: functools.partial(family.TiedHead, dot=Dot()),
        _SIZES | {"dtype": "float32"},
        on_table,
    ),
    "Transformer": Case(transformer, {}, logits_beside_embedding),
    "UnitRMSNorm": Case(lambda family: family.UnitRMSNorm, _WIDTH, on_vectors),
    "ZeroCentredLayerNorm": Case(
        lambda family: family.ZeroCentredLayerNorm, _WIDTH, on_vectors
    ),
    "ZeroCentredRMSNorm": Case(
        lambda family: family.ZeroCentredRMSNorm, _WIDTH, on_vectors
    ),
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
