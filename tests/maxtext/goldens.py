"""The checkpoints of MaxText in `goldens/maxtext`, and how near its numbers we come."""

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "goldens" / "maxtext"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))

QUICK = ("llama2_linen024_param_only", "llama2_nnx025_muon")


def with_slow(names, quick):
    """Returns parameters of a test, of which all but the `quick` ones are slow."""
    slow = pytest.mark.slow
    return [n if n in quick else pytest.param(n, marks=slow) for n in names]


_LOGITS = {"gpt3": 3e-5, "qwen3": 3e-5, "gemma3": 5e-5}
_AFTER = {"gpt3": 5e-5, "qwen3": 5e-5, "gemma3": 1e-3}


class Golden:
    """One checkpoint, and MaxText's numbers."""

    def __init__(self, name: str):
        self.path = FOLDER / name
        self.numbers = np.load(self.path / "golden.npz")
        self.config = json.loads((self.path / "config.json").read_text())
        self.family = name.partition("_")[0]

    def batch(self, prefix: str = "") -> dict[str, Any]:
        fields = ("tokens", "targets", "segment_ids", "positions")
        batch = {name: jnp.asarray(self.numbers[prefix + name]) for name in fields}
        return batch | {"weights": (batch["segment_ids"] != 0).astype(jnp.float32)}

    @property
    def trains(self) -> bool:
        return "train_loss" in self.numbers

    @property
    def logits_tolerance(self) -> float:
        return _LOGITS.get(self.family, 1e-5)

    @property
    def after_tolerance(self) -> float:
        return _AFTER.get(self.family, 2e-5)

    @property
    def gradient_tolerance(self) -> float:
        return 2e-4 if self.family == "gemma3" else 1e-5
