"""The speed of a product and, beside it, of training a Llama with 1.2 billion weights.

A step cannot be faster than the products in it, so its FLOP/s are stated as a share of
what one large product reaches on the same card in the same minutes.
"""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp

from maxfdl.run.accelerator.check import Bench, Check, Outcome, first_line
from maxfdl.run.benchmark import Figures, measure
from maxfdl.run.progress import quantity

STEPS = 10
SIZE = 8192
SIZE_ON_CPU = 512

# The first must fit into a card of 80 GB, three quarters of which are JAX's.
GRAPHS = {
    "batch_4": "fdl_configs.bench.llama_1b(batch_size=4)+remat(policy=dots_no_batch)",
    "batch_8": "fdl_configs.bench.llama_1b(batch_size=8)+remat(policy=dots_no_batch)",
    "batch_4_no_remat": "fdl_configs.bench.llama_1b(batch_size=4)",
}
_GRAPH_ON_CPU = "experiments.llama2_smoke"
_MUST_FIT_IN = 48 * 2**30
_REPEATS, _PRODUCTS = 5, 20


def product_checks() -> list[Check]:
    return [Check("product", multiply)]


def llama_checks(platform: str) -> list[Check]:
    names = list(GRAPHS)[:1] if platform == "cpu" else list(GRAPHS)
    return [
        Check(
            f"llama/{name}",
            functools.partial(train_llama, name),
            seconds=150,
            is_alone=True,
        )
        for name in names
    ]


def multiply(bench: Bench) -> Outcome:
    """Times bfloat16 products of random square matrices, one after the other."""
    size = SIZE_ON_CPU if bench.is_small else SIZE
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
    product = jax.jit(jnp.matmul).lower(a, b).compile()
    jax.block_until_ready([product(a, b) for _ in range(3)])
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        jax.block_until_ready([product(a, b) for _ in range(_PRODUCTS)])
        seconds.append((time.perf_counter() - started) / _PRODUCTS)
    median = sorted(seconds)[_REPEATS // 2]
    tflops = 2 * size**3 / median / 1e12
    return Outcome(
        "measured",
        f"{size}^3 in bfloat16: {tflops:.4g} TFLOP/s",
        {"size": size, "tflops_per_second": tflops},
    )


def train_llama(name: str, bench: Bench) -> Outcome:
    """Measures steps of one batch size; refused where the memory is too small."""
    graph = _GRAPH_ON_CPU if bench.is_small else GRAPHS[name]
    try:
        figures = measure_graph(graph, bench)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        is_smallest = name == next(iter(GRAPHS))
        memory = bench.earlier["device"].figures["memory_bytes"] or 0
        return Outcome(
            "failed" if is_smallest and memory >= _MUST_FIT_IN else "refused",
            f"does not fit: {first_line(error)}",
        )
    share = _share_of_product(figures, bench)
    return Outcome(
        "measured",
        f"{text_of(figures)}{'' if share is None else f', {share:.1%} of the product'}",
        {**dataclasses.asdict(figures), "graph": graph, "share_of_product": share},
    )


def measure_graph(graph: str, bench: Bench) -> Figures:
    devices = jax.devices()[:1]
    return measure(bench.make(graph), steps=STEPS, warmup=2, devices=devices)


def text_of(figures: Figures) -> str:
    mfu = "" if figures.mfu is None else f", MFU {figures.mfu:.1%}"
    return (
        f"{quantity(figures.tokens_per_second)} tokens/s,"
        f" {figures.model_tflops_per_second:.4g} model TFLOP/s{mfu}, peak"
        f" {figures.peak_bytes / 2**30:.3g} GiB, compiled in"
        f" {figures.compile_seconds:.0f} s"
    )


def _share_of_product(figures: Figures, bench: Bench) -> float | None:
    product = bench.earlier.get("product")
    if product is None or product.status != "measured":
        return None
    return figures.model_tflops_per_second / product.figures["tflops_per_second"]
