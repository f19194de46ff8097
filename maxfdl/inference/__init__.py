"""Generation from prompts; KV caches are explicit values."""

from maxfdl.inference.generator import Completion, Generator, generate
from maxfdl.inference.steps import NOTHING
from maxfdl.ops.sampling import Sampler

__all__ = ["NOTHING", "Completion", "Generator", "Sampler", "generate"]
