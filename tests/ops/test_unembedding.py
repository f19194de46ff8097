"""Logits by a table or by a kernel of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.dot import Dot
from maxfdl.ops.unembedding import Unembedding


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("axes", [("vocab", "embed"), ("embed", "vocab")], ids=str)
def test_single_vectors_get_the_logits_of_whole_rows(axes, soft_cap):
    rng = np.random.default_rng(0)
    shape = (20, 6) if axes[0] == "vocab" else (6, 20)
    unembedding = Unembedding(
        weights=jnp.asarray(rng.normal(size=shape), jnp.float32),
        axes=axes,
        dtype="float32",
        dot=Dot(),
        scale=0.5,
        soft_cap=soft_cap,
    )
    hidden = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    expected = unembedding(hidden[:, None])[:, 0]
    np.testing.assert_allclose(unembedding.of_vectors(hidden), expected, atol=1e-6)


def test_the_table_is_read_as_it_lies_for_single_vectors():
    def logits(table, hidden):
        unembedding = Unembedding(
            weights=table, axes=("vocab", "embed"), dtype="float32", dot=Dot()
        )
        return unembedding.of_vectors(hidden)

    text = jax.jit(logits).lower(jnp.ones((20, 6)), jnp.ones((1, 6))).as_text()
    assert "transpose" not in text
