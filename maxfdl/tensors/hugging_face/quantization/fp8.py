"""FP8 with a scale for each block of a weight, as DeepSeek-V3's files have it."""

import dataclasses
from collections.abc import Iterable, Mapping

from maxfdl.outside import Choice, Integer, Listing, Values
from maxfdl.tensors.quantized.codec import Block, Codec
from maxfdl.tensors.quantized.codes import Float8

_SCALE = "_scale_inv"


@dataclasses.dataclass(frozen=True)
class Fp8:
    """Weights that have a `weight_scale_inv` beside them.

    Args:
      codec: That of all of them.
    """

    codec: Codec

    def codecs(self, names: Iterable[str]) -> Mapping[str, Codec]:
        found = {each.removesuffix(_SCALE) for each in names if each.endswith(_SCALE)}
        return dict.fromkeys(sorted(found), self.codec)


def fp8(values: Values) -> Fp8:
    """Returns the scheme of a `quantization_config` with `quant_method: fp8`."""
    values.take("fmt", Choice(("e4m3", "float8_e4m3fn")), default=None)
    sides = values.take(
        "weight_block_size", Listing(Integer(least=1), length=2), default=None
    )
    return Fp8(block_codec(*sides) if sides else block_codec(None, None))


def block_codec(rows: int | None, columns: int | None) -> Codec:
    """Returns the codec with one scale for each block, or for the whole weight."""
    return Codec(Float8(), Block(rows, columns), scale=_SCALE)
