"""Matrix products in few bits, as leaf ops: `Dot` and `GroupedDot` by a recipe."""

import dataclasses
import functools
import operator
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from maxfdl.markers import Operational
from maxfdl.ops.contraction import Contraction, GroupedContraction
from maxfdl.ops.dot import Dot, MatrixProduct
from maxfdl.ops.gather import Gather, GroupGather
from maxfdl.ops.grouped_dot import GroupedDot, GroupedProduct, counted_for
from maxfdl.ops.grouped_rows import Implementation
from maxfdl.ops.product import Depth, Ends, Product, State
from maxfdl.ops.recipe import Recipe
from maxfdl.ops.state import Declaration, StateDeclaration


@dataclasses.dataclass(frozen=True)
class ByRecipe(Product):
    """A product that a recipe computes; at the ends of a decoder, another one or none.

    State is declared for every layer, so that it is one array per stack; where the
    recipe of a layer keeps none, it stays what it was.

    Args:
      recipe: Formats, and how tensors are scaled.
      ends: Layers of the decoder that have `ends_recipe` instead; None: there are none.
      ends_recipe: Their recipe; None: products in the type of activations.
    """

    recipe: Recipe
    _: dataclasses.KW_ONLY
    ends: Ends | None = None
    ends_recipe: Recipe | None = None

    @staticmethod
    def check_config(node):
        if node.ends_recipe is None:
            return
        if node.ends is None:
            yield (
                f"{node.made.__name__} ends_recipe ({node.ends_recipe.made.__name__})"
                " must be left out where ends is, which names the layers that have it."
            )
        keep_state = all(
            recipe.made.keeps_state() for recipe in (node.recipe, node.ends_recipe)
        )
        if keep_state and node.recipe != node.ends_recipe:
            yield (
                f"{node.made.__name__} recipe and ends_recipe"
                f" ({node.ends_recipe.made.__name__}) must not both keep state between"
                " steps, for all layers of a stack keep the same."
            )

    def at(self, depth: Depth | None) -> Any:
        if self.ends is None:
            return self
        recipe = self.ends_recipe if self.ends.hold(depth) else self.recipe
        if recipe is None:
            return self._plain()
        return dataclasses.replace(self, recipe=recipe, ends=None, ends_recipe=None)

    def _plain(self) -> Product:
        """Returns the product in the type of activations."""
        raise NotImplementedError

    def declare(self, kernel: Declaration) -> dict[str, StateDeclaration]:
        recipes = (self.recipe, self.ends_recipe)
        declared = [recipe.declare(kernel) for recipe in recipes if recipe is not None]
        return functools.reduce(operator.or_, declared)

    def gathers_kernel(self) -> bool:
        return self.recipe.gathers_kernel


@dataclasses.dataclass(frozen=True)
class QuantizedDot(ByRecipe, MatrixProduct):
    """The product as a recipe computes it.

    Cost: the FLOPs of `Dot`. Keeps x and the kernel for the backward pass in the
    format of the recipe: a byte per number in FP8 and int8.
    """

    def _plain(self) -> Dot:
        return Dot()

    def __call__(
        self,
        x: Float[Array, "..."],
        kernel: Float[Array, "..."],
        state: State,
        *,
        contract: int = 1,
        equation: str | None = None,
        out_dtype: DTypeLike | None = None,
        gather: Gather | None = None,
    ) -> tuple[Float[Array, "..."], State]:
        if equation is None:
            product = Contraction.of_projection(
                x.ndim, kernel.ndim, contract, x.dtype.name
            )
        else:
            product = Contraction.of_equation(equation, x.dtype.name)
        product = dataclasses.replace(product, gather=gather)
        y, state = self._multiply(product, x, kernel, state)
        return y.astype(x.dtype if out_dtype is None else out_dtype), state

    def backward(
        self,
        x: Float[Array, "..."],
        kernel: Float[Array, "..."],
        dy: Float[Array, "..."],
        *,
        contract: int = 1,
        kernel_dtype: DTypeLike | None = None,
        outputs_first: bool = False,
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        product = Contraction.of_projection(x.ndim, kernel.ndim, contract, x.dtype.name)

        def multiply(x, kernel):
            return self._multiply(product, x, kernel, {})[0]

        # The gradient of a wide kernel is not rounded.
        _, gradients = jax.vjp(multiply, _wide(x), _wide(kernel))
        dx, dkernel = gradients(_wide(dy))
        if outputs_first:
            dims = range(kernel.ndim)
            dkernel = dkernel.transpose(*dims[contract:], *dims[:contract])
        return dx.astype(x.dtype), dkernel.astype(kernel_dtype or x.dtype)

    def _multiply(self, product, x, kernel, state):
        return self.recipe.multiply(product, _wide(x), _wide(kernel), state)


@dataclasses.dataclass(frozen=True)
class QuantizedGroupedDot(ByRecipe, GroupedProduct):
    """Each row times the kernel of its group, as a recipe computes it.

    Args:
      recipe, ends, ends_recipe: As in `ByRecipe`.
      implementation: As in `GroupedDot`.
    """

    implementation: Annotated[Implementation, Operational] = "auto"

    def _plain(self) -> GroupedDot:
        return GroupedDot(self.implementation)

    def gathers_kernel(self) -> bool:
        return True

    def __call__(
        self,
        x_MD: Float[Array, "M D"],
        kernel_EDF: Float[Array, "E _ _"],
        state: State,
        sizes_E: Int[Array, " S"] | None,
        gather: GroupGather | None = None,
        expected: int | None = None,
    ) -> tuple[Float[Array, "M _"], State]:
        if gather is not None and not self.recipe.gathers_kernel:
            kernel_EDF, gather = gather(kernel_EDF), gather.done()
        x, kernel = _wide(x_MD), _wide(kernel_EDF)
        rows, groups = x.shape[0], kernel.shape[0]
        dtype = x_MD.dtype.name
        if sizes_E is None:
            product = Contraction(x="emd", kernel="edf", y="emf", each="e", dtype=dtype)
            product = dataclasses.replace(product, gather=gather)
            multiply = functools.partial(self.recipe.multiply, product)
            multiply = counted_for(multiply, x, kernel, expected)
            x = x.reshape(groups, rows // groups, x.shape[1])
        else:
            chosen = GroupedDot(self.implementation).resolve()
            product = GroupedContraction.of_rows(
                rows, sizes_E, chosen, dtype, gather, expected
            )
            multiply = functools.partial(self.recipe.multiply, product)
        y, state = multiply(x, kernel, state)
        return y.reshape(rows, -1).astype(x_MD.dtype), state


def _wide(x: jax.Array) -> jax.Array:
    """Returns `x` as float32, so that what follows need not know its type.

    XLA joins the cast with the quantisation: no such array is formed.
    """
    return x.astype(jnp.float32)
