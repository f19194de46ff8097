"""Checks that weights are finite, and fit into the type that they are stored in."""

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np

from maxfdl.errors import UserError

_BITS: dict[np.dtype, tuple[type, int]] = {
    np.dtype(np.float64): (np.uint64, 0x7FFF_FFFF_FFFF_FFFF),
    np.dtype(np.float32): (np.uint32, 0x7FFF_FFFF),
    np.dtype(np.float16): (np.uint16, 0x7FFF),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7FFF),
}
"""By type: an unsigned type of its width, and what masks the sign."""

_CHUNK = 2**18  # numbers, so that what is masked stays in the cache of a core


@dataclasses.dataclass
class Inspection:
    """Checks weights as they are read or written.

    Args:
      allow_non_finite: Whether to accept weights that are not finite.
    """

    allow_non_finite: bool
    _first: str | None = dataclasses.field(default=None, init=False)
    _count: int = dataclasses.field(default=0, init=False)

    def look(self, where: str, values: np.ndarray, dtype: Any) -> None:
        """Checks one tensor, which is stored as `dtype`; `where` names it in errors.

        Raises:
          UserError: If it is not finite, unless that is allowed.
        """
        problem = _problem(values, dtype)
        if problem is None:
            return
        if not self.allow_non_finite:
            raise UserError(
                f"{where} {problem}; take other weights, or accept these as they are"
                " with allow_non_finite."
            )
        self._first = self._first or f"{where} {problem}"
        self._count += 1

    @property
    def remarks(self) -> list[str]:
        """A line about weights that were accepted although not finite, or none."""
        if self._first is None:
            return []
        more = f", and {self._count - 1} more tensors" if self._count > 1 else ""
        return [f"{self._first}{more}; used as it is, as allow_non_finite says"]


def _problem(values: np.ndarray, dtype: Any) -> str | None:
    """Returns why an array cannot be used as weights of type `dtype`, or None.

    Without the sign bit, floating-point numbers are ordered as their bits are, as
    integers, with infinity and NaN at the top. So the maximum of the integers suffices.
    """
    unsigned, mask = _BITS[values.dtype]
    flat = np.ascontiguousarray(values).reshape(-1).view(unsigned)
    most = np.zeros(1, unsigned)
    for start in range(0, flat.size, _CHUNK):
        np.maximum(most, (flat[start : start + _CHUNK] & mask).max(), out=most)
    largest = most.view(values.dtype)
    if not np.isfinite(largest[0]):
        return _not_finite(values)
    with np.errstate(over="ignore"):
        fits = np.isfinite(largest.astype(dtype)[0])
    return None if fits else f"holds {largest[0]}, too large for {np.dtype(dtype)}"


def _not_finite(values: np.ndarray) -> str:
    at = np.argwhere(~np.isfinite(values))
    first = [int(i) for i in at[0]]
    return (
        f"holds {values[tuple(first)]} at {first}, and {len(at):,} of its"
        f" {values.size:,} values are not finite"
    )
