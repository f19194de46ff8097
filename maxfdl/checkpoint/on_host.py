"""The checksum of `fingerprint` of arrays in the memory of the host, in NumPy.

A checkpoint of an XLA:CPU run is looked at here, too: XLA:CPU writes the weighted
elements of an array to memory before it adds them up, and compiles a program for each
state (1.5 GB/s and about a second, where NumPy reaches 7 GB/s at once).
"""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

_STRIDES = (2654435761, 2246822519, 3266489917, 668265263, 374761393)

_BLOCK = 2**18
"""Elements that are looked at together, so that they stay in the cache of a core."""

_COLUMNS = 512


def stride(dim: int) -> int:
    """Returns what one step along a dim adds to half the weight of an element.

    Weights are odd, so that a product with one modulo 2**32 loses no bit.
    """
    return _STRIDES[dim % len(_STRIDES)]


def checksum_and_finite(array: np.ndarray, first: tuple[int, ...]) -> tuple[int, bool]:
    """Returns the checksum, modulo 2**32, and whether no element is NaN or infinite.

    Args:
      array: An array, or a part of one.
      first: Where the part begins in the whole array, along its first dims.
    """
    checksum, finite = 0, True
    for block, at in _blocks(array, first + (0,) * (array.ndim - len(first))):
        block = np.asarray(block, order="C")
        checksum += _checksum(_words(block), at)
        finite = finite and _is_finite(block)
    return checksum % 2**32, finite


def _blocks(
    array: np.ndarray, first: tuple[int, ...]
) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Yields parts of at most `_BLOCK` elements, and where each begins."""
    if array.size <= _BLOCK:
        yield array, first
        return
    row = math.prod(array.shape[1:])
    if row > _BLOCK:
        for i in range(len(array)):
            for block, at in _blocks(array[i], first[1:]):
                yield block[None], (first[0] + i, *at)
    else:
        rows = _BLOCK // row
        for start in range(0, len(array), rows):
            yield array[start : start + rows], (first[0] + start, *first[1:])


def _checksum(words: np.ndarray, first: tuple[int, ...]) -> int:
    """Returns the sum of all words times `2 * w + 1`, where w adds up, over the dims,
    the position along the dim plus one, times its stride.

    As w is a sum over dims, only the sums of the rows and of the columns of a matrix
    are weighted.
    """
    if not words.size:
        return 0
    of_rows, of_columns = _weights(words.shape)
    matrix = words.reshape(len(of_rows), len(of_columns))
    rows = np.add.reduce(matrix, axis=1, dtype=np.uint32)
    columns = np.add.reduce(matrix, axis=0, dtype=np.uint32)
    offset = sum(start * stride(dim) for dim, start in enumerate(first))
    total = _dot(rows, 2 * of_rows + 1) + _dot(columns, 2 * of_columns)
    return total + 2 * offset * int(np.add.reduce(rows, dtype=np.uint32))


def _dot(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.add.reduce(a * b, dtype=np.uint32))


@functools.lru_cache(maxsize=16)
def _weights(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns w of the rows and of the columns of the matrix that an array of `shape`
    is, with some `_COLUMNS` columns: the last dims, and a part of the one before."""
    dims = [
        (np.arange(1, size + 1, dtype=np.uint64) * stride(dim)).astype(np.uint32)
        for dim, size in enumerate(shape)
    ]
    columns = np.zeros(1, np.uint32)
    while dims and len(columns) * len(dims[-1]) <= _COLUMNS:
        columns = _outer_sum(dims.pop(), columns)
    if dims:
        dim = dims.pop()
        most = _COLUMNS // len(columns)
        part = max(size for size in range(1, most + 1) if len(dim) % size == 0)
        if part * len(columns) < _COLUMNS / 8:  # for long sums are fast ones
            part = len(dim)
        columns = _outer_sum(dim[:part], columns)
        dims.append(dim[::part] - dim[0])
    return functools.reduce(_outer_sum, dims, np.zeros(1, np.uint32)), columns


def _outer_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.add.outer(a, b).ravel()


def _words(array: np.ndarray) -> np.ndarray:
    """Returns the bit patterns as uint32. Elements of 64 bits and complex ones get a
    last dim with their words."""
    size = array.dtype.itemsize
    if size <= 4:
        bits = array.view(f"uint{8 * size}")
        narrow = jax.dtypes.itemsize_bits(array.dtype)
        if narrow < 8:  # stored as a byte, whose other bits say nothing
            bits = bits & np.uint8(2**narrow - 1)
        return bits.astype(np.uint32, copy=False)
    parts = (2, 2) if size == 16 else (2,)
    return array.reshape(-1).view(np.uint32).reshape(*array.shape, *parts)


def _is_finite(array: np.ndarray) -> bool:
    dtype = array.dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        return True
    if dtype.itemsize == 1:
        codes = array.view(np.uint8)
        return not any((codes == code).any() for code in _not_finite(dtype))
    if np.iscomplexobj(array):
        array = array.reshape(-1).view(f"float{4 * dtype.itemsize}")
    bits = array.view(f"uint{8 * array.dtype.itemsize}")
    infinity = np.array(np.inf, array.dtype).view(bits.dtype)
    # The exponent of an infinity and of a NaN has every bit.
    return not array.size or bool((bits & infinity).max() < infinity)


@functools.cache
def _not_finite(dtype: np.dtype) -> list[np.uint8]:
    """Returns the codes of a type of at most 8 bits that are no finite number."""
    codes = np.arange(2 ** jax.dtypes.itemsize_bits(dtype), dtype=np.uint8)
    return [*codes[~np.isfinite(codes.view(dtype).astype(np.float32))]]
