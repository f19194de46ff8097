"""Programs here are compiled once and run once: XLA need not do its best."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def quick_to_compile():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
