"""Counting the floating-point operations of a function from its jaxpr.

The count is of matrix products only, as the field counts model FLOPs: a product of
[m, k] and [k, n] is 2 m k n. A `scan` body counts once per trip, which XLA's own
`cost_analysis` does not do, and that of a `shard_map` once per part that its arguments
are cut into. An op that runs a kernel, or that is worth less than the products it is
written with (causal attention needs half of its scores), declares its cost by
`declare_flops`. One whose work depends on data says by `expect_flops` what to count.
"""

import contextvars
import math
import re
from collections.abc import Callable, Sequence

import jax

_DECLARED = re.compile(r"declared_flops_(\d+)$")
_EXPECTED = re.compile(r"\bexpected_flops_(\d+)\b")
_IS_COUNTING = contextvars.ContextVar("is_counting", default=False)


def declare_flops(function: Callable, flops: int) -> Callable:
    """Returns `function` as one call that counts `flops`, whatever it does inside."""
    return _named(function, f"declared_flops_{flops}")


def expect_flops(function: Callable, flops: int) -> Callable:
    """Returns `function` as one call that is expected to do `flops`, in products whose
    number depends on data.

    It counts so in `count_flops` and `count_written`. In a compiled program, whose
    instructions name the calls that they stand in, so does the kernel or the loop that
    does the products: see `expected_flops`.
    """
    return _named(function, f"expected_flops_{flops}")


def expected_flops(name_stack: str) -> int | None:
    """Returns what `expect_flops` says of the innermost of some nested calls."""
    found = _EXPECTED.findall(name_stack)
    return int(found[-1]) if found else None


def _named(function: Callable, name: str) -> Callable:
    """Returns `function` as one call of this name."""

    def call(*args):
        return function(*args)

    call.__name__ = name
    return jax.jit(call)


def count_flops(function: Callable, *args) -> int:
    """Returns the FLOPs of `function(*args)`; arguments may be abstract."""

    def counted(*args):  # a function of its own, for JAX keeps what it has traced
        return function(*args)

    token = _IS_COUNTING.set(True)
    try:
        return _count(jax.make_jaxpr(counted)(*args).jaxpr, _declared)
    finally:
        _IS_COUNTING.reset(token)


def is_counting() -> bool:
    """Returns whether a function is traced for `count_flops` alone.

    What depends on how a function runs, and not on what it computes, such as the
    bubbles of a pipeline, is then left out.
    """
    return _IS_COUNTING.get()


def count_written(function: Callable, *args) -> int:
    """Returns the FLOPs of the products that `function` is written with.

    What ops declare does not count, so gradients and what is computed again count as
    they are; of attention kernels, see `attention_kernel_flops`.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr, _of_kernel)


def attention_kernel_flops(
    name: str, q: Sequence[int], k: Sequence[int], v: Sequence[int]
) -> int | None:
    """Returns the FLOPs of a kernel of splash attention, None of any other.

    Half of the scores count, which a causal mask leaves, and no recomputation inside a
    kernel, as `DotProductAttention` says. There is one kernel forward, and two that
    share the products of the backward pass: `dq` and `dkv`.

    Args:
      name: Of the kernel.
      q, k, v: Shapes, [..., H, T, K], [..., G, T, K] and [..., G, T, V].
    """
    part = re.match(r"splash_m[hq]a_(fwd|dq|dkv)_", name)
    if part is None:
        return None
    width, of_value = k[-1], v[-1]
    products = {"fwd": width + of_value, "dq": width, "dkv": width + 2 * of_value}
    return math.prod(q[:-1]) * k[-2] * products[part.group(1)]


def _count(jaxpr, known) -> int:
    return sum(_count_equation(eqn, known) for eqn in jaxpr.eqns)


def _count_equation(eqn, known: Callable) -> int:
    """Counts one equation; `known` returns the cost of those that it knows."""
    params, name = eqn.params, eqn.primitive.name
    cost = _expected(eqn)
    if cost is None:
        cost = known(eqn)
    if cost is not None:
        return cost
    if name == "dot_general":
        contract = params["dimension_numbers"][0][0]
        depth = math.prod(eqn.invars[0].aval.shape[dim] for dim in contract)
        return 2 * math.prod(eqn.outvars[0].aval.shape) * depth
    if name == "cond":
        return max(_count(branch.jaxpr, known) for branch in params["branches"])
    times = params["length"] if name == "scan" else 1
    if name == "shard_map":
        axes = set(jax.tree.leaves([*map(tuple, params["in_specs"])]))
        times = math.prod(params["mesh"].shape[axis] for axis in axes)
    return times * sum(_count(inner, known) for inner in _inner_jaxprs(params))


def _expected(eqn) -> int | None:
    """Returns what a call is expected to do; 0 for the part of one that JAX has moved
    out of a loop, if its products stayed there."""
    expected = expected_flops(str(eqn.params.get("name", "")))
    return expected and expected * _multiplies(eqn)


def _multiplies(eqn) -> bool:
    if eqn.primitive.name in ("dot_general", "ragged_dot_general", "pallas_call"):
        return True
    branches = dict(enumerate(eqn.params.get("branches", ())))
    inside = *_inner_jaxprs(eqn.params), *_inner_jaxprs(branches)
    return any(_multiplies(each) for jaxpr in inside for each in jaxpr.eqns)


def _declared(eqn) -> int | None:
    found = _DECLARED.search(str(eqn.params.get("name", "")))
    return int(found.group(1)) if found else None


def _of_kernel(eqn) -> int | None:
    if eqn.primitive.name == "ragged_dot_general":  # each row meets one kernel
        return 2 * eqn.invars[0].aval.size * eqn.outvars[0].aval.shape[-1]
    if eqn.primitive.name == "pallas_call":
        wide = [v.aval.shape for v in eqn.invars if v.aval.dtype.kind in "fV"]
        return attention_kernel_flops(str(eqn.params["name"]), *wide[:3]) or 0
    return None


def _inner_jaxprs(params):
    for value in params.values():
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value
