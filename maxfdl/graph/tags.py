"""Tags: names for values that many nodes of a graph share."""

import fiddle as fdl


class ComputeDType(fdl.Tag):
    """Type of activations and of the inputs of matmuls."""


class ParamDType(fdl.Tag):
    """Type in which parameters are stored."""
