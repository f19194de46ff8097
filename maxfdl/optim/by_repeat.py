"""Updates of arrays in host memory: one repeat of a stack at a time, in place.

XLA fetches an array from host memory whole, and an array of a stack holds all of its
layers. A loop that slices out one repeat has only that one in device memory.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from maxfdl.layers.parameter import Parameter
from maxfdl.sharding.memory import beside, is_on_host, on_device

Arrays = dict[str, jax.Array]
"""By their paths."""


def changed(
    change: Callable[[Any, Any, Any], Any],
    start: Callable[[Any, Any], tuple[Any, Any]],
    declared: Any,
    old: Any,
    given: Any,
    accepted: jax.Array | bool,
) -> Any:
    """Returns `change(declared, old, given)` if accepted, else `old`.

    Each result has the type of the old array, and lies in the same memory.

    If any array is in host memory, stacks are changed repeat by repeat, so `change`
    must treat each layer independently. Numbers are then the same within float32
    rounding.

    Args:
      change: Changes some of the parameters; its trees have an `optax.MaskedNode` in
        place of each of the others.
      start: `start(declared, params)` makes trees like `old` and `given`, with masked
        nodes where `declared` has them. It tells which arrays belong to which
        parameters: those that it makes without any parameter, such as counters, are
        shared by all.
      declared: Declarations of parameters, a tree like them.
      old: The arrays to change.
      given: What they are changed by, such as gradients.
      accepted: A boolean scalar.
    """
    if not any(map(is_on_host, jax.tree.leaves((old, given)))):
        new = change(declared, old, given)
        return jax.tree.map(
            lambda n, o: jnp.where(accepted, n.astype(o.dtype), o), new, old
        )
    arrays, olds = _by_path((old, given)), _by_path((old,))

    def part(is_in: Callable[[Parameter], bool]):
        """Returns the paths of the arrays of some parameters, and their change."""
        own = jax.tree.map(lambda p: p if is_in(p) else optax.MaskedNode(), declared)
        params = jax.tree.map(lambda p: p.abstract("float32"), own)
        trees = jax.eval_shape(lambda params: start(own, params), params)

        def change_part(arrays: Arrays) -> Arrays:
            filled = jax.tree.map_with_path(lambda path, _: arrays[_name(path)], trees)
            return _by_path((change(own, *filled),))

        return _by_path(trees).keys(), change_part

    shared, _ = part(lambda p: False)
    names, change_part = part(lambda p: p.repeats is None)
    at_once = {name: on_device(arrays[name]) for name in names}
    new = {
        name: beside(old, jnp.where(accepted, x.astype(old.dtype), at_once[name]))
        for name, x in change_part(at_once).items()
        for old in [olds[name]]
    }
    for repeats in {p.repeats for p in jax.tree.leaves(declared)} - {None}:
        names, change_part = part(lambda p, repeats=repeats: p.repeats == repeats)
        new |= _in_loop(
            jnp.where(accepted, repeats, 0),
            change_part,
            {name: olds[name] for name in (names - shared) & olds.keys()},
            {name: arrays[name] for name in names - shared - olds.keys()},
            {name: on_device(arrays[name]) for name in shared},
        )
    return jax.tree.map_with_path(lambda path, _: new[_name(path)], (old,))[0]


def _in_loop(
    repeats: jax.Array,
    change: Callable[[Arrays], Arrays],
    old: Arrays,
    given: Arrays,
    shared: Arrays,
) -> Arrays:
    """Returns the changed stacked arrays; `shared` belongs to all repeats."""

    def body(k: jax.Array, stacked: Arrays) -> Arrays:
        cut = {
            name: on_device(lax.dynamic_slice_in_dim(x, k, 1, 0))
            for name, x in {**stacked, **given}.items()
        }
        new = change(cut | shared)
        return {
            name: lax.dynamic_update_slice_in_dim(
                x, beside(x, new[name].astype(x.dtype)), k, 0
            )
            for name, x in stacked.items()
        }

    return lax.fori_loop(0, repeats, body, old)


def _by_path(tree: Any) -> Arrays:
    paths, _ = jax.tree.flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in paths}


_name = jax.tree_util.keystr
