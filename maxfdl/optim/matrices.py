"""Which parameters are matrices, which Muon orthogonalises."""

import math

from maxfdl.layers.parameter import Parameter


def is_matrix(parameter: Parameter) -> bool:
    """Returns whether a parameter maps hidden features to hidden features."""
    apart = {"vocab", "taps"} & set(parameter.axes)
    return (
        parameter.role == "kernel"
        and 0 < parameter.contracted < len(parameter.shape) - parameter.batched
        and not apart
    )


def matrix_shape(parameter: Parameter) -> tuple[int, int]:
    """Returns I and O of each of the matrices that a kernel holds."""
    dims = parameter.shape[parameter.batched :]
    return math.prod(dims[: parameter.contracted]), math.prod(
        dims[parameter.contracted :]
    )
