"""What mutations look for: roles that nodes of either family play."""

import fiddle as fdl

from maxfdl.layers import linen, nnx


def is_transformer(node: fdl.Buildable) -> bool:
    return _is_one_of(node, nnx.Transformer, linen.Transformer)


def is_stack(node: fdl.Buildable) -> bool:
    return _is_one_of(node, nnx.Stack, linen.Stack)


def _is_one_of(node: fdl.Buildable, *classes: type) -> bool:
    made = fdl.get_callable(node)
    return isinstance(made, type) and issubclass(made, classes)
