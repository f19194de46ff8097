"""Counting the floating-point operations of a function from its jaxpr.

The count is of matrix products only, as the field counts model FLOPs: a product of
[m, k] and [k, n] is 2 m k n. A `scan` body counts once per trip, which XLA's own
`cost_analysis` does not do. An op that runs a kernel, or that is worth less than the
products it is written with (causal attention needs half of its scores), declares its
cost by `declare_flops`.
"""

import math
import re
from collections.abc import Callable

import jax

_DECLARED = re.compile(r"declared_flops_(\d+)$")


def declare_flops(function: Callable, flops: int) -> Callable:
    """Returns `function` as one call that counts `flops`, whatever it does inside."""

    def declared(*args):
        return function(*args)

    declared.__name__ = f"declared_flops_{flops}"
    return jax.jit(declared)


def count_flops(function: Callable, *args) -> int:
    """Returns the FLOPs of `function(*args)`; arguments may be abstract."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> int:
    return sum(_count_equation(eqn) for eqn in jaxpr.eqns)


def _count_equation(eqn) -> int:
    params = eqn.params
    declared = _DECLARED.search(str(params.get("name", "")))
    if declared:
        return int(declared.group(1))
    if eqn.primitive.name == "dot_general":
        contract = params["dimension_numbers"][0][0]
        depth = math.prod(eqn.invars[0].aval.shape[dim] for dim in contract)
        return 2 * math.prod(eqn.outvars[0].aval.shape) * depth
    if eqn.primitive.name == "cond":
        return max(_count(branch.jaxpr) for branch in params["branches"])
    trips = params["length"] if eqn.primitive.name == "scan" else 1
    return trips * sum(_count(inner) for inner in _inner_jaxprs(params))


def _inner_jaxprs(params):
    for value in params.values():
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value
