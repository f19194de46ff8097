"""FP8 products beside bfloat16: which kernels they become, and what a step gains."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp

from maxfdl.ops.dot import Dot, MatrixProduct
from maxfdl.ops.fp8_recipes import Fp8Current
from maxfdl.ops.quantized_dot import QuantizedDot
from maxfdl.run.accelerator.check import Bench, Check, Outcome, first_line
from maxfdl.run.accelerator.speed import SIZE, SIZE_ON_CPU, measure_graph, text_of
from maxfdl.run.benchmark import Figures

GRAPHS = {
    "llama_1b": "fdl_configs.bench.llama_1b(batch_size=8)+remat(policy=dots_no_batch)",
    "llama_3b": "fdl_configs.bench.llama_3b(batch_size=2)+remat(policy=full)",
}
FP8_GEMM = "__cublas$lt$matmul$f8"
"""What XLA calls for a product of FP8 on NVIDIA GPUs."""

_REPEATS, _CALLS = 5, 10


def checks(platform: str) -> list[Check]:
    """Returns a check of one product, and on accelerators one of each shape."""
    shapes = () if platform == "cpu" else GRAPHS
    return [
        Check("fp8/product", multiply),
        *[
            Check(
                f"fp8/{name}",
                functools.partial(train, name),
                seconds=300,
                is_alone=True,
            )
            for name in shapes
        ],
    ]


def multiply(bench: Bench) -> Outcome:
    """Times a product with both gradients; on an NVIDIA GPU all three must be FP8's."""
    size = SIZE_ON_CPU if bench.is_small else SIZE
    plain, _ = _timed(Dot(), size)
    seconds, program = _timed(QuantizedDot(Fp8Current()), size)
    found = program.count(f'custom_call_target="{FP8_GEMM}"')
    text = (
        f"{size}^3 with gradients: {6 * size**3 / seconds / 1e12:.4g} TFLOP/s,"
        f" {plain / seconds:.2f} times bfloat16"
    )
    figures = {"size": size, "times_bfloat16": plain / seconds, "fp8_gemms": found}
    if bench.platform != "gpu":
        return Outcome("measured", text, figures)
    status = "passed" if found == 3 else "failed"
    return Outcome(status, f"{found} of 3 products call {FP8_GEMM}; {text}", figures)


def train(name: str, bench: Bench) -> Outcome:
    """Measures steps in bfloat16 and in FP8; refused where the memory is too small."""
    graph = GRAPHS[name]
    try:
        plain = measure_graph(graph, bench)
        fp8 = measure_graph(f"{graph}+enable_fp8", bench)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Outcome("refused", f"does not fit: {first_line(error)}")
    return compared(graph, plain, fp8)


def compared(graph: str, plain: Figures, fp8: Figures) -> Outcome:
    times = fp8.tokens_per_second / plain.tokens_per_second
    return Outcome(
        "measured",
        f"{times:.2f} times bfloat16: {text_of(fp8)}; bfloat16 {text_of(plain)}",
        {
            "graph": graph,
            "times_bfloat16": times,
            "bfloat16": dataclasses.asdict(plain),
            "fp8": dataclasses.asdict(fp8),
        },
    )


def _timed(dot: MatrixProduct, size: int) -> tuple[float, str]:
    """Returns seconds of a product with its gradients, and the program's text."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel, dy = (jax.random.normal(k, (size, size), jnp.bfloat16) for k in keys)

    def step(x, kernel, dy):
        y, pull = jax.vjp(lambda x, kernel: dot(x, kernel, {})[0], x, kernel)
        return y, pull(dy)

    compiled = jax.jit(step).lower(x, kernel, dy).compile()
    jax.block_until_ready(compiled(x, kernel, dy))
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        jax.block_until_ready([compiled(x, kernel, dy) for _ in range(_CALLS)])
        seconds.append((time.perf_counter() - started) / _CALLS)
    return sorted(seconds)[_REPEATS // 2], compiled.as_text() or ""
