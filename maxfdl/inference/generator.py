"""Generation with a cache: prompts in, new tokens out."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from maxfdl.inference.steps import NOTHING, Prompts, Rows, decode, prefill
from maxfdl.model import Model
from maxfdl.ops.sampling import Sampler

Tokens = Sequence[Sequence[int]] | np.ndarray | jax.Array
_SMALLEST = 16  # tokens; shorter prompts and caches are filled up to it


class Completion(list[int]):
    """The new tokens of a row, and why it ended.

    `reason` is `stop`, and the last token one of those that stop, or `length`.
    """

    def __init__(self, tokens: Sequence[int], reason: Literal["stop", "length"]):
        super().__init__(tokens)
        self.reason = reason


class Generator:
    """Continues documents, and keeps what it compiled for the next ones.

    Prompts are filled up to one of a few lengths and so are caches, so that texts of
    many lengths share their programs. Tokens are computed in runs of `run_length`; the
    next run is under way while the caller looks at the last.

    Args:
      model: The network.
      sampler: How tokens are chosen.
      stop_tokens: After one of these a row ends.
      run_length: Tokens a row per dispatch.

    Raises:
      ValueError: If the sampler has impossible settings.
    """

    def __init__(
        self,
        model: Model,
        sampler: Sampler | None = None,
        stop_tokens: Sequence[int] = (),
        run_length: int = 8,
    ):
        self.model = model
        self.sampler = sampler or Sampler()
        self.stop_tokens = tuple(stop_tokens)
        self.run_length = run_length
        for problem in self.sampler.check_config(self.sampler):
            raise ValueError(problem)
        prefill_here = functools.partial(prefill, model, self.sampler)
        decode_here = functools.partial(decode, model, self.sampler, run_length)
        self._prefill = jax.jit(prefill_here, static_argnums=0)
        self._decode = jax.jit(decode_here, donate_argnums=1)

    def generate(
        self,
        variables: Mapping[str, Any],
        tokens: Tokens,
        *,
        max_new_tokens: int,
        seed: int | Sequence[int] = 0,
    ) -> list[Completion]:
        """Returns the continuation of each row; arguments as `stream`."""
        steps = self.stream(variables, tokens, max_new_tokens=max_new_tokens, seed=seed)
        drawn = np.stack(list(steps), axis=1)
        return [self._completion(row[row != NOTHING].tolist()) for row in drawn]

    def stream(
        self,
        variables: Mapping[str, Any],
        tokens: Tokens,
        *,
        max_new_tokens: int,
        seed: int | Sequence[int] = 0,
    ) -> Iterator[np.ndarray]:
        """Yields [B], the next token of each row, or NOTHING where a row has ended.

        Args:
          variables: Of the model.
          tokens: The prompts, [B, T] or of different lengths.
          max_new_tokens: Most that a row may get.
          seed: One per row, or one for all. With temperature 0 it plays no part.
        """
        prompts = self._prompts(tokens, max_new_tokens, seed)
        count = len(tokens)
        slots = _rounded(int(np.max(prompts.ends)))
        rows = self._prefill(slots, variables, prompts)
        yield np.array(rows.tokens)[:count]
        rows, ahead = self._run(variables, rows)
        while True:
            drawn = ahead
            rows, ahead = self._run(variables, rows)
            for step in np.asarray(drawn)[:, :count]:
                if np.all(step == NOTHING):
                    return
                yield step

    def _run(self, variables, rows: Rows) -> tuple[Rows, jax.Array]:
        rows, drawn = self._decode(variables, rows)
        if _shares_cores(self.model):
            jax.block_until_ready(drawn)
        return rows, drawn

    def _prompts(self, tokens: Tokens, max_new_tokens: int, seed) -> Prompts:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens ({max_new_tokens}) must be at least 1.")
        given = [len(row) for row in tokens]
        if not given or not min(given):
            raise ValueError(
                f"generate tokens (rows of {given}) must hold at least one row, and"
                " each at least one token, such as the one that begins a document."
            )
        # Rows are added so that the mesh cuts the batch evenly; they stay empty.
        parts = _row_parts(self.model)
        rows = math.ceil(len(given) / parts) * parts
        padded = np.zeros((rows, _rounded(max(given))), np.int32)
        for row, ids in zip(padded, tokens, strict=False):
            row[: len(ids)] = ids
        lengths = np.zeros(rows, np.int32)
        lengths[: len(given)] = given
        seeds = np.zeros(rows, np.uint32)
        seeds[: len(given)] = np.asarray(seed) % 2**32
        return Prompts(
            tokens=padded,
            lengths=lengths,
            ends=np.where(lengths > 0, lengths + np.int32(max_new_tokens), lengths),
            seeds=seeds,
            stop=np.asarray(self.stop_tokens, np.int32),
        )

    def _completion(self, tokens: list[int]) -> Completion:
        stopped = tokens[-1] in self.stop_tokens
        return Completion(tokens, "stop" if stopped else "length")


@functools.lru_cache(maxsize=16)
def _generator(model, sampler, stop_tokens) -> Generator:
    return Generator(model, sampler, stop_tokens)


def generate(
    model: Model,
    variables: Mapping[str, Any],
    tokens: Tokens,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | Sequence[int] = 0,
    stop_tokens: Sequence[int] = (),
) -> list[Completion]:
    """Returns the new tokens of each row, with the reason why it ended.

    A row's tokens do not depend on what else is in the batch. What is compiled is kept
    for later calls with the same model and settings.

    Args:
      model: The network.
      variables: Of the model, on one device or on its mesh.
      tokens: The prompts, [B, T] or of different lengths.
      max_new_tokens: Most that a row may get.
      temperature, top_k, top_p, min_p, repetition_penalty: See `ops.sampling.Sampler`.
      seed: One per row, or one for all.
      stop_tokens: After one of these a row ends; it is the last in the list.
    """
    sampler = Sampler(temperature, top_k, top_p, min_p, repetition_penalty)
    generator = _generator(model, sampler, tuple(stop_tokens))
    return generator.generate(
        variables, tokens, max_new_tokens=max_new_tokens, seed=seed
    )


def _rounded(length: int) -> int:
    """Returns the next of 16, 24, 32, 48, 64, 96, ...: few sizes, little waste."""
    size = _SMALLEST
    while size < length:
        size *= 2
    smaller = size // 4 * 3
    return smaller if max(length, _SMALLEST) <= smaller else size


def _row_parts(model: Model) -> int:
    """Returns in how many parts the model's mesh cuts a batch."""
    if model.sharding is None:
        return 1
    mesh, rules = model.sharding.mesh, model.sharding.rules
    return math.prod(mesh.shape[axis] for axis in rules.batch)


def _shares_cores(model: Model) -> bool:
    """Returns whether the model's devices are parts of one CPU: see `train.loop`."""
    if model.sharding is None:
        return False
    devices = model.sharding.mesh.local_devices
    return len(devices) > 1 and devices[0].platform == "cpu"
