"""FLOPs of kernels behind custom calls, from the text of TPU programs."""

from maxfdl.report import hlo

ROWS, HEADS, GROUPS, TOKENS, WIDTH, OF_VALUES = 2, 4, 2, 512, 192, 128

ATTENTION = f"""\
ENTRY %main (p: s8[1,1,1]) -> f32[] {{
  %p = s8[1,1,1]{{2,1,0}} parameter(0)
  %q = bf16[{ROWS},{HEADS},{TOKENS},{WIDTH}]{{3,2,1,0}} parameter(1)
  %k = bf16[{ROWS},{GROUPS},{TOKENS},{WIDTH}]{{3,2,1,0}} parameter(2)
  %v = bf16[{ROWS},{GROUPS},{TOKENS},{OF_VALUES}]{{3,2,1,0}} parameter(3)
  %ids = s32[{TOKENS},128]{{1,0}} parameter(4)
  %splash_mha_fwd_segmented_residuals.3 = (f32[512,128]{{1,0}}, bf16[1]{{0}}) \
custom-call(%p, %p, %q, %k, %v, %ids), custom_call_target="tpu_custom_call"
  %splash_mha_dkv_segmented_no_residuals.2 = bf16[1]{{0}} \
custom-call(%p, %p, %q, %k, %v, %ids), custom_call_target="tpu_custom_call"
  %splash_mha_dq_segmented_no_residuals.2 = bf16[1]{{0}} \
custom-call(%p, %p, %q, %k, %v, %ids), custom_call_target="tpu_custom_call"
}}
"""


def test_splash_attention_costs_thrice_what_it_does_forward():
    forward = ROWS * TOKENS**2 * HEADS * (WIDTH + OF_VALUES)  # half of the scores
    program = hlo.read(ATTENTION)
    assert (program.flops, program.unknown) == (3 * forward, frozenset())


def test_a_ragged_product_costs_what_one_of_its_rows_with_one_kernel_does():
    text = """\
ENTRY %main (x: bf16[512,48], k: bf16[4,48,32], n: s32[4]) -> bf16[512,32] {
  %x = bf16[512,48]{1,0} parameter(0)
  %k = bf16[4,48,32]{2,1,0} parameter(1)
  %n = s32[4]{0} parameter(2)
  %ragged-dot-metadata = s32[5]{0} custom-call(%n), custom_call_target="tpu_custom_call"
  ROOT %ragged-dot-none.3 = bf16[512,32]{1,0} custom-call(%ragged-dot-metadata, %x, \
%k), custom_call_target="tpu_custom_call"
}
"""
    program = hlo.read(text)
    assert (program.flops, program.unknown) == (2 * 512 * 48 * 32, frozenset())


def test_a_kernel_whose_rows_depend_on_data_costs_what_is_expected():
    text = """\
ENTRY %main (x: bf16[512,48], y: bf16[512,32], n: s32[4]) -> f32[4,48,32] {
  %x = bf16[512,48]{1,0} parameter(0)
  %y = bf16[512,32]{1,0} parameter(1)
  %n = s32[4]{0} parameter(2)
  %sizes = s32[4]{0} custom-call(%n), custom_call_target="AssumeGatherIndicesInBound", \
metadata={op_name="jit(f)/jit(expected_flops_1234)/gather"}
  ROOT %tgmm.1 = f32[4,48,32]{2,1,0} custom-call(%sizes, %x, %y), \
custom_call_target="tpu_custom_call", \
metadata={op_name="jit(f)/jit(expected_flops_1234)/jit(tgmm)/pallas_call"}
}
"""
    program = hlo.read(text)
    assert (program.flops, program.expected) == (1234, 1234)
    assert program.unknown == frozenset()


def test_a_kernel_without_a_known_cost_is_named():
    text = """\
ENTRY %main (x: bf16[8]) -> bf16[8] {
  %x = bf16[8]{0} parameter(0)
  %check = bf16[8]{0} custom-call(%x), custom_call_target="AssumeGatherIndicesInBound"
  ROOT %my_kernel.12 = bf16[8]{0} custom-call(%check), \
custom_call_target="tpu_custom_call"
}
"""
    assert hlo.read(text).unknown == {"my_kernel"}
