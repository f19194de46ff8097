"""How an optimizer stores its moments: the averages that a rule keeps of gradients.

A moment is an array of the rule's state with the shape of its parameter. It is decoded
to float32 before an update and encoded after it; counters, the rows and columns of
Adafactor, and the weights `z` of schedule-free learning stay as they are.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import GetAttrKey

from maxfdl.layers.parameter import Parameter
from maxfdl.ops.block_scales import block_sides, greatest_of_blocks, over_blocks
from maxfdl.ops.dynamic_map import SIGNED, UNSIGNED, DynamicMap
from maxfdl.ops.rounding import stochastically_rounded
from maxfdl.optim.keys import key_for
from maxfdl.optim.owners import Owners, Path
from maxfdl.optim.transforms import UpdateRule


@dataclasses.dataclass(frozen=True)
class Moment:
    """One moment of one parameter.

    Args:
      parameter: The declaration of the parameter.
      is_square: Whether it is an average of squares, which are never negative.
      key: For random numbers, or one for each layer of a stack; None where none are
        drawn, because all numbers are 0.
    """

    parameter: Parameter
    is_square: bool
    key: jax.Array | None


class Moments:
    """Base: how moments are stored."""

    def encoded(self, x: jax.Array, moment: Moment) -> Any:
        """Returns what is stored of a float32 moment."""
        raise NotImplementedError

    def decoded(self, stored: Any, moment: Moment) -> jax.Array:
        """Returns the float32 moment."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Bfloat16(Moments):
    """Stores moments in bfloat16, rounded up or down at random.

    Rounded to nearest, an average would stand still once a step changes it by less than
    1 part in 500. See `maxfdl.ops.rounding`. Two bytes a number.
    """

    def encoded(self, x: jax.Array, moment: Moment) -> jax.Array:
        if moment.key is None:
            return x.astype(jnp.bfloat16)
        return stochastically_rounded(x, jnp.bfloat16, moment.key)

    def decoded(self, stored: jax.Array, moment: Moment) -> jax.Array:
        return stored.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class EightBit(Moments):
    """Stores moments in 8 bits a number, and the greatest magnitude of each block.

    A number is rounded to the nearest of its block's greatest magnitude times a dynamic
    number, see `maxfdl.ops.dynamic_map`: with a sign, or without for averages of
    squares, which never become 0 if they are not. Dettmers et al. 2022,
    https://arxiv.org/abs/2110.02861. Blocks there are stretches of the flat array; here
    they have the dims of the array, so that they are the same on every mesh and
    meshes seldom cut one. The numbers of a block belong to one layer, one expert, and
    one token of the vocabulary, whose gradients may differ in size.

    Parameters with fewer than 4096 numbers in a layer keep moments in float32, as in
    the paper. `1 + 4 / block_size` bytes a number.

    Args:
      block_size: Numbers in a block, a power of two; 2048 in the paper, 256 in
        bitsandbytes since.
    """

    block_size: int = 256

    @staticmethod
    def check_config(node):
        size = node.block_size
        if not (16 <= size <= 2**16 and size & (size - 1) == 0):
            yield (
                f"EightBit block_size ({size}) must be a power of two from 16 to 65536;"
                " 256 is usual."
            )

    def encoded(self, x: jax.Array, moment: Moment) -> "Blocks | jax.Array":
        if math.prod(moment.parameter.shape) < _FEWEST:
            return x
        sides = self._sides(moment.parameter)
        greatest = greatest_of_blocks(x, sides)
        scales = over_blocks(jnp.where(greatest == 0.0, 1.0, greatest), sides, x.shape)
        return Blocks(_numbers(moment).encoded(x / scales), greatest)

    def decoded(self, stored: "Blocks | jax.Array", moment: Moment) -> jax.Array:
        if not isinstance(stored, Blocks):
            return stored
        sides = self._sides(moment.parameter)
        scales = over_blocks(stored.greatest, sides, stored.shape)
        return _numbers(moment).decoded(stored.codes) * scales

    def _sides(self, parameter: Parameter) -> tuple[int, ...]:
        """Returns the sides of blocks in an array of parameters, stacked or not."""
        own = len(parameter.full_shape) - len(parameter.shape) + parameter.batched
        shared = [
            dim
            for dim, axis in enumerate(parameter.full_axes)
            if dim >= own and axis != "vocab"
        ]
        return block_sides(parameter.full_shape, shared, self.block_size)


_FEWEST = 4096


def _numbers(moment: Moment) -> DynamicMap:
    return UNSIGNED if moment.is_square else SIGNED


class Blocks(NamedTuple):
    """A moment in 8 bits.

    Fields: `codes`, uint8 with the parameter's shape; `greatest`, float32, the greatest
    magnitude of each block, with the parameter's dims divided by the sides of a block.
    """

    codes: jax.Array
    greatest: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def placed(self, codes: NamedSharding) -> Any:
        """Returns the shardings of both, given that of the codes: the same, but for
        dims of which a mesh would cut a block."""

        def kept(entry: Any, size: int) -> Any:
            names = (entry,) if isinstance(entry, str) else entry or ()
            parts = math.prod(codes.mesh.shape[name] for name in names)
            return entry if size % parts == 0 else None

        spec = PartitionSpec(*map(kept, codes.spec, self.greatest.shape))
        greatest = NamedSharding(codes.mesh, spec, memory_kind=codes.memory_kind)
        return Blocks(codes, greatest)  # type: ignore


def stored_as(
    moments: Moments, rule: UpdateRule, parameters: dict
) -> optax.GradientTransformationExtraArgs:
    """Returns the transform of a rule, whose moments are stored as `moments` says.

    Its `update` takes `keys`, those of `maxfdl.optim.keys.keys_of`.
    """
    transform = rule.transform(parameters)

    def init(params):
        each = _Each(rule.squares, parameters, params, keys={})
        return each.mapped(moments.encoded, transform.init(params))

    def update(updates, state, params=None, **extra):
        each = _Each(rule.squares, parameters, params, extra["keys"])
        decoded = each.mapped(moments.decoded, state)
        directions, new = transform.update(updates, decoded, params)
        return directions, each.mapped(moments.encoded, new)

    return optax.GradientTransformationExtraArgs(init, update)


class _Each:
    """The moments of a state; the arguments are trees like the parameters."""

    def __init__(
        self, squares: frozenset[str], parameters: Any, params: Any, keys: Any
    ):
        self._squares = squares
        self._owners = Owners(params)
        self._parameters = dict(jax.tree.leaves_with_path(parameters))
        self._keys = dict(jax.tree.leaves_with_path(keys))

    def mapped(self, function: Callable[[Any, Moment], Any], state: Any) -> Any:
        """Returns the state with `function(array, moment)` of each moment."""

        def change(path, array):
            own = self._owners(path, array)
            return function(array, self._moment(path, own)) if own else array

        return jax.tree.map_with_path(
            change, state, is_leaf=lambda node: isinstance(node, Blocks)
        )

    def _moment(self, path: Path, own: Path) -> Moment:
        held_in = path[: -len(own)]
        fields = {step.name for step in held_in if isinstance(step, GetAttrKey)}
        key = self._keys.get(own)
        if key is not None:
            key = key_for(key, jax.tree_util.keystr(held_in))
        return Moment(self._parameters[own], bool(fields & self._squares), key)
