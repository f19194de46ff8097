"""GPTQ: codes that make up for the errors of those before, on calibration data.

Frantar et al. 2022, https://arxiv.org/abs/2210.17323, section 3.
"""

import numpy as np

from maxfdl.tensors.quantized.codec import Codec
from maxfdl.tensors.quantized.rounded import Rounded

_TOGETHER = 128  # columns whose errors reach the rest at once
_DAMPING = 0.01  # of the mean of the diagonal


def gptq(codec: Codec, w: np.ndarray, moment: np.ndarray) -> Rounded:
    """Returns a weight that a codec stores exactly and whose outputs are near `w`'s.

    Codes are chosen column by column. What rounding one adds to the outputs, the
    columns that follow take away as far as they can, for inputs x with the second
    moment `H = sum x x^T`: `w_j -= (w_i - q_i) U_ij / U_ii`, where U is the upper
    Cholesky factor of the inverse of H. Scales of a block of columns are those of its
    greatest magnitudes when its first column is reached. A hundredth of the mean of H's
    diagonal is added to it; inputs that were always 0 have their weights rounded alone.

    Cost: `rows columns^2` multiplications.

    Args:
      codec: How the weight is stored.
      w: The weight, [..., rows, columns], or [..., columns, rows] where the codec is
        `transposed`.
      moment: H, [..., columns, columns].
    """
    w = w.astype(np.float32)
    w = w.swapaxes(-1, -2) if codec.transposed else w
    codes = np.empty(w.shape, np.float32)
    scales = np.empty(codec.block.number(w.shape), np.float32)
    for i in np.ndindex(w.shape[:-2]):
        codes[i], scales[i] = _rounded(codec, w[i].copy(), moment[i])
    return codec.as_rounded(codes, scales)


def inverse_factor(moment: np.ndarray) -> np.ndarray:
    """Returns U, upper triangular, where `U^T U` is the inverse of the damped H."""
    h = np.array(moment, np.float64)
    diagonal = np.einsum("ii->i", h)
    diagonal[diagonal == 0] = 1
    diagonal += _DAMPING * diagonal.mean()
    return np.linalg.cholesky(np.linalg.inv(h)).T.astype(np.float32)


def _rounded(
    codec: Codec, w: np.ndarray, moment: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes and scales of one matrix, which is overwritten."""
    factor = inverse_factor(moment)
    codes, blocks = np.empty_like(w), codec.block
    scales = np.empty(blocks.number(w.shape), np.float32)
    size = blocks.of(w.shape)[1]
    for start in range(0, w.shape[1], _TOGETHER):
        end = min(start + _TOGETHER, w.shape[1])
        errors = np.empty((w.shape[0], end - start), np.float32)
        for column in range(start, end):
            block, first = divmod(column, size)
            if first == 0:
                ahead = _seen(w, errors, factor, start, column, column + size)
                scales[:, block] = codec.scales_of(ahead)[:, 0]
            scale = blocks.spread(scales[:, block, None], w.shape)[:, 0]
            codes[:, column] = codec.codes.nearest(w[:, column] / scale)
            error = w[:, column] - codes[:, column] * scale
            error = error / factor[column, column]
            w[:, column:end] -= error[:, None] * factor[column, column:end]
            errors[:, column - start] = error
        w[:, end:] -= errors @ factor[start:end, end:]
    return codes, scales


def _seen(
    w: np.ndarray,
    errors: np.ndarray,
    factor: np.ndarray,
    start: int,
    column: int,
    end: int,
) -> np.ndarray:
    """Returns columns up to `end` as they are once all errors so far have reached them.

    Errors since `start` have reached those within `_TOGETHER` columns of it alone.
    """
    found = w[:, column:end].copy()
    late = max(column, start + _TOGETHER)
    if late < end:
        done = errors[:, : column - start]
        found[:, late - column :] -= done @ factor[start:column, late:end]
    return found
