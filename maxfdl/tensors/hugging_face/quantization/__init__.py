"""What `quantization_config` in a config.json says, by `quant_method`."""

from maxfdl.outside import Choice, Values
from maxfdl.tensors.hugging_face.quantization.compressed_tensors import (
    compressed_tensors,
)
from maxfdl.tensors.hugging_face.quantization.fp8 import fp8
from maxfdl.tensors.hugging_face.quantization.mxfp4 import Mxfp4
from maxfdl.tensors.quantized.reader import Scheme

_METHODS = {
    "compressed-tensors": compressed_tensors,
    "fp8": fp8,
    "mxfp4": lambda _: Mxfp4(),
}


def scheme_of(values: Values) -> Scheme:
    """Returns how the weights of a folder are stored.

    Args:
      values: The `quantization_config`.

    Raises:
      UserError: If they are stored in a way that is not read, naming it.
    """
    method = values.take("quant_method", Choice(tuple(_METHODS)))
    return _METHODS[method](values)
