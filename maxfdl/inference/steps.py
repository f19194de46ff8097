"""Prefill and decode, as pure functions.

Prefill reads whole prompts and draws the first token of each row; decode goes on from
there, a token a row at a time. Letters: B rows, T tokens of the longest prompt, N
stop tokens, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maxfdl.layers.cache import EmptyCache
from maxfdl.model import Model
from maxfdl.ops.mask import NOWHERE
from maxfdl.ops.sampling import Sampler

NOTHING = -1
"""Stands for the token of a row that has ended."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """What to go on with, one document a row.

    Args:
      tokens: [B, T] ids, padded on the right.
      lengths: [B] tokens of each prompt; 0: the row stays empty.
      ends: [B] tokens that prompt and continuation may have together.
      seeds: [B] randomness of each row.
      stop: [N] tokens after which a row ends.
    """

    tokens: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray
    ends: jax.Array | np.ndarray
    seeds: jax.Array | np.ndarray
    stop: jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Documents under way: what one token hands to the next.

    Args:
      cache: What the layers keep of all tokens but the newest.
      tokens: [B] the newest.
      positions: [B] where they stand.
      ends, seeds, stop: As in `Prompts`.
      done: [B] whether a row has ended; it then rests.
      seen: [B, V] which tokens a row holds; None if the sampler does not ask.
    """

    cache: dict[str, Any]
    tokens: jax.Array
    positions: jax.Array
    ends: jax.Array
    seeds: jax.Array
    stop: jax.Array
    done: jax.Array
    seen: jax.Array | None


def prefill(
    model: Model,
    sampler: Sampler,
    slots: int,
    variables: Mapping[str, Any],
    prompts: Prompts,
) -> Rows:
    """Returns the rows with the first new token of each, and caches that lie apart.

    Args:
      model: The network.
      sampler: Draws the tokens.
      slots: Tokens that a row of the cache has room for.
      variables: Of the model.
      prompts: What to go on with.
    """
    tokens, lengths = jnp.asarray(prompts.tokens), jnp.asarray(prompts.lengths)
    places = jnp.arange(tokens.shape[1])
    real_BT = places < lengths[:, None]
    positions_BT = jnp.where(real_BT, places, NOWHERE)
    cache = EmptyCache(slots, apart=True)
    out = model.apply(variables, tokens, positions=positions_BT, cache=cache)
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    hidden_BD = jnp.take_along_axis(out.hidden, last, axis=1)[:, 0]
    logits_BV = out.unembedding.of_vectors(hidden_BD)
    seen_BV = None
    if sampler.repetition_penalty is not None:
        row = jnp.arange(len(lengths))[:, None]
        token = jnp.where(real_BT, tokens, logits_BV.shape[-1])
        seen_BV = jnp.zeros(logits_BV.shape, bool).at[row, token].set(True, mode="drop")
    rows = Rows(
        cache=out.cache,
        tokens=jnp.zeros_like(lengths),
        positions=lengths - 1,
        ends=jnp.asarray(prompts.ends),
        seeds=jnp.asarray(prompts.seeds),
        stop=jnp.asarray(prompts.stop),
        done=lengths == 0,
        seen=seen_BV,
    )
    return _with_next(sampler, rows, logits_BV)


def decode_one(
    model: Model, sampler: Sampler, variables: Mapping[str, Any], rows: Rows
) -> Rows:
    """Returns the rows with one more token in each that has not ended."""
    positions_B1 = jnp.where(rows.done, NOWHERE, rows.positions)[:, None]
    out = model.apply(
        variables, rows.tokens[:, None], positions=positions_B1, cache=rows.cache
    )
    logits_BV = out.unembedding.of_vectors(out.hidden[:, 0])
    return _with_next(sampler, dataclasses.replace(rows, cache=out.cache), logits_BV)


def decode(
    model: Model,
    sampler: Sampler,
    steps: int,
    variables: Mapping[str, Any],
    rows: Rows,
) -> tuple[Rows, jax.Array]:
    """Returns the rows after `steps` more tokens, and these [steps, B].

    `variables` lie apart, see `Model.apart`.

    A row that has ended gives NOTHING; when all have, no more is computed.
    """
    drawn = jnp.full((steps, *rows.tokens.shape), NOTHING, rows.tokens.dtype)

    def unfinished(carry):
        step, rows, _ = carry
        return (step < steps) & ~jnp.all(rows.done)

    def one_more(carry):
        step, rows, drawn = carry
        rests = rows.done
        rows = decode_one(model, sampler, variables, rows)
        drawn = drawn.at[step].set(jnp.where(rests, NOTHING, rows.tokens))
        return step + 1, rows, drawn

    _, rows, drawn = jax.lax.while_loop(unfinished, one_more, (0, rows, drawn))
    return rows, drawn


def _with_next(sampler: Sampler, rows: Rows, logits_BV: jax.Array) -> Rows:
    """Draws the token after the newest of each row."""
    positions = rows.positions + 1

    def key_of(seed, position):
        return jax.random.fold_in(jax.random.key(seed), position)

    drawn = sampler(logits_BV, jax.vmap(key_of)(rows.seeds, positions), rows.seen)
    seen_BV = rows.seen
    if seen_BV is not None:
        seen_BV = seen_BV.at[jnp.arange(len(drawn)), drawn].set(True)
    stops = jnp.any(drawn[:, None] == rows.stop, axis=1)
    return dataclasses.replace(
        rows,
        tokens=jnp.where(rows.done, rows.tokens, drawn),
        positions=jnp.where(rows.done, rows.positions, positions),
        done=rows.done | stops | (positions + 1 >= rows.ends),
        seen=seen_BV,
    )
