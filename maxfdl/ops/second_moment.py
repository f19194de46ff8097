"""Products that add up the second moment of what they multiply: for calibration.

It is `sum x x^T` over all tokens, with the contracted dims of x as one. As state of a
product it is there for every layer of a scan, and for every expert.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from maxfdl.ops.dot import Dot
from maxfdl.ops.gather import GroupGather
from maxfdl.ops.grouped_dot import GroupedDot
from maxfdl.ops.grouped_rows import kernels_of_rows
from maxfdl.ops.product import State
from maxfdl.ops.state import Declaration, StateDeclaration

NAME = "second_moment"


@dataclasses.dataclass(frozen=True)
class ObservedDot(Dot):
    """The plain product, which keeps the second moment of x, [D, D] in float32.

    Cost: `2 D` FLOPs more per token and contracted number.
    """

    is_plain = False

    def declare(self, kernel: Declaration) -> dict[str, StateDeclaration]:
        return _declared(kernel)

    def __call__(
        self,
        x: Float[Array, "..."],
        kernel: Float[Array, "..."],
        state: State,
        *,
        contract: int = 1,
        equation: str | None = None,
        out_dtype: DTypeLike | None = None,
    ) -> tuple[Float[Array, "..."], State]:
        y, _ = super().__call__(
            x, kernel, {}, contract=contract, equation=equation, out_dtype=out_dtype
        )
        if equation is not None:  # x is not what the kernel's inputs are
            return y, {}
        rows = x.reshape(-1, math.prod(x.shape[x.ndim - contract :]))
        found = jnp.einsum("md,me->de", rows, rows, preferred_element_type=jnp.float32)
        return y, {NAME: state[NAME] + found}


@dataclasses.dataclass(frozen=True)
class ObservedGroupedDot(GroupedDot):
    """The plain product of groups, which keeps the second moment of each, [E, D, D]."""

    is_plain = False

    def declare(self, kernel: Declaration) -> dict[str, StateDeclaration]:
        return _declared(kernel)

    def __call__(
        self,
        x_MD: Float[Array, "M D"],
        kernel_EDF: Float[Array, "E D F"],
        state: State,
        sizes_E: Int[Array, " S"] | None,
        gather: GroupGather | None = None,
        expected: int | None = None,
    ) -> tuple[Float[Array, "M F"], State]:
        if gather is not None:
            raise ValueError("ObservedGroupedDot runs on one device, not on a mesh.")
        y, _ = super().__call__(x_MD, kernel_EDF, {}, sizes_E)
        return y, {NAME: state[NAME] + self._moments(x_MD, kernel_EDF, sizes_E)}

    def _moments(self, x_MD, kernel_EDF, sizes_E) -> jax.Array:
        if sizes_E is not None:
            chosen = self.resolve()
            return kernels_of_rows(x_MD, x_MD, sizes_E, chosen, jnp.float32)
        groups = kernel_EDF.shape[0]
        x_EMD = x_MD.reshape(groups, -1, x_MD.shape[1])
        return jnp.einsum("emd,emf->edf", x_EMD, x_EMD).astype(jnp.float32)


def _declared(kernel: Declaration) -> dict[str, StateDeclaration]:
    batch, axes = kernel.shape[: kernel.batched], kernel.axes[: kernel.batched]
    inputs = kernel.shape[kernel.batched :][: kernel.contracted]
    width = math.prod(inputs)
    shape = (*batch, width, width)
    return {NAME: StateDeclaration(shape, (*axes, "history", "history"), merge="sum")}
