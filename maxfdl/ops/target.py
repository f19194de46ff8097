"""The platform that functions are traced for.

It is where JAX runs, unless a program is compiled ahead for devices that are elsewhere.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "target_platform", default=None
)


def target_platform() -> str:
    """Returns `cpu`, `gpu` or `tpu`: what an op chooses its implementation for."""
    return _TARGET.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Traces what is traced inside for devices of this platform."""
    token = _TARGET.set(platform)
    try:
        yield
    finally:
        _TARGET.reset(token)
