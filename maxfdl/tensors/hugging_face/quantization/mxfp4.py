"""MXFP4 as gpt-oss has it: experts in 4 bits, with a power of two for each 32."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from maxfdl.tensors.quantized.codec import Block, Codec
from maxfdl.tensors.quantized.codes import Float4

SIZE = 32

CODEC = Codec(
    codes=Float4(part="_blocks", group=SIZE),
    block=Block(1, SIZE),
    scale="_scales",
    scale_dtype=np.dtype(np.uint8),
    transposed=True,
)
"""A block is 32 inputs of an output. Weights are [experts, inputs, outputs]."""


@dataclasses.dataclass(frozen=True)
class Mxfp4:
    """Weights of which there are `_blocks` and `_scales`."""

    def codecs(self, names: Iterable[str]) -> Mapping[str, Codec]:
        part = CODEC.codes.part
        found = {each.removesuffix(part) for each in names if each.endswith(part)}
        return dict.fromkeys(sorted(found), CODEC)
