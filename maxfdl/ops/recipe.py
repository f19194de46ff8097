"""What a recipe is: the way in which a matrix product is computed in few bits."""

import abc
from typing import ClassVar

import jax

from maxfdl.ops.contraction import Contraction
from maxfdl.ops.product import State
from maxfdl.ops.state import Declaration, StateDeclaration


class Recipe(abc.ABC):
    """How the factors of a product are rounded, forward and backward.

    A recipe is a frozen dataclass, so that it can be a static argument of the functions
    that it hands to JAX.

    Attributes:
      gathers_kernel: Whether `multiply` is given shards of the kernel. It then gathers
        them by `product.gathered`, once they are in few bits.
    """

    gathers_kernel: ClassVar[bool] = False

    def declare(self, kernel: Declaration) -> dict[str, StateDeclaration]:
        """Returns the state that a product with this kernel keeps, by name."""
        return {}

    @classmethod
    def keeps_state(cls) -> bool:
        """Says whether products of this recipe declare state."""
        return cls.declare is not Recipe.declare

    @abc.abstractmethod
    def multiply(
        self, product: Contraction, x: jax.Array, kernel: jax.Array, state: State
    ) -> tuple[jax.Array, State]:
        """Returns y in float32, and what is new of the state.

        Args:
          product: Which dims are summed.
          x, kernel: The factors, in float32.
          state: A value for each name that was declared.
        """
