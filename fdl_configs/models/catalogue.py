"""Every published size: what makes it, how large it is said to be, and by whom."""

from collections.abc import Callable
from typing import NamedTuple

import fiddle as fdl

from fdl_configs.models import (
    cohere2,
    deepseek_v2,
    deepseek_v3,
    gemma,
    gemma2,
    gemma3,
    glm4_moe,
    gpt2,
    gpt3,
    gpt_oss,
    kimi_k2,
    llama,
    llama4,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    qwen3_next,
    smollm3,
)


class Size(NamedTuple):
    """A published model.

    Args:
      make: Returns its graph.
      parameters: How many weights it is published with; a text such as `175B` where
        only a rounded number is.
      source: Repository on Hugging Face that has its config.json, or else who names it.
    """

    make: Callable[[], fdl.Partial]
    parameters: int | str
    source: str


_SIZES = (
    Size(llama.llama2_7b, 6_738_415_616, "meta-llama/Llama-2-7b-hf"),
    Size(llama.llama2_13b, 13_015_864_320, "meta-llama/Llama-2-13b-hf"),
    Size(llama.llama2_70b, 68_976_648_192, "meta-llama/Llama-2-70b-hf"),
    Size(llama.llama3_8b, 8_030_261_248, "meta-llama/Meta-Llama-3-8B"),
    Size(llama.llama3_70b, 70_553_706_496, "meta-llama/Meta-Llama-3-70B"),
    Size(llama.llama3_1_8b, 8_030_261_248, "meta-llama/Llama-3.1-8B"),
    Size(llama.llama3_1_70b, 70_553_706_496, "meta-llama/Llama-3.1-70B"),
    Size(llama.llama3_1_405b, 405_853_388_800, "meta-llama/Llama-3.1-405B"),
    Size(llama.llama3_2_1b, 1_235_814_400, "meta-llama/Llama-3.2-1B"),
    Size(llama.llama3_2_3b, 3_212_749_824, "meta-llama/Llama-3.2-3B"),
    Size(llama.llama3_3_70b, 70_553_706_496, "meta-llama/Llama-3.3-70B-Instruct"),
    Size(llama.smollm2_135m, 134_515_008, "HuggingFaceTB/SmolLM2-135M"),
    Size(llama.smollm2_360m, 361_821_120, "HuggingFaceTB/SmolLM2-360M"),
    Size(llama.smollm2_1_7b, 1_711_376_384, "HuggingFaceTB/SmolLM2-1.7B"),
    Size(smollm3.smollm3_3b, 3_075_098_624, "HuggingFaceTB/SmolLM3-3B"),
    Size(mistral.mistral_7b, 7_241_732_096, "mistralai/Mistral-7B-v0.1"),
    Size(mistral.mistral_7b_v0_3, 7_248_023_552, "mistralai/Mistral-7B-v0.3"),
    Size(mistral.mistral_nemo_12b, 12_247_782_400, "mistralai/Mistral-Nemo-Base-2407"),
    Size(gemma.gemma_2b, 2_506_172_416, "google/gemma-2b"),
    Size(gemma.gemma_7b, 8_537_680_896, "google/gemma-7b"),
    Size(gemma2.gemma2_2b, 2_614_341_888, "google/gemma-2-2b"),
    Size(gemma2.gemma2_9b, 9_241_705_984, "google/gemma-2-9b"),
    Size(gemma2.gemma2_27b, 27_227_128_320, "google/gemma-2-27b"),
    Size(gemma3.gemma3_270m, 268_098_176, "google/gemma-3-270m"),
    Size(gemma3.gemma3_1b, 999_885_952, "google/gemma-3-1b-pt"),
    Size(gemma3.gemma3_4b, 3_880_263_168, "google/gemma-3-4b-pt"),
    Size(gemma3.gemma3_12b, 11_766_034_176, "google/gemma-3-12b-pt"),
    Size(gemma3.gemma3_27b, 27_009_346_304, "google/gemma-3-27b-pt"),
    Size(qwen2.qwen2_0_5b, 494_032_768, "Qwen/Qwen2-0.5B"),
    Size(qwen2.qwen2_1_5b, 1_543_714_304, "Qwen/Qwen2-1.5B"),
    Size(qwen2.qwen2_7b, 7_615_616_512, "Qwen/Qwen2-7B"),
    Size(qwen2.qwen2_72b, 72_706_203_648, "Qwen/Qwen2-72B"),
    Size(qwen2.qwen2_5_0_5b, 494_032_768, "Qwen/Qwen2.5-0.5B"),
    Size(qwen2.qwen2_5_1_5b, 1_543_714_304, "Qwen/Qwen2.5-1.5B"),
    Size(qwen2.qwen2_5_3b, 3_085_938_688, "Qwen/Qwen2.5-3B"),
    Size(qwen2.qwen2_5_7b, 7_615_616_512, "Qwen/Qwen2.5-7B"),
    Size(qwen2.qwen2_5_14b, 14_770_033_664, "Qwen/Qwen2.5-14B"),
    Size(qwen2.qwen2_5_32b, 32_763_876_352, "Qwen/Qwen2.5-32B"),
    Size(qwen2.qwen2_5_72b, 72_706_203_648, "Qwen/Qwen2.5-72B"),
    Size(qwen3.qwen3_0_6b, 596_049_920, "Qwen/Qwen3-0.6B"),
    Size(qwen3.qwen3_1_7b, 1_720_574_976, "Qwen/Qwen3-1.7B"),
    Size(qwen3.qwen3_4b, 4_022_468_096, "Qwen/Qwen3-4B"),
    Size(qwen3.qwen3_8b, 8_190_735_360, "Qwen/Qwen3-8B"),
    Size(qwen3.qwen3_14b, 14_768_307_200, "Qwen/Qwen3-14B"),
    Size(qwen3.qwen3_32b, 32_762_123_264, "Qwen/Qwen3-32B"),
    Size(olmo2.olmo2_1b, 1_484_916_736, "allenai/OLMo-2-0425-1B"),
    Size(olmo2.olmo2_7b, 7_298_617_344, "allenai/OLMo-2-1124-7B"),
    Size(olmo2.olmo2_13b, 13_716_198_400, "allenai/OLMo-2-1124-13B"),
    Size(olmo2.olmo2_32b, 32_234_279_936, "allenai/OLMo-2-0325-32B"),
    Size(olmo3.olmo3_7b, 7_298_011_136, "allenai/Olmo-3-1025-7B"),
    Size(olmo3.olmo3_32b, 32_233_522_176, "allenai/Olmo-3-1125-32B"),
    Size(phi3.phi3_mini, 3_821_079_552, "microsoft/Phi-3-mini-4k-instruct"),
    Size(phi3.phi3_medium, 13_960_238_080, "microsoft/Phi-3-medium-4k-instruct"),
    Size(phi3.phi4, 14_659_507_200, "microsoft/phi-4"),
    Size(phi3.phi4_mini, 3_836_021_760, "microsoft/Phi-4-mini-instruct"),
    Size(cohere2.command_r7b, 8_028_033_024, "CohereLabs/c4ai-command-r7b-12-2024"),
    Size(cohere2.command_a, 111_057_580_032, "CohereLabs/c4ai-command-a-03-2025"),
    Size(gpt2.gpt2_small, 124_439_808, "openai-community/gpt2"),
    Size(gpt2.gpt2_medium, 354_823_168, "openai-community/gpt2-medium"),
    Size(gpt2.gpt2_large, 774_030_080, "openai-community/gpt2-large"),
    Size(gpt2.gpt2_xl, 1_557_611_200, "openai-community/gpt2-xl"),
    Size(gpt3.gpt3_52k, "52K", "MaxText's gpt3-52k"),
    Size(gpt3.gpt3_6b, "6B", "MaxText's gpt3-6b"),
    Size(gpt3.gpt3_22b, "22B", "MaxText's gpt3-22b"),
    Size(gpt3.gpt3_175b, "175B", "MaxText's gpt3-175b"),
    Size(deepseek_v2.deepseek_v2_236b, 235_741_434_880, "deepseek-ai/DeepSeek-V2"),
    Size(
        deepseek_v2.deepseek_v2_lite_16b, 15_706_484_224, "deepseek-ai/DeepSeek-V2-Lite"
    ),
    Size(deepseek_v3.deepseek_v3_671b, 671_026_404_352, "deepseek-ai/DeepSeek-V3"),
    Size(kimi_k2.kimi_k2_1t, "1T", "moonshotai/Kimi-K2-Base"),
    Size(kimi_k2.kimi_k2_0905_1t, "1T", "moonshotai/Kimi-K2-Instruct-0905"),
    Size(kimi_k2.moonlight_16b_a3b, "16B", "moonshotai/Moonlight-16B-A3B"),
    Size(qwen3_next.qwen3_next_80b_a3b, "80B", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
    Size(mixtral.mixtral_8x7b, 46_702_792_704, "mistralai/Mixtral-8x7B-v0.1"),
    Size(mixtral.mixtral_8x22b, 140_620_634_112, "mistralai/Mixtral-8x22B-v0.1"),
    Size(qwen3_moe.qwen3_30b_a3b, 30_532_122_624, "Qwen/Qwen3-30B-A3B"),
    Size(
        qwen3_moe.qwen3_30b_a3b_2507, 30_532_122_624, "Qwen/Qwen3-30B-A3B-Instruct-2507"
    ),
    Size(
        qwen3_moe.qwen3_coder_30b_a3b,
        30_532_122_624,
        "Qwen/Qwen3-Coder-30B-A3B-Instruct",
    ),
    Size(qwen3_moe.qwen3_235b_a22b, 235_093_634_560, "Qwen/Qwen3-235B-A22B"),
    Size(
        qwen3_moe.qwen3_235b_a22b_2507,
        235_093_634_560,
        "Qwen/Qwen3-235B-A22B-Instruct-2507",
    ),
    Size(
        qwen3_moe.qwen3_coder_480b_a35b,
        480_154_875_392,
        "Qwen/Qwen3-Coder-480B-A35B-Instruct",
    ),
    Size(gpt_oss.gpt_oss_20b, 20_914_757_184, "openai/gpt-oss-20b"),
    Size(gpt_oss.gpt_oss_120b, 116_829_156_672, "openai/gpt-oss-120b"),
    Size(glm4_moe.glm4_5, 352_797_814_784, "zai-org/GLM-4.5"),
    Size(glm4_moe.glm4_5_air, 106_852_245_504, "zai-org/GLM-4.5-Air"),
    Size(llama4.llama4_17b_16e, 107_769_861_120, "meta-llama/Llama-4-Scout-17B-16E"),
    Size(
        llama4.llama4_17b_128e, 400_711_848_960, "meta-llama/Llama-4-Maverick-17B-128E"
    ),
)

MODELS: dict[str, Size] = {size.make.__name__: size for size in _SIZES}
"""By the name of the function that makes the graph."""
