"""Fused attention against plain XLA: output and gradients, in bfloat16.

The truth is plain XLA in float32 on the same numbers. A kernel passes if its error is
within a small factor of the error that plain XLA makes in bfloat16.
"""

import functools
import re
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from maxfdl.ops.attention import DotProductAttention, Implementation
from maxfdl.run.accelerator.attention_cases import (
    CASES,
    CASES_ON_CPU,
    Case,
    Inputs,
    inputs_of,
)
from maxfdl.run.accelerator.check import Bench, Check, Outcome, first_line

KERNELS: tuple[Implementation, ...] = ("cudnn", "tokamax")
TOKENS = 1024
TOKENS_ON_CPU = 128

_FACTOR = 4.0  # other roundings; a key too many in a window makes 10 and more
_FLOOR = 1e-6  # error of xla, where a query sees one key and it makes none
_CALLS = 10  # that are timed
_NO_KERNELS = {"Sharding", "annotate_device_placement"}
# What JAX, cuDNN and tokamax raise before anything runs.
_REFUSALS = (NotImplementedError, ValueError, RuntimeError, ExceptionGroup)

Arrays = dict[str, jax.Array]


class Error(NamedTuple):
    """How far an array [B, T, ...] is from the truth.

    Args:
      whole: Norm of the difference over the norm of the truth.
      worst: Norm of the worst token's difference over that of the typical token.
    """

    whole: float
    worst: float

    @classmethod
    def of(cls, found: ArrayLike, truth: ArrayLike) -> "Error":
        found, truth = (np.asarray(x, np.float64) for x in (found, truth))
        difference, norms = _norms(found - truth), _norms(truth)
        return cls(
            float(np.linalg.norm(difference) / np.linalg.norm(norms)),
            float(np.max(difference) / np.sqrt(np.mean(np.square(norms)))),
        )

    def over(self, other: "Error") -> float:
        """Returns how many times as large this is; infinite if it is not finite."""
        ratios = [a / max(b, _FLOOR) for a, b in zip(self, other, strict=True)]
        return max(ratios) if np.all(np.isfinite(ratios)) else float("inf")


def _norms(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x.reshape(*x.shape[:2], -1), axis=-1)


def checks(platform: str) -> list[Check]:
    """Returns a check of every case with every kernel, those of a case together."""
    names = CASES_ON_CPU if platform == "cpu" else [case.name for case in CASES]
    return [
        Check(
            f"attention/{case.name}/{kernel}", functools.partial(compare, case, kernel)
        )
        for case in CASES
        if case.name in names
        for kernel in KERNELS
    ]


def compare(case: Case, kernel: Implementation, bench: Bench) -> Outcome:
    """Runs a case with one kernel.

    What the kernel declines is `refused`; `failed` if `auto` takes the kernel here.
    """
    if kernel == "cudnn" and bench.platform != "gpu":
        return Outcome("skipped", f"cuDNN needs a GPU, and this is a {bench.platform}")
    tokens = TOKENS_ON_CPU if bench.is_small else TOKENS
    inputs = inputs_of(case, tokens)
    try:
        lowered = trace(case, kernel, inputs).lower()
        if lowered.as_text() == trace(case, "xla", inputs).lower().as_text():
            return Outcome("refused", "the attention op takes plain XLA for this")
        run = lowered.compile()
    except _REFUSALS as error:
        if _auto_takes(case, kernel, inputs):
            return Outcome("failed", f"{first_line(error)}; and auto takes it here")
        return Outcome("refused", first_line(error))
    found = _Found(run(*inputs.arrays()), _milliseconds(run, inputs))
    kernels = _kernels(lowered.as_text())
    return _judge(found, _reference(case, tokens), kernels)


def trace(case: Case, implementation: Implementation, inputs: Inputs):
    """Returns the program of a case, `jax.stages.Traced`: output and gradients.

    Output at padding is zero, whatever an implementation puts there.
    """
    op = DotProductAttention(implementation, soft_cap=case.soft_cap)
    mask_of = jax.tree.structure(inputs.mask).unflatten

    def forward(q, k, v, mask, sinks, _):
        return {"out": op(q, k, v, mask_of(mask), sinks)}

    def forward_and_backward(q, k, v, mask, sinks, upstream):
        attend = lambda q, k, v: op(q, k, v, mask_of(mask), sinks)  # noqa: E731
        out, backward = jax.vjp(attend, q, k, v)
        grads = dict(zip(("dq", "dk", "dv"), backward(upstream), strict=True))
        is_padding = jnp.all(upstream == 0, axis=(2, 3), keepdims=True)
        return {"out": jnp.where(is_padding, 0, out), **grads}

    function = forward if case.is_cached else forward_and_backward
    return jax.jit(function).trace(*inputs.arrays())


class _Found(NamedTuple):
    """Output and gradients, and how long a call takes."""

    arrays: Arrays
    milliseconds: float


class _Reference(NamedTuple):
    """What plain XLA gives: the truth in float32, and its errors in bfloat16."""

    truth: Arrays
    errors: Mapping[str, Error]
    milliseconds: float


@functools.lru_cache(maxsize=1)
def _reference(case: Case, tokens: int) -> _Reference:
    inputs = inputs_of(case, tokens)
    exact = inputs.cast("float32")
    with jax.default_matmul_precision("highest"):
        truth = trace(case, "xla", exact).lower().compile()(*exact.arrays())
    run = trace(case, "xla", inputs).lower().compile()
    found = run(*inputs.arrays())
    errors = {name: Error.of(found[name], truth[name]) for name in truth}
    return _Reference(truth, errors, _milliseconds(run, inputs))


def _judge(found: _Found, reference: _Reference, kernels: list[str]) -> Outcome:
    errors = {
        name: Error.of(array, reference.truth[name])
        for name, array in found.arrays.items()
    }
    times = {name: errors[name].over(reference.errors[name]) for name in errors}
    worst = max(times, key=lambda name: times[name])
    is_right = times[worst] <= _FACTOR
    limit = "" if is_right else f", at most {_FACTOR:g} is allowed"
    text = (
        f"error of {worst} {errors[worst].whole:.1e} ({times[worst]:.2f} times that of"
        f" xla in bfloat16{limit}), {found.milliseconds:.3g} ms (xla"
        f" {reference.milliseconds:.3g})"
    )
    figures = {
        "errors": {name: error._asdict() for name, error in errors.items()},
        "xla_errors": {n: error._asdict() for n, error in reference.errors.items()},
        "times_the_error_of_xla": times[worst],
        "milliseconds": found.milliseconds,
        "xla_milliseconds": reference.milliseconds,
        "kernels": kernels,
    }
    return Outcome("passed" if is_right else "failed", text, figures)


def _auto_takes(case: Case, kernel: Implementation, inputs: Inputs) -> bool:
    """Returns whether `auto` gives the program of `kernel`, or is refused as it is."""
    programs = []
    for implementation in (kernel, "auto"):
        try:
            traced = trace(case, implementation, inputs)
            programs.append(traced.lower().as_text())
        except _REFUSALS as error:
            programs.append(first_line(error))
    return programs[0] == programs[1]


def _kernels(program: str) -> list[str]:
    """Returns what a program calls that XLA does not compile itself."""
    called = set(re.findall(r"custom_call @([\w$.]+)", program))
    return sorted(called - _NO_KERNELS)


def _milliseconds(run, inputs: Inputs) -> float:
    """Returns the time of a call, of several one after the other."""
    jax.block_until_ready(run(*inputs.arrays()))
    started = time.perf_counter()
    jax.block_until_ready([run(*inputs.arrays()) for _ in range(_CALLS)])
    return 1e3 * (time.perf_counter() - started) / _CALLS
