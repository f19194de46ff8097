"""The order of documents, epoch after epoch."""

import dataclasses
import functools

import numpy as np

from maxfdl.data.split import mixed

_ROUNDS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class EndlessOrder:
    """`order(number)` is one of `indices`; each comes once in every `len(indices)`.

    A shuffled order differs in every epoch, and is computed for a single number in a
    few microseconds, whatever the size of the corpus.

    Args:
      indices: What to repeat.
      seed: Seed of the shuffle; None keeps the order of `indices`.
      shift: By how many places an order without shuffle moves in every epoch.

    Grain's `shuffle` is not used: its cipher walks 2**16 places for a corpus of few
    documents (5 ms a document for two of them), and its counters cost 50 us a document.
    """

    indices: np.ndarray
    seed: int | None = None
    shift: int = 0

    def __call__(self, number: int) -> int:
        size = len(self.indices)
        epoch, place = divmod(number, size)
        if self.seed is None:
            place = (place + epoch * self.shift) % size
        else:
            place = _permuted(place, size, self.seed, epoch)
        return int(self.indices[place])


def _permuted(place: int, size: int, seed: int, epoch: int) -> int:
    """Returns the image of `place` under a permutation of `range(size)`.

    Addition, multiplication by an odd number and xor with the upper half are bijections
    of numbers of `bits` bits. Repeating all three until the result is below `size`
    gives a bijection of `range(size)` ("cycle walking", Black and Rogaway 2002,
    https://doi.org/10.1007/3-540-45760-7_9), in at most two rounds on average unless
    `size` is tiny.
    """
    bits = max(6, (size - 1).bit_length())
    mask, half = (1 << bits) - 1, (bits + 1) // 2
    while True:
        for add, multiply in _keys(seed, epoch):
            place = ((place + add) * multiply) & mask
            place ^= place >> half
        if place < size:
            return place


@functools.lru_cache(maxsize=64)
def _keys(seed: int, epoch: int) -> tuple[tuple[int, int], ...]:
    start = mixed(mixed(np.uint64(seed)) + np.uint64(epoch))
    keys = mixed(start + np.arange(2 * _ROUNDS, dtype=np.uint64)).tolist()
    return tuple((keys[i], keys[i + 1] | 1) for i in range(0, 2 * _ROUNDS, 2))
