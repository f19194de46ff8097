"""Generation: prompts in, new tokens out, with caches as explicit values."""

from maxfdl.inference.generator import Completion, Generator, generate
from maxfdl.inference.steps import NOTHING
from maxfdl.ops.sampling import Sampler

__all__ = ["NOTHING", "Completion", "Generator", "Sampler", "generate"]
