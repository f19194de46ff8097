"""Keys of the random numbers that an optimizer draws.

A key follows from seed, step, path of the parameter and layer. So the numbers are the
same after a restart, on every mesh, and where layers are updated one after the other.
"""

import jax
import jax.numpy as jnp

from maxfdl.layers.parameter import Parameter, path_hash


def keys_of(parameters: dict, seed: int, step: jax.Array) -> dict:
    """Returns the key of each parameter; of a stacked one, a key of each layer.

    Args:
      parameters: Their declarations, with an `optax.MaskedNode` in place of some.
      seed: Of the experiment.
      step: Number of the step.
    """
    root = jax.random.fold_in(jax.random.key(seed), path_hash("optimizer"))
    of_step = jax.random.fold_in(root, step)

    def key(path, parameter: Parameter) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        own = jax.random.fold_in(of_step, path_hash(name))
        if parameter.repeats is None:
            return own
        layers = jnp.arange(parameter.repeats)
        return jax.vmap(jax.random.fold_in, (None, 0))(own, layers)

    return jax.tree.map_with_path(key, parameters)


def key_for(key: jax.Array, purpose: str) -> jax.Array:
    """Returns a key, or keys of layers, for one of several arrays of a parameter."""
    number = path_hash(purpose)
    if key.ndim:
        return jax.vmap(jax.random.fold_in, (0, None))(key, number)
    return jax.random.fold_in(key, number)
