"""How long, in what batches and at what learning rate models are pre-trained.

The table below has the recipes that the makers of a model published, without later
stages of longer sequences or other data, each with its source. All other models follow
from their size by published scaling laws.
"""

import math
from typing import NamedTuple

from fdl_configs.models.catalogue import MODELS

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022 (Chinchilla), table 3
WARMUP = 2000  # steps: Llama 2, OLMo 2 and DeepSeek-V3, among others
LENGTH = 4096  # tokens: the first stage of most models here


class Recipe(NamedTuple):
    """A pre-training run.

    Args:
      tokens: Of the whole run.
      batch_size: Sequences.
      peak: Learning rate.
      sequence_length: Tokens.
      warmup_steps: Steps.
    """

    tokens: float
    batch_size: int
    peak: float
    sequence_length: int = LENGTH
    warmup_steps: int = WARMUP

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return round(self.tokens / (self.batch_size * self.sequence_length))


def recipe(name: str, longest: int | None = None) -> Recipe:
    """Returns the recipe of a model of the catalogue.

    Args:
      name: Of the model.
      longest: Most tokens that it can tell the positions of; None is no limit.
    """
    if name in _PUBLISHED:
        return _PUBLISHED[name]
    return _by_size(_number(MODELS[name].parameters), min(LENGTH, longest or LENGTH))


def _by_size(parameters: float, length: int) -> Recipe:
    """Batch and peak by compute, `C = 6 N D`, with all parameters as N.

    Bi et al. 2024 (DeepSeek LLM), https://arxiv.org/abs/2401.02954, equation 1.
    """
    tokens = TOKENS_PER_PARAMETER * parameters
    compute = 6 * parameters * tokens
    sequences = 0.2920 * compute**0.3271 / length
    return Recipe(
        tokens=tokens,
        batch_size=max(8, 2 ** round(math.log2(sequences))),
        peak=float(f"{0.3118 * compute**-0.1250:.2g}"),
        sequence_length=length,
    )


def _number(parameters: int | str) -> float:
    """Returns what `175B` stands for."""
    if isinstance(parameters, int):
        return parameters
    return float(parameters[:-1]) * {"K": 1e3, "B": 1e9, "T": 1e12}[parameters[-1]]


_PUBLISHED: dict[str, Recipe] = {
    # Touvron et al. 2023, https://arxiv.org/abs/2307.09288, section 2.2 and table 1.
    "llama2_7b": Recipe(2e12, 1024, 3e-4),
    "llama2_13b": Recipe(2e12, 1024, 3e-4),
    "llama2_70b": Recipe(2e12, 1024, 1.5e-4),
    # Dubey et al. 2024, https://arxiv.org/abs/2407.21783, table 3 and section 3.4.1:
    # 16M tokens, to which the batch grows; it and the warm-up are the 405B's for all.
    **dict.fromkeys(
        ("llama3_8b", "llama3_1_8b"), Recipe(15e12, 2048, 3e-4, 8192, 8000)
    ),
    **dict.fromkeys(
        ("llama3_70b", "llama3_1_70b", "llama3_3_70b"),
        Recipe(15e12, 2048, 1.5e-4, 8192, 8000),
    ),
    "llama3_1_405b": Recipe(15.6e12, 2048, 8e-5, 8192, 8000),
    # Ben Allal et al. 2025, https://arxiv.org/abs/2502.02737, section 4.
    "smollm2_1_7b": Recipe(11e12, 1024, 5e-4, 2048),
    # https://huggingface.co/blog/smollm3, and HuggingFaceTB/SmolLM3-3B-checkpoints.
    "smollm3_3b": Recipe(11.2e12, 576, 2e-4),
    # OLMo et al. 2024, https://arxiv.org/abs/2501.00656, hyperparameters of stage 1;
    # the 1B's are in configs/official-0425/ of allenai/OLMo.
    "olmo2_1b": Recipe(4e12, 512, 4e-4, 4096, 4000),
    "olmo2_7b": Recipe(4e12, 1024, 3e-4),
    "olmo2_13b": Recipe(5e12, 2048, 9e-4),
    "olmo2_32b": Recipe(6e12, 2048, 6e-4),
    # Abdin et al. 2024, https://arxiv.org/abs/2412.08905, section 3.
    "phi4": Recipe(10e12, 5760, 3e-4),
    # Brown et al. 2020, https://arxiv.org/abs/2005.14165, table 2.1 and appendix B.
    "gpt3_175b": Recipe(300e9, 1536, 0.6e-4, 2048, 120),
    # DeepSeek-AI 2024, https://arxiv.org/abs/2405.04434, section 3.1.2 and appendix B.
    "deepseek_v2_236b": Recipe(8.1e12, 9216, 2.4e-4),
    "deepseek_v2_lite_16b": Recipe(5.7e12, 4608, 4.2e-4),
    # DeepSeek-AI 2024, https://arxiv.org/abs/2412.19437, section 4.2.
    "deepseek_v3_671b": Recipe(14.8e12, 15360, 2.2e-4),
    # Kimi Team 2025, https://arxiv.org/abs/2507.20534, section 2.5; with MuonClip,
    # whose updates are as large as AdamW's.
    **dict.fromkeys(
        ("kimi_k2_1t", "kimi_k2_0905_1t"), Recipe(15.5e12, 16384, 2e-4, 4096, 500)
    ),
}
