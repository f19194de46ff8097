"""The published models in a table: sizes, work and bytes, without allocating any."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from fdl_configs.models.catalogue import MODELS
from maxfdl import graph
from maxfdl.layers.parameter import Parameter
from maxfdl.model import NnxModel
from maxfdl.ops.cost import count_flops
from maxfdl.sharding.room import size_text

LENGTH = 4096
"""Tokens of the document that FLOPs are stated for."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A published model.

    Args:
      name: Of the function that makes its graph.
      family: Module of that function.
      parameters: Weights of the graph.
      published: Weights that it is published with; a text where that is rounded.
      source: Who published it.
      flops_per_token: Of the matrix products forward and backward, in a document of
        `LENGTH` tokens, or of as many as the model has learned positions for; causal
        attention counts half, whatever its window.
      bfloat16_bytes: What the weights take at two bytes each.
    """

    name: str
    family: str
    parameters: int
    published: int | str
    source: str
    flops_per_token: float
    bfloat16_bytes: int


def row_of(name: str) -> Row:
    """Returns the row of one model, traced and not run."""
    size = MODELS[name]
    model = NnxModel(module=graph.build(size.make()))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    length = min(LENGTH, model.most_positions or LENGTH)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    count = num_parameters(model)
    return Row(
        name=name,
        family=size.make.__module__.rpartition(".")[2],
        parameters=count,
        published=size.parameters,
        source=size.source,
        flops_per_token=3 * count_flops(model.logits, variables, tokens) / length,
        bfloat16_bytes=2 * count,
    )


def num_parameters(model: NnxModel) -> int:
    """Returns how many weights a model declares."""
    is_parameter = lambda node: isinstance(node, Parameter)  # noqa: E731
    declared = jax.tree.leaves(model.parameters(), is_leaf=is_parameter)
    return sum(parameter.size for parameter in declared)


_COLUMNS = ("parameters", "published", "FLOPs per token", "bfloat16")


def lines(rows: Iterator[Row]) -> Iterator[str]:
    """Yields the table, a line as soon as its row is known."""
    yield _line("model", "family", _COLUMNS)
    for row in rows:
        published = row.published
        numbers = (
            f"{row.parameters:,}",
            published if isinstance(published, str) else f"{published:,}",
            f"{row.flops_per_token:.4g}",
            size_text(row.bfloat16_bytes),
        )
        yield _line(row.name, row.family, numbers)
    yield (
        f"FLOPs are those of training on documents of {LENGTH:,} tokens (fewer where"
        " positions are learned), causal attention counted half."
    )


def _line(name: str, family: str, numbers: tuple[str, ...]) -> str:
    longest = max(map(len, MODELS))
    return f"{name:<{longest}}  {family:<12}" + "".join(f"{n:>19}" for n in numbers)
