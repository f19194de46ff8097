"""Which documents are held out for evaluation."""

import numpy as np


def mixed(numbers):
    """Returns hashes of uint64 `numbers`, uint64s too.

    The generator SplitMix64 (Steele, Lea and Flood 2014,
    https://doi.org/10.1145/2660193.2660195), one step from each number.
    """
    z = np.atleast_1d(numbers) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def document_hashes(num_documents: int) -> np.ndarray:
    """Returns a uint64 for each document index, mixed but always the same."""
    return mixed(np.arange(num_documents, dtype=np.uint64))


def split_documents(
    num_documents: int, eval_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices for training, ascending, and those held out, mixed.

    A document is held out if its hash is in the lowest `eval_fraction` of all hashes,
    so its side does not change when documents are appended. Unless the
    fraction is 0, at least one is held out and, of two or more, at least one is not.
    """
    hashes = document_hashes(num_documents)
    order = np.argsort(hashes, kind="stable")
    num_held_out = int(np.sum(hashes < np.uint64(eval_fraction * (2**64 - 2**11))))
    if eval_fraction > 0:
        num_held_out = max(1, min(num_held_out, num_documents - 1))
    return np.sort(order[num_held_out:]), order[:num_held_out]
