"""Gathers and reductions along a mesh axis, ring by ring of a TPU's torus.

A mesh axis of 16 chips is two rings of 4 on a 4x4. XLA makes a reduce-scatter over both
at once an all-reduce, of twice the bytes; so it does with one along a minor dim, and
with a gather over 256 chips. Ring by ring, and reduce-scatters along the leading dim,
each sends the bytes of one reduce-scatter or one gather. Gathers go along the dim that
is cut: moved to the front, XLA copies the weights of all layers into another layout.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

Rings = tuple[int, ...]
"""How many devices a mesh axis has along each dim of the torus, the outermost first."""


def rings_of(mesh: Mesh, axis: str) -> Rings:
    """Returns the rings that a mesh axis consists of.

    On devices without a torus, and where the axis is not a box of it, it is one ring.
    """
    size = mesh.shape[axis]
    if mesh.devices.flat[0].platform != "tpu":
        return (size,)
    first = [slice(None) if name == axis else 0 for name in mesh.axis_names]
    coords = zip(*(device.coords for device in mesh.devices[tuple(first)]), strict=True)
    rings = tuple(n for n in (len(set(along)) for along in coords) if n > 1)
    return rings if math.prod(rings) == size else (size,)


def all_gather(x: jax.Array, axis: str, dim: int, rings: Rings) -> jax.Array:
    """Returns the parts of `x` that the devices along a mesh axis have, joined."""
    for groups in reversed(_groups(rings)):
        x = lax.all_gather(x, axis, axis=dim, axis_index_groups=groups, tiled=True)
    return x


def reduce_scatter(x: jax.Array, axis: str, dim: int, rings: Rings) -> jax.Array:
    """Adds `x` up over a mesh axis, of which each device keeps its part of `dim`."""
    x = jnp.moveaxis(x, dim, 0)
    for groups in _groups(rings):
        x = lax.psum_scatter(x, axis, axis_index_groups=groups, tiled=True)
    return jnp.moveaxis(x, 0, dim)


def _groups(rings: Rings) -> list[list[list[int]] | None]:
    """Returns, for each dim of the torus, the devices of an axis that form rings."""
    if len(rings) == 1:
        return [None]
    places = np.arange(math.prod(rings)).reshape(rings)
    return [
        np.moveaxis(places, along, -1).reshape(-1, size).tolist()
        for along, size in enumerate(rings)
    ]
