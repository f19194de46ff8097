"""Products of activations and a kernel, and their gradients, with every dim named.

A product `y = sum x kernel` has three arrays, each with a letter per dim. Its two
gradients are products of the same kind: that of `x` is `sum y kernel`, that of the
kernel `sum x y`. Scales of low-precision operands are arrays too, with some of the
letters of the operand that they belong to.
"""

import dataclasses
import math
import string
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from maxfdl.ops.gather import Gather, GroupGather
from maxfdl.ops.grouped_rows import Implementation, kernels_of_rows, rows_by_kernels
from maxfdl.ops.integer_sums import in_float32, type_of_sums

Name = Literal["x", "kernel", "y"]
FACTORS: dict[Name, tuple[Name, Name]] = {
    "y": ("x", "kernel"),
    "x": ("y", "kernel"),
    "kernel": ("x", "y"),
}
"""Of which two arrays each array, or its gradient, is the product."""


def _static(**kwargs: Any) -> Any:
    return dataclasses.field(metadata={"static": True}, **kwargs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Contraction:
    """A product that is one `dot_general`.

    Args:
      x, kernel, y: A letter for each dim. A letter that all have is a batch dim.
      each: Leading letters of the kernel that number kernels of the same kind.
      dtype: Type of the activations: in it factors are multiplied that are in no
        smaller one.
      gather: What gathers shards of the kernel; None: it is whole.
    """

    x: str = _static()
    kernel: str = _static()
    y: str = _static()
    each: str = _static(default="")
    dtype: str = _static(default="float32")
    gather: Gather | None = _static(default=None)

    @classmethod
    def of_projection(
        cls, x_ndim: int, kernel_ndim: int, contract: int, dtype: str = "float32"
    ):
        """Sums over `contract` dims: the last of x, the first of the kernel."""
        letters, rows = string.ascii_letters, x_ndim - contract
        x = letters[:x_ndim]
        kernel = letters[rows : rows + kernel_ndim]
        return cls(x=x, kernel=kernel, y=x[:rows] + kernel[contract:], dtype=dtype)

    @classmethod
    def of_equation(cls, equation: str, dtype: str = "float32"):
        """The einsum of both, such as `bthn,lhn->bthl`."""
        factors, y = equation.split("->")
        x, kernel = factors.split(",")
        return cls(x=x, kernel=kernel, y=y, dtype=dtype)

    def letters(self, name: Name) -> str:
        return getattr(self, name)

    def product(self, result: Name, a: jax.Array, b: jax.Array) -> jax.Array:
        """Returns y, or the gradient of x or of the kernel, in float32.

        Integers are added up exactly, see `maxfdl.ops.integer_sums`.

        Args:
          result: What to form.
          a, b: The `FACTORS` of it, a gradient of y in place of y.
        """
        of_a, of_b = (self.letters(name) for name in FACTORS[result])
        of_y = self.letters(result)
        batch = [c for c in of_a if c in of_b and c in of_y]
        summed = [c for c in of_a if c in of_b and c not in of_y]

        def places(letters):
            return [*map(of_a.index, letters)], [*map(of_b.index, letters)]

        def multiply(a, b, _):
            dims = places(summed), places(batch)
            dtype = self._type_of_sums(result, a)
            return lax.dot_general(a, b, dims, preferred_element_type=dtype)

        y = in_float32(multiply, (a, places(summed)[0]), (b, places(summed)[1]))
        free = [c for c in of_a + of_b if c not in batch and c not in summed]
        order = [*batch, *free]
        return jnp.transpose(y, [order.index(c) for c in of_y])

    def _type_of_sums(self, result: Name, a: jax.Array) -> Any:
        """Returns the type of a sum, before its scale is known.

        Where devices share out the tokens, each adds up its own for the gradient of a
        kernel, and these sums cross the mesh in the type of activations, as with `Dot`.
        """
        in_integers = jnp.issubdtype(a.dtype, jnp.integer)
        if result == "kernel" and self.gather is not None and not in_integers:
            return self.dtype
        return type_of_sums(a.dtype)

    def as_matrices(self, name: Name, a: jax.Array) -> jax.Array:
        """Returns an array as a matrix for each place of the batch dims.

        Its dims are the batch's, then one for each of the two kinds that it has of:
        rows, which x and y have, contracted, and outputs.
        """
        letters, parts, shape = self.letters(name), self.sides(name), a.shape
        a = jnp.transpose(a, [letters.index(c) for part in parts for c in part])
        sizes = dict(zip(letters, shape, strict=True))
        return a.reshape([math.prod(sizes[c] for c in part) for part in parts])

    def from_matrices(
        self, name: Name, a: jax.Array, shape: tuple[int, ...]
    ) -> jax.Array:
        """Returns the array, of this shape, of which `as_matrices` would make `a`."""
        letters = self.letters(name)
        order = "".join(self.sides(name))
        a = a.reshape([shape[letters.index(c)] for c in order])
        return jnp.transpose(a, [order.index(c) for c in letters])

    def shape_of_y(self, x: jax.Array, kernel: jax.Array) -> tuple[int, ...]:
        whole = kernel.shape
        if self.gather is not None:
            whole = self.gather.whole_shape(whole)
        sizes = dict(zip(self.x + self.kernel, x.shape + whole, strict=True))
        return tuple(sizes[letter] for letter in self.y)

    def sides(self, name: Name) -> tuple[str, str, str]:
        """Returns the letters of an array: batch, then those that either other has."""
        of_first, of_second = map(self.letters, FACTORS[name])
        letters = self.letters(name)
        batch = "".join(c for c in letters if c in of_first and c in of_second)
        rest = [c for c in letters if c not in batch]
        return (
            batch,
            "".join(c for c in rest if c in of_first),
            "".join(c for c in rest if c in of_second),
        )

    def gathered(self, kernel: jax.Array) -> jax.Array:
        """Returns the kernel ready for use, from the shard of it that lies here."""
        return kernel if self.gather is None else self.gather(kernel)

    def cut(self, kernel: jax.Array) -> jax.Array:
        """Returns the kernel's gradient, of which each device needs its shard."""
        return kernel if self.gather is None else self.gather.cut(kernel, self.dtype)

    @property
    def lanes(self) -> int:
        """Into how many parts devices cut the rows of activations."""
        return 1 if self.gather is None else self.gather.lanes

    def by_lane(self, a: jax.Array) -> jax.Array:
        """Returns an array whose first dim counts lanes, each with its rows."""
        return a if self.gather is None else self.gather.by_lane(a)

    def whole(self, scales: jax.Array, kept: str) -> jax.Array:
        """Returns scales of shards of the kernel, gathered to every device.

        Args:
          scales: The scales.
          kept: Letters of their dims.
        """
        if self.gather is None:
            return scales
        return self.gather.whole(scales, [self.kernel.index(c) for c in kept])

    def kept(self, name: Name, result: Name) -> str:
        """Returns the letters of a factor that are not summed over in `result`."""
        return "".join(c for c in self.letters(name) if c in self.letters(result))

    def greatest(
        self, a: jax.Array, name: Name, kept: str, not_finite: float = 0.0
    ) -> jax.Array:
        """Returns the greatest finite magnitude in `a` for each value of `kept`.

        Args:
          a: The array.
          name: Which of the arrays of the product it is.
          kept: Letters of the dims that the result has.
          not_finite: Magnitude that infinities and NaN count as.
        """
        letters = self.letters(name)
        dims = tuple(i for i, c in enumerate(letters) if c not in kept)
        greatest = greatest_magnitude(a, dims, not_finite)
        if name != "kernel" or self.gather is None:
            return greatest
        return self.gather.greatest(greatest, dims)

    def spread(self, scale: jax.Array, kept: str, onto: Name) -> jax.Array:
        """Returns a scale with letters `kept`, fit to multiply the array `onto`."""
        letters = self.letters(onto)
        order = sorted(kept, key=letters.index)
        scale = jnp.transpose(scale, [kept.index(c) for c in order])
        missing = [i for i, c in enumerate(letters) if c not in kept]
        return jnp.expand_dims(scale, missing) if scale.ndim else scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupedContraction(Contraction):
    """Rows in the order of their groups, each group with a kernel of its own.

    Letters: m rows, d contracted, f outputs, e groups. On a mesh each device has its
    own rows, groups and kernels, and what follows of these is computed by each.

    Args:
      sizes: [e] rows of each group; those of all devices on a mesh.
      group: [m] group of each row, among those of its device.
      implementation, expected: See `rows_by_kernels`.
    """

    x: str = _static(default="md")
    kernel: str = _static(default="edf")
    y: str = _static(default="mf")
    each: str = _static(default="e")
    sizes: Any  # arrays; JAX also makes trees of placeholders
    group: Any
    implementation: Implementation = _static()
    expected: int | None = _static(default=None)
    gather: GroupGather | None = _static(default=None)

    @classmethod
    def of_rows(
        cls,
        rows: int,
        sizes: jax.Array,
        implementation: Implementation,
        dtype: str = "float32",
        gather: GroupGather | None = None,
        expected: int | None = None,
    ):
        def groups(sizes, rows):
            numbers = jnp.arange(sizes.size, dtype=jnp.int32)
            return jnp.repeat(numbers, sizes, total_repeat_length=rows.size)

        product = cls(
            sizes=sizes,
            group=None,
            implementation=implementation,
            dtype=dtype,
            gather=gather,
            expected=expected,
        )
        # Of as many rows as each device has.
        group = product.on_each(groups, ("m", "m"), "m")(
            sizes, jnp.zeros(rows, jnp.int32)
        )
        return dataclasses.replace(product, group=group)

    def on_each(
        self,
        function: Callable,
        inputs: Sequence[str],
        output: str,
        reduce: Callable = lax.psum,
    ) -> Callable:
        """Returns `function` run on each device of a mesh, see `Gather.each`."""
        if self.gather is None:
            return function
        return self.gather.each(function, inputs, output, reduce)

    def product(self, result: Name, a: jax.Array, b: jax.Array) -> jax.Array:
        if result == "kernel":
            product, summed = kernels_of_rows, (0, 0)
        else:
            product, summed = rows_by_kernels, (1, 1)

        def whole(a, b, sizes):
            b = b.swapaxes(1, 2) if result == "x" else b

            def multiply(a, b, part):
                own, expected = sizes, self.expected
                if result == "kernel":
                    own = part.of_groups(sizes)
                    expected = expected and -(-expected // part.number)
                dtype = self._type_of_sums(result, a)
                return product(a, b, own, self.implementation, dtype, expected)

            return in_float32(multiply, (a, [summed[0]]), (b, [summed[1]]))

        inputs = *(self.letters(name) for name in FACTORS[result]), "m"
        run = self.on_each(whole, inputs, self.letters(result))
        return run(a, b, self.sizes)

    def kept(self, name: Name, result: Name) -> str:
        kept = super().kept(name, result)
        has_groups = "kernel" in (name, result)
        return f"e{kept.replace('e', '')}" if has_groups else kept

    def greatest(
        self, a: jax.Array, name: Name, kept: str, not_finite: float = 0.0
    ) -> jax.Array:
        if name == "kernel" or "e" not in kept:
            return super().greatest(a, name, kept, not_finite)
        of_rows = kept.replace("e", "m")

        def of_groups(greatest, group, sizes):
            found = jax.ops.segment_max(
                greatest, group, sizes.size, indices_are_sorted=True
            )
            return jnp.maximum(found, 0)  # a group without rows has -inf

        run = self.on_each(of_groups, (of_rows, "m", "m"), kept, lax.pmax)
        greatest = super().greatest(a, name, of_rows, not_finite)
        return run(greatest, self.group, self.sizes)

    def spread(self, scale: jax.Array, kept: str, onto: Name) -> jax.Array:
        if "e" in kept and onto != "kernel":
            of_rows = kept.replace("e", "m")
            run = self.on_each(lambda scale, group: scale[group], (kept, "m"), of_rows)
            scale, kept = run(scale, self.group), of_rows
        return super().spread(scale, kept, onto)


def greatest_magnitude(
    a: jax.Array, dims: tuple[int, ...] | None = None, not_finite: float = 0.0
) -> jax.Array:
    """Returns `max |a|` over `dims` in float32; infinities and NaN are `not_finite`."""
    magnitude = jnp.where(jnp.isfinite(a), jnp.abs(a), not_finite)
    return jnp.max(magnitude, dims, initial=0).astype(jnp.float32)
