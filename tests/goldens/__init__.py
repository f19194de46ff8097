"""Expected numbers of other programs: Hugging Face transformers and torch.

Folders such as `llama2` are those of models: configuration, weights, and what
transformers computes of them. `cases` has models with a fault, and what transformers
5.24.0 computes of them in float32. `algorithms` has formulas: the parts of an index and
of its arrays that tests here use. Both say how far float32 is from float64, from which
tolerances follow.
"""

import json
import pathlib
from typing import Any

import numpy as np
from safetensors import numpy, safe_open

FOLDER = pathlib.Path(__file__).parent


class Golden(dict[str, np.ndarray]):
    """Arrays by name, with what is known of them."""

    def __init__(self, path: pathlib.Path, info: dict[str, Any]):
        super().__init__(numpy.load_file(path))
        self.info = info
        self.noise = info["noise_f32_vs_f64"]

    def tolerance(self, name: str) -> float:
        return tolerance(self.noise[name])


def tolerance(noise: float) -> float:
    """Returns how far float32 may be off where it was seen to be off by `noise`."""
    return max(20 * noise, 2e-5)


def algorithm(name: str) -> Golden:
    """Returns the arrays of one topic of `algorithms`."""
    folder = FOLDER / "algorithms"
    return Golden(folder / f"{name}.safetensors", topic(name))


def topic(name: str) -> dict[str, Any]:
    """Returns what the index of `algorithms` says of one topic."""
    return json.loads((FOLDER / "algorithms/index.json").read_text())["topics"][name]


def expected(name: str) -> Golden:
    """Returns what transformers computes of the model in one folder."""
    path = FOLDER / name / "golden.safetensors"
    with safe_open(path, "np") as file:
        info = json.loads(file.metadata()["info"])
    return Golden(path, info)


def weights(name: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a model folder."""
    return numpy.load_file(FOLDER / name / "model.safetensors")
