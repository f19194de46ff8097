"""Steps in bfloat16 as a user's CPU compiles them, which is not as tests do.

XLA:CPU widens bfloat16 before it multiplies, except on CPUs with instructions for it
(AMX, AVX512-BF16). There it keeps products of bfloat16, also with a float32 result,
folds a transpose of the result into the product, and then has no code for it: the
program compiles and dies at the first call.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

from maxfdl import graph
from maxfdl.train.program import Program
from tests import tiny

# Tied and untied heads, all kinds of attention, experts and DeltaNet; the tiled loss
# forms the gradient of the head itself. MuonClip reads the scores of attention.
COVERING = {
    "llama3": ["vocab_tiling(num_tiles=2)"],
    "gemma2": ["vocab_tiling(num_tiles=2)"],
    "gpt_oss": ["use_muonclip"],
    "deepseek_v3": ["multi_token_prediction", "vocab_tiling(num_tiles=2)"],
    "qwen3_next": [],
}
RUN = ("deepseek_v3",)
"""Those that are compiled as well: latent attention, experts and later tokens."""
SHAPES_ONLY = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim")


def expression(family: str) -> str:
    calls = ["compute_dtype(bfloat16)", *COVERING[family]]
    return "+".join([f'experiments.zoo_smoke(family="{family}")', *calls])


def program(family: str) -> Program:
    made: Any = graph.build(graph.resolve(expression(family)))
    trainer = made.make_trainer(made.make_sharding(jax.devices()[:1]))
    return Program(trainer, made.batch_size, made.sequence_length)


def transposed_products(jaxpr: Any) -> Iterator[str]:
    """Yields where a float32 product of bfloat16 is made whose result is transposed."""
    products = {}
    for eqn in jaxpr.eqns:
        for inner in jaxprs_in_params(eqn.params):
            yield from transposed_products(inner)
        name = eqn.primitive.name
        if name == "dot_general":
            narrow = all(x.aval.dtype == jnp.bfloat16 for x in eqn.invars)
            if narrow and eqn.outvars[0].aval.dtype == jnp.float32:
                products[id(eqn.outvars[0])] = str(eqn.source_info.traceback)
        elif name in (*SHAPES_ONLY, "transpose") and id(eqn.invars[0]) in products:
            where = products[id(eqn.outvars[0])] = products[id(eqn.invars[0])]
            if name == "transpose":
                yield where


@pytest.mark.parametrize("family", COVERING)
def test_no_float32_product_of_bfloat16_is_transposed(family):
    made = program(family)
    traced = jax.make_jaxpr(made.trainer.step)(
        made.abstract_state(), made.abstract_batch()
    )
    assert not list(transposed_products(traced.jaxpr))


def test_such_a_product_is_found_in_the_body_of_a_loop():
    def gradient(x, dy):
        tokens = ((0, 1), (0, 1))
        product = lax.dot_general(
            x, dy, (tokens, ((), ())), preferred_element_type=jnp.float32
        )
        return product.T

    def summed(x, dy):
        total = jnp.zeros((6, 4))
        return lax.scan(
            lambda so_far, _: (so_far + gradient(x, dy), ()), total, length=2
        )

    arrays = jnp.zeros((2, 8, 4), jnp.bfloat16), jnp.zeros((2, 8, 6), jnp.bfloat16)
    assert len(list(transposed_products(jax.make_jaxpr(summed)(*arrays).jaxpr))) == 1


@pytest.mark.slow
def test_steps_run_as_a_users_cpu_compiles_them():
    """Runs this file in a process that has none of the flags of tests."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.test_bfloat16"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(RUN)


def main() -> None:
    for family in RUN:
        made = program(family)
        tokens = jax.random.randint(jax.random.key(0), (8, 32), 0, 128)
        batch = {k: tokens.astype(v.dtype) for k, v in made.abstract_batch().items()}
        ones = jnp.ones_like(batch["tokens"])
        batch |= {"segment_ids": ones, "weights": ones.astype(jnp.float32)}
        batch["positions"] = jnp.broadcast_to(jnp.arange(32), (8, 32))
        _, metrics = made.compile_step().run(tiny.begin(made), batch)
        assert jnp.isfinite(metrics["loss"]), family
        print(family, flush=True)


if __name__ == "__main__":
    main()
