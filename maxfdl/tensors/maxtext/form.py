"""What a network keeps in its weights, and what it does as it runs.

Two networks can compute the same with other weights: a factor of the queries may be in
their kernel, one of the embedding in its table. Their forms say by which numbers the
weights of one have to be multiplied to be those of the other.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from maxfdl.errors import UserError
from maxfdl.layers.embedding import ScaledEmbedding
from maxfdl.layers.head import TiedHead
from maxfdl.tensors.layouts import Config
from maxfdl.tensors.maxtext.layouts import KEY_HEADS
from maxfdl.tensors.maxtext.names import FOLDED
from maxfdl.tensors.maxtext.options import Options


@dataclasses.dataclass(frozen=True)
class Form:
    """What is not in the weights.

    Args:
      query: Factor of the scores of attention.
      embedding: Factor of the rows of the embedding.
      logits: Factor of the logits; None where the head has a kernel of its own.
      turn: Order of features that turn: `halves` or `pairs`; None where none does.
    """

    query: float
    embedding: float
    logits: float | None
    turn: str | None

    def to(self, other: "Form") -> Config:
        """Returns the config of layouts that make of weights in this form those of the
        other.

        Raises:
          UserError: If no factors of the weights do that.
        """
        embedding = self.embedding / other.embedding
        if (self.logits is None) != (other.logits is None):
            raise UserError(
                "One of the two networks has a head of its own and the other has the"
                " embedding as head; they cannot have the same weights."
            )
        if self.logits is not None and other.logits is not None:
            if not _near(self.logits, other.logits * embedding):
                raise UserError(
                    f"MaxText's logits have the factor {other.logits:g}, and those of"
                    f" this network {self.logits:g} with rows of the embedding"
                    f" {embedding:g} times shorter; set head.scale, or MaxText's"
                    " normalize_embedding_logits."
                )
        turn = (self.turn, other.turn) if self.turn and other.turn else ()
        factors = {"query": self.query / other.query, "embedding": embedding}
        exact = {name: 1.0 if _near(x, 1.0) else x for name, x in factors.items()}
        return {"factors": exact, "turn": turn}


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6)


def conversion(network: Any, options: Options) -> Config:
    """Returns the config of the layouts between a network and a checkpoint of options.

    Raises:
      UserError: If no factors of the weights make one of the other.
    """
    config = form_of(network).to(maxtext_form(options))
    return {**config, KEY_HEADS: options["gdn_num_key_heads"]}


def form_of(network: Any) -> Form:
    """Returns the form of a network, given as the factory that its graph builds.

    Raises:
      UserError: If its layers differ in what is asked for.
    """
    fields = network.keywords
    head = fields["head"]
    tied = issubclass(head.func, TiedHead)
    scaled = issubclass(fields["embedding"].func, ScaledEmbedding)
    ropes = {_turn(each) for each in _attentions(network)}
    scales = {_scale(each) for each in _attentions(network)}
    if len(scales) > 1 or len(ropes - {None}) > 1:
        raise UserError(
            "The layers of this network scale or turn queries in different ways, which"
            " those of MaxText do not."
        )
    return Form(
        query=scales.pop(),
        embedding=math.sqrt(fields["features"]) if scaled else 1.0,
        logits=head.keywords.get("scale", 1.0) if tied else None,
        turn=next(iter(ropes - {None}), None),
    )


def maxtext_form(options: Options) -> Form:
    """Returns the form of the network that options describe."""
    width = options["head_dim"]
    if options["attention_type"] == "mla":
        width = options["qk_nope_head_dim"] + options["qk_rope_head_dim"]
    tied, normalised = (
        options["logits_via_embedding"],
        options["normalize_embedding_logits"],
    )
    logits = options["emb_dim"] ** -0.5 if normalised else 1.0
    folded = options["decoder_block"] in FOLDED
    return Form(
        query=1.0 if folded else scale_of(options, width),
        embedding=1.0,
        logits=logits if tied else None,
        turn=None if options["trainable_position_size"] > 0 else turn_of(options),
    )


def scale_of(options: Options, width: int) -> float:
    """Returns the factor of scores that MaxText applies as it runs."""
    if options["model_name"] == "gemma3-27b":
        return (options["emb_dim"] // options["num_query_heads"]) ** -0.5
    scale = width**-0.5
    longer = options["max_position_embeddings"]
    if options["attention_type"] == "mla":
        if longer > options["original_max_position_embeddings"]:
            growth = 0.1 * options["mscale"] * math.log(options["rope_factor"]) + 1.0
            scale *= growth * growth
    return scale


def turn_of(options: Options) -> str:
    """Returns the order of features that turn."""
    if is_llama3_rope(options):
        return "pairs"
    is_yarn = options["rope_type"].startswith("yarn")
    return "pairs" if is_yarn and options["rope_interleave"] else "halves"


def is_llama3_rope(options: Options) -> bool:
    names = options["model_name"], options["rope_type"]
    return any(name.startswith("llama3.1") for name in names)


def _attentions(network: Any) -> Iterator[Any]:
    for stack in network.keywords["decoder"].keywords["stacks"]:
        for layer in stack.keywords["layers"]:
            attention = layer.keywords["attention"]
            if "attention" in attention.keywords:  # linear attention has no scores
                yield attention


def _scale(attention: Any) -> float:
    fields = attention.keywords
    scale = getattr(fields["attention"], "scale", None)
    if scale is not None:
        return scale
    width = fields.get("head_dim") or fields["nope_dim"] + fields["rope_dim"]
    return width**-0.5


def _turn(attention: Any) -> str | None:
    rope = attention.keywords.get("rope")
    return None if rope is None else rope.layout
