"""Which kernels a format stores, and what it says of them."""

import ml_dtypes
import numpy as np
import pytest

from maxfdl.errors import UserError
from maxfdl.tensors.hugging_face.quantization.formats import Kernel, plan
from maxfdl.tensors.quantized.codec import Block

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
UP = Kernel("layers.0.up.weight", (1536, 576), BFLOAT16, "linear")
DOWN = Kernel("layers.0.down.weight", (576, 1536), BFLOAT16, "linear")
ODD = Kernel("layers.0.odd.weight", (8, 45), BFLOAT16, "linear")
TINY = Kernel("layers.0.tiny.weight", (8, 24), BFLOAT16, "linear")
EXPERTS = Kernel("layers.0.experts.down", (4, 64, 32), BFLOAT16, "experts")
ROUTER = Kernel("layers.0.router.weight", (4, 64), BFLOAT16, "other")


def test_groups_of_int4_divide_the_inputs_of_all_kernels():
    made = plan("int4", [UP, DOWN, ROUTER], "llama")
    assert {codec.block for codec in made.codecs.values()} == {Block(1, 96)}
    assert {codec.scale_dtype for codec in made.codecs.values()} == {BFLOAT16}
    (group,) = made.config["config_groups"].values()
    assert group["targets"] == ["Linear"] and group["weights"]["group_size"] == 96
    assert made.config["ignore"] == ["layers.0.router", "lm_head"]
    assert made.left == ()


def test_kernels_without_a_common_divisor_have_groups_of_their_own():
    made = plan("int4", [UP, DOWN, ODD, TINY], "llama")
    blocks = {name: codec.block.columns for name, codec in made.codecs.items()}
    assert list(blocks.values()) == [96, 128, 45, None]
    first, *others = made.config["config_groups"].values()
    assert first["targets"] == ["Linear"] and first["weights"]["group_size"] == 96
    assert [each["targets"] for each in others] == [
        ["layers.0.down"],
        ["layers.0.odd"],
        ["layers.0.tiny"],
    ]
    assert others[-1]["weights"]["strategy"] == "channel"


def test_stacks_of_experts_stay_where_the_format_has_no_place_for_them():
    made = plan("fp8", [UP, EXPERTS, ROUTER], "llama4_text")
    assert set(made.codecs) == {UP.name} and made.left == (EXPERTS.name,)
    assert made.remarks[0].endswith(f"no place for them, {EXPERTS.name} for one")


def test_mxfp4_is_of_experts_in_gpt_oss_and_of_all_kernels_elsewhere():
    of_experts = plan("mxfp4", [UP, EXPERTS, ROUTER], "gpt_oss")
    assert set(of_experts.codecs) == {EXPERTS.name} and of_experts.left == ()
    assert of_experts.config["quant_method"] == "mxfp4"
    of_all = plan("mxfp4", [UP, DOWN, ODD], "llama")
    assert set(of_all.codecs) == {UP.name, DOWN.name} and of_all.left == (ODD.name,)
    assert "layers.0.odd" in of_all.config["ignore"]


def test_a_model_without_a_kernel_that_is_stored_is_refused():
    with pytest.raises(UserError, match=r"format \(int8\) has no place for any kernel"):
        plan("int8", [EXPERTS, ROUTER], "llama4_text")
