"""What matrix products have in common, and how they differ by layer of a decoder."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from maxfdl.ops.codec import PackedKernel
from maxfdl.ops.state import Declaration, StateDeclaration

State = Mapping[str, jax.Array]
"""Values of what a product declares, by name."""


@dataclasses.dataclass(frozen=True)
class Depth:
    """Which layers of a decoder a layer is traced for.

    The repeats of a stack that run in one loop are traced once, for all of them.

    Args:
      layers: Their numbers; the first layer of the decoder is 0.
      total: How many layers the decoder has.
    """

    layers: range
    total: int

    def of_repeats(self, repeats: range, cycle: int) -> "Depth":
        """Returns that of some repeats of a stack, whose cycle has `cycle` layers."""
        part = self.layers[repeats.start * cycle : repeats.stop * cycle]
        return dataclasses.replace(self, layers=part)

    def of_cycle(self, layer: int, cycle: int) -> "Depth":
        """Returns that of one layer of the cycle, in all of its repeats."""
        return dataclasses.replace(self, layers=self.layers[layer::cycle])


@dataclasses.dataclass(frozen=True)
class Ends:
    """The first and the last layers of a decoder, together.

    Args:
      first: How many of the first layers.
      last: How many of the last ones.
    """

    first: int = 0
    last: int = 0

    @staticmethod
    def check_config(node):
        if node.first < 0 or node.last < 0 or node.first + node.last == 0:
            yield (
                f"Ends first ({node.first}) and last ({node.last}) must not be negative"
                " and name one layer at least."
            )

    def holds(self, layer: int, total: int) -> bool:
        """Says whether a layer is one of them, in a decoder of `total` layers."""
        return layer < self.first or layer >= total - self.last

    def hold(self, depth: Depth | None) -> bool:
        """Says whether all layers of a depth are among them.

        Layers outside a decoder, whose depth is None, are not.
        """
        if depth is None:
            return False
        (answer,) = {self.holds(layer, depth.total) for layer in depth.layers}
        return answer


class Product(abc.ABC):
    """What multiplies activations by the kernel of a layer, or by several.

    A product may keep state, such as the largest number that it has seen. Its layer
    holds it, hands it to each call, and keeps what the call returns. What the backward
    pass finds out, such as the largest gradient, it leaves as the gradient of a value
    that is declared with `backward`: see `maxfdl.ops.dot.leave_gradient`.
    """

    is_plain: ClassVar[bool] = False
    """Whether a reader expects this one, so that reports need not name it."""

    ends: Ends | None = None
    """The layers in which it is another product; None: it is the same in all."""

    def at(self, depth: Depth | None) -> Any:
        """Returns the product that it is in the layers of a depth.

        These are all among its `ends`, or none of them is.
        """
        return self

    def declare(self, kernel: Declaration) -> dict[str, StateDeclaration]:
        """Returns the state that a product with this kernel keeps, by name."""
        return {}

    def gathers_kernel(self) -> bool:
        """Says whether it is given shards of the kernel, and gathers them itself.

        So they cross the mesh in the type that it multiplies in. Its call then has one
        more argument, `gather`: a `maxfdl.ops.contraction.Gather`; None on a single
        device.
        """
        return False

    @abc.abstractmethod
    def __call__(
        self, x: Any, kernel: Any, state: State, *args: Any, **kwargs: Any
    ) -> tuple[jax.Array, State]:
        """Returns the product, in the type of `x`, and what is new of the state.

        Args:
          x: Activations.
          kernel: The weights, ready for use.
          state: A value for each name that was declared.
          *args, **kwargs: What else a kind of products takes.
        """

    def of_packed(
        self, x: Any, kernel: PackedKernel, state: State, *args: Any, **kwargs: Any
    ) -> tuple[jax.Array, State]:
        """Returns the product with a kernel that is stored in a few bits.

        A product that reads codes and scales where they lie overrides this.
        """
        return self(x, kernel.unpacked(x.dtype), state, *args, **kwargs)
