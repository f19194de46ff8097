import jax
import jax.numpy as jnp
import pytest
from jax._src import compiler

from tests import executables

X = jnp.arange(4.0)


@pytest.fixture
def compiled(monkeypatch):
    """The names of the programs that JAX compiles, all of which are worth keeping."""
    names, compile_and_load = [], compiler.backend_compile_and_load

    def named(backend, module, *args):
        names.append(str(module.operation.attributes["sym_name"]))
        return compile_and_load(backend, module, *args)

    monkeypatch.setattr(compiler, "backend_compile_and_load", named)
    kept = executables.Executables()
    monkeypatch.setattr(compiler, "backend_compile_and_load", kept.compile_and_load)
    monkeypatch.setattr(executables, "WORTH_KEEPING", -1)
    return names


def test_equal_programs_are_compiled_once(compiled):
    first, second = (jax.jit(lambda x: 3 * x + 2)(X) for _ in range(2))
    assert len(compiled) == 1 and jnp.array_equal(first, second)


def test_other_constants_or_devices_are_other_programs(compiled):
    jax.jit(lambda x: 3 * x + 2)(X)
    assert jax.jit(lambda x: 3 * x + 4)(X).tolist() == [4, 7, 10, 13]
    jax.jit(lambda x: 3 * x + 2)(jax.device_put(X, jax.devices()[1]))
    assert len(compiled) == 3


def test_those_used_last_are_kept(compiled, monkeypatch):
    monkeypatch.setattr(executables, "KEPT", 1)
    for constant in (2, 4, 2):
        jax.jit(lambda x, c=constant: 3 * x + c)(X)
    assert len(compiled) == 3
