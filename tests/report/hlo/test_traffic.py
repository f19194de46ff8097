"""Bytes to and from main memory."""

from maxfdl.report import hlo

MIB = 2**20

# A fusion that reads one of eight layers, another that writes one in place, a product
# whose left factor lies on the chip, and the copy that has brought it there.
TEXT = """\
%layer (whole: f32[8,512,512], i: s32[]) -> f32[512,512] {
  %whole = f32[8,512,512]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %cut = f32[1,512,512]{2,1,0} dynamic-slice(%whole, %i, %zero, %zero), \
dynamic_slice_sizes={1,512,512}
}

%write (into: f32[8,512,512], new: f32[1,512,512], i: s32[]) -> f32[8,512,512] {
  %into = f32[8,512,512]{2,1,0} parameter(0)
  %new = f32[1,512,512]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %twice = f32[1,512,512]{2,1,0} add(%new, %new)
  ROOT %put = f32[8,512,512]{2,1,0} dynamic-update-slice(%into, %twice, %i, %zero, \
%zero)
}

ENTRY %main (w: f32[8,512,512], x: f32[512,512], i: s32[]) -> f32[8,512,512] {
  %w = f32[8,512,512]{2,1,0} parameter(0)
  %x = f32[512,512]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %layer_fusion = f32[1,512,512]{2,1,0} fusion(%w, %i), kind=kLoop, calls=%layer
  %copy-start = (f32[512,512]{1,0:S(1)}, f32[512,512]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = f32[512,512]{1,0:S(1)} copy-done(%copy-start)
  %flat = f32[512,512]{1,0} bitcast(%layer_fusion)
  %product = f32[512,512]{1,0} convolution(%copy-done, %flat), dim_labels=bf_io->bf
  %new = f32[1,512,512]{2,1,0} bitcast(%product)
  ROOT %put_fusion = f32[8,512,512]{2,1,0} fusion(%w, %new, %i), kind=kLoop, \
calls=%write
}
"""


def test_parts_count_instead_of_wholes_and_nothing_that_stays_on_the_chip():
    cut, copy, product, put = 2 * MIB, MIB, 2 * MIB, 2 * MIB
    assert abs(hlo.read(TEXT).traffic - (cut + copy + product + put)) < 100  # indices
