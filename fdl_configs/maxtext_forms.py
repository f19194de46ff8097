"""One network in two forms: that of MaxText's weights, and that of published weights.

Both compute the same. In MaxText's form a network keeps in its weights what MaxText
does: for some decoders the scale of attention's scores, for Gemma the root of the width
in the embedding and the 1 in the scales of norms.
"""

from typing import Any

import fiddle as fdl

from maxfdl import graph
from maxfdl.layers import nnx
from maxfdl.tensors.maxtext.form import maxtext_form, turn_of
from maxfdl.tensors.maxtext.names import FOLDED
from maxfdl.tensors.maxtext.options import Options

_RMS_EPSILON = 1e-6
"""Of the norms in the layers of Gemma, whatever MaxText's options say; and of those
inside latent attention, whatever DeepSeek's config.json says."""


def in_maxtext_form(model: fdl.Partial, options: Options) -> fdl.Partial:
    """Returns a network of NNX in MaxText's form.

    Args:
      model: It, in the form of published weights.
      options: MaxText's.
    """
    out: Any = graph.copy(model)
    form, block = maxtext_form(options), options["decoder_block"]
    if block.startswith("gemma"):
        _swap(out, nnx.ScaledEmbedding, nnx.Embedding)
        _swap(out, nnx.ZeroCentredRMSNorm, nnx.RMSNorm)
    if block == "gpt3":
        _swap(out, nnx.LayerNorm, nnx.ZeroCentredLayerNorm)
    if options["logits_via_embedding"]:
        out.head.rounded = "bfloat16"
        if form.logits != 1.0:
            out.head.scale = form.logits
    for layer in _layers(out):
        _layer_in_form(layer, form.query, options)
        if block.startswith("gemma"):
            _set_epsilon(layer, nnx.RMSNorm, _RMS_EPSILON)
            _set_head_epsilon(layer, options["normalization_layer_epsilon"])
        elif block == "deepseek":
            epsilon = options["normalization_layer_epsilon"]
            _set_epsilon(layer.attention, nnx.RMSNorm, epsilon)
    return out


def in_published_form(model: fdl.Partial, block: str) -> fdl.Partial:
    """Returns a network of NNX in the form of published weights.

    What is in that form already stays as it is.

    Args:
      model: It, in either form.
      block: MaxText's `decoder_block`.
    """
    out: Any = graph.copy(model)
    if "rounded" in out.head.__arguments__:
        del out.head.rounded
    if block.startswith("gemma"):
        _as_gemma(out)
    if block == "gpt3":
        _swap(out, nnx.ZeroCentredLayerNorm, nnx.LayerNorm)
    for layer in _layers(out):
        _layer_as_published(layer, block)
    return out


def _as_gemma(model: Any) -> None:
    if fdl.get_callable(model.embedding) is nnx.Embedding:
        graph.swap(model.embedding, nnx.ScaledEmbedding)
        if "scale" in model.head.__arguments__:
            del model.head.scale
    _swap(model, nnx.RMSNorm, nnx.ZeroCentredRMSNorm)
    _set_epsilon(model, nnx.ZeroCentredRMSNorm, model.final_norm.epsilon)


def _layer_in_form(layer: Any, query: float, options: Options) -> None:
    attention = layer.attention
    width = attention.__arguments__.get("head_dim")
    if _has_scores(attention) and (width is None or query != width**-0.5):
        attention.attention.scale = query
    rope = attention.__arguments__.get("rope")
    if rope is not None:
        _set_layout(rope, turn_of(options))
    if fdl.get_callable(layer.mlp) is nnx.MoE:
        layer.mlp.router.count_padding = True


def _layer_as_published(layer: Any, block: str) -> None:
    attention = layer.attention
    folded = block in FOLDED and _has_scores(attention)
    if folded and attention.attention.scale == 1.0:
        del attention.attention.scale
        if block == "gemma2":
            attention.attention.scale = attention.head_dim**-0.5
    if block == "deepseek":
        _set_epsilon(attention, nnx.RMSNorm, _RMS_EPSILON)
    elif attention.__arguments__.get("rope") is not None:
        _set_layout(attention.rope, "pairs" if block == "llama4" else "halves")
    router = getattr(layer.mlp, "router", None)
    if router is not None and "count_padding" in router.__arguments__:
        del router.count_padding


def _has_scores(attention: Any) -> bool:
    """Says whether attention has scores that are scaled; linear attention has not."""
    return fdl.get_callable(attention) is not nnx.GatedDeltaNet


def _set_layout(rope: Any, layout: str) -> None:
    if layout != "halves":
        rope.layout = layout
    elif "layout" in rope.__arguments__:
        del rope.layout


def _layers(model: Any) -> list[Any]:
    return [layer for stack in model.decoder.stacks for layer in stack.layers]


def _swap(model: Any, old: type, new: type) -> None:
    for _, node in graph.iterate(model):
        if fdl.get_callable(node) is old:
            graph.swap(node, new)


def _set_epsilon(part: Any, norm: type, epsilon: float) -> None:
    for _, node in graph.iterate(part):
        if fdl.get_callable(node) is norm:
            node.epsilon = epsilon


def _set_head_epsilon(layer: Any, epsilon: float) -> None:
    for _, node in graph.iterate(layer):
        if fdl.get_callable(node) is nnx.PerHead:
            node.norm.epsilon = epsilon
