"""Generation with a cache: prompts in, new tokens out."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from maxfdl.errors import UserError
from maxfdl.inference.steps import NOTHING, Prompts, Rows, decode, prefill
from maxfdl.model import Model
from maxfdl.ops.mask import NOWHERE
from maxfdl.ops.sampling import Sampler
from maxfdl.sharding.room import check_room, on_one_device

Tokens = Sequence[Sequence[int]] | np.ndarray | jax.Array
_SMALLEST = 16  # tokens; shorter prompts and caches are filled up to it


class Completion(list[int]):
    """The new tokens of a row, and why it ended.

    `reason` is `stop` if the last token is a stop token, else `length`.
    """

    def __init__(self, tokens: Sequence[int], reason: Literal["stop", "length"]):
        super().__init__(tokens)
        self.reason = reason


class Generator:
    """Continues documents; keeps compiled programs for later calls.

    Prompts and caches are padded to one of a few lengths, so that texts of many lengths
    share programs. Tokens are computed `run_length` at a time; the next run is
    dispatched before the caller gets the tokens of the last.

    Args:
      model: The network.
      sampler: How tokens are chosen.
      stop_tokens: Tokens that end a row.
      run_length: Tokens per row and dispatch.

    Attributes:
      cache_bytes: What the caches of the newest call take; 0 before the first.

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
        model = self.model = _with_whole_rows(model)
        self.sampler = sampler or Sampler()
        self.stop_tokens = tuple(stop_tokens)
        self.run_length = run_length
        self.cache_bytes = 0
        for problem in self.sampler.check_config(self.sampler):
            raise ValueError(problem)
        prefill_here = functools.partial(prefill, model, self.sampler)
        decode_here = functools.partial(decode, model, self.sampler, run_length)
        self._prefill = jax.jit(prefill_here, static_argnums=0)
        self._decode = jax.jit(
            decode_here, donate_argnums=1, compiler_options=_compiler_options(model)
        )

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
        """Yields [B], the next token of each row, or NOTHING where it has none.

        Where a document grows past a length at which its rotary embedding changes, its
        cache is computed again from all of its tokens; other rows wait.

        Args:
          variables: Of the model.
          tokens: The prompts, [B, T] or of different lengths.
          max_new_tokens: Most new tokens of a row.
          seed: One per row, or one for all. Not used with temperature 0.

        Raises:
          ValueError: If there is no row, or an empty one.
          UserError: If an id is negative, or past the model's vocabulary, or if a
            document would be longer than the model has learned positions for, or
            than memory has room for.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens ({max_new_tokens}) must be at least 1.")
        rows = [np.asarray(row).tolist() for row in tokens]
        lengths = np.array([len(row) for row in rows])
        if not rows or not lengths.min():
            raise ValueError(
                f"generate tokens (rows of {lengths.tolist()}) must hold at least one"
                " row, and each at least one token, such as the one that begins a"
                " document."
            )
        for number, row in enumerate(rows):
            self.model.check_ids(row, f"tokens[{number}]")
        longest = int(lengths.max())
        if longest + max_new_tokens >= NOWHERE:
            raise UserError(
                f"max_new_tokens ({max_new_tokens}) must leave a document below"
                f" {NOWHERE} tokens."
            )
        self.model.check_positions(
            # The last token is drawn and not read.
            longest + max_new_tokens - 1,
            f" (for a prompt of {longest} tokens and max_new_tokens {max_new_tokens})",
        )
        ends = lengths + max_new_tokens
        while np.any(lengths < ends):
            until = np.minimum(ends, self._fresh_until(lengths))
            for step in self._stream_until(variables, rows, until, seed):
                step = np.where(lengths < ends, step, NOTHING)
                for row, token in zip(rows, step.tolist(), strict=True):
                    row += [token] if token != NOTHING else []
                yield step
            stopped = [row[-1] in self.stop_tokens for row in rows]
            lengths = np.array([len(row) for row in rows])
            ends = np.where(stopped, lengths, ends)

    def _fresh_until(self, lengths: np.ndarray) -> np.ndarray:
        """Returns the length up to which each document's cache holds.

        The token that exceeds it makes the cache be computed again.
        """
        until = np.full_like(lengths, np.iinfo(lengths.dtype).max)
        for length in self.model.stale_after:
            until = np.where(lengths <= length, np.minimum(until, length + 1), until)
        return until

    def _stream_until(
        self,
        variables: Mapping[str, Any],
        prompts: list[list[int]],
        ends: np.ndarray,
        seed: int | Sequence[int],
    ) -> Iterator[np.ndarray]:
        """Yields next tokens until each row has as many as `ends` says, or stops."""
        padded, count = self._padded(prompts, ends, seed), len(prompts)
        slots = _rounded(int(np.max(padded.ends)))
        if self.model.sharding is None:
            # Traced once for this and for the call.
            abstract = self._prefill.eval_shape(slots, variables, padded)
            check_room(on_one_device(abstract), f"caches of {slots} tokens need")
        rows = self._prefill(slots, variables, padded)
        self.cache_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(rows.cache))
        yield np.array(rows.tokens)[:count]
        variables = self.model.apart(variables)
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

    def _padded(self, prompts: list[list[int]], ends: np.ndarray, seed) -> Prompts:
        # Empty rows are added so that the mesh divides the batch evenly.
        parts, given = _row_parts(self.model), len(prompts)
        shape = math.ceil(given / parts) * parts
        tokens = np.zeros((shape, _rounded(max(map(len, prompts)))), np.int32)
        lengths, until = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        seeds = np.zeros(shape, np.uint32)
        for row, ids in zip(tokens, prompts, strict=False):
            row[: len(ids)] = ids
        lengths[:given] = [len(ids) for ids in prompts]
        until[:given] = ends
        seeds[:given] = np.asarray(seed) % 2**32
        stop = np.asarray(self.stop_tokens, np.int32)
        return Prompts(
            tokens=tokens, lengths=lengths, ends=until, seeds=seeds, stop=stop
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
    """Returns the new tokens of each row, and why it ended.

    A row's tokens do not depend on the other rows. Compiled programs are kept for later
    calls with the same model and settings.

    Args:
      model: The network.
      variables: Of the model, on one device or on its mesh.
      tokens: The prompts, [B, T] or of different lengths.
      max_new_tokens: Most new tokens of a row.
      temperature, top_k, top_p, min_p, repetition_penalty: See `ops.sampling.Sampler`.
      seed: One per row, or one for all.
      stop_tokens: Tokens that end a row; the last token of the row is one of them.
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


def _compiler_options(model: Model) -> dict[str, Any] | None:
    """Returns options of XLA for decoding.

    Products that read packed kernels on a CPU take half the time with vectors of 512
    bits, which XLA of JAX 0.10 does not choose by itself.
    """
    parameters = jax.tree.leaves(model.parameters())
    is_packed = any(parameter.packing is not None for parameter in parameters)
    if not is_packed or jax.default_backend() != "cpu":
        return None
    return {"xla_cpu_prefer_vector_width": 512}


def _with_whole_rows(model: Model) -> Model:
    """Returns the model as it generates: a single token is cut by no mesh axis."""
    if model.sharding is None:
        return model
    return model.on(model.sharding.with_whole_rows())


def _row_parts(model: Model) -> int:
    """Returns into how many shards the model's mesh divides a batch."""
    if model.sharding is None:
        return 1
    sharding = model.sharding
    return math.prod(map(sharding.size, sharding.rules.batch))


def _shares_cores(model: Model) -> bool:
    """Returns whether the model's devices are parts of one CPU: see `run.loop`."""
    if model.sharding is None:
        return False
    devices = model.sharding.mesh.local_devices
    return len(devices) > 1 and devices[0].platform == "cpu"
