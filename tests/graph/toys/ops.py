"""Leaf ops: frozen dataclasses."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Dot:
    def __call__(self, x, w):
        return x @ w


@dataclasses.dataclass(frozen=True)
class Fp8Dot(Dot):
    forward: Literal["e4m3fn", "e5m2"] = "e4m3fn"
