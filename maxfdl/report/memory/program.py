"""A traced program as instructions that read and write arrays of one device.

Calls are inlined and loops keep their body, so that an array that a loop leaves stands
beside what one trip needs.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from maxfdl.report.memory.layouts import (
    Layout,
    Sizes,
    joined,
    part_shape,
    propagated,
    whole,
)
from maxfdl.sharding.spec import names_of

_FUSED = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bitcast_convert_type"
    " broadcast_in_dim cbrt ceil clamp concatenate convert_element_type copy_p cos cosh"
    " div dynamic_slice eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow"
    " iota is_finite le log log1p logistic lt max min mul mul_add ne neg nextafter not"
    " or pad population_count pow random_bits random_fold_in random_seed random_unwrap"
    " random_wrap real reduce_precision rem rev round rsqrt select_n shift_left"
    " shift_right_arithmetic shift_right_logical sign sin sinh slice split sqrt square"
    " stack sub tan tanh threefry2x32 xor".split()
)
"""Primitives that XLA computes in one go with others, without writing the result."""

_SAME_ARRAY = frozenset(
    "copy expand_dims name optimization_barrier pvary reduced_vary_cast reshape squeeze"
    " stop_gradient transpose".split()
)
"""Primitives that give the array that they take; transposing changes its layout."""

_CALLS = frozenset(
    "checkpoint closed_call core_call custom_jvp_call custom_vjp_call jit pjit remat"
    " remat2 run_state".split()
)


@dataclasses.dataclass(eq=False)
class Value:
    """An array, as one device holds it.

    Args:
      bytes: In the memory of the device; 0 of an array in host memory.
      shape: Of the part that the device holds.
      dtype: Name of its type.
      eqn: What computes it; None of an argument.
      role: The primitive; `stacked` of what all trips of a loop leave, `cast` of what
        is cast before a loop.
      scope: JAX's name stack, which tells the backward pass from the forward pass.
    """

    bytes: int
    shape: tuple[int, ...] = ()
    dtype: str = ""
    eqn: Any = None
    role: str = ""
    scope: str = ""


@dataclasses.dataclass(eq=False)
class Region:
    """Instructions in order, with what they are given and what they give.

    Args:
      arguments: Of a loop's body: what all trips read, what one leaves to the next,
        what belongs to one trip.
      instructions: In the order of the program.
      results: Of a loop's body: what it leaves to the next trip, then the rest.
      carried: What a trip gets from the one before and what it leaves, in pairs.
    """

    arguments: list[Value]
    instructions: "list[Instruction]"
    results: list[Value]
    carried: list[tuple[Value, Value]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Instruction:
    """What reads and writes arrays.

    Args:
      name: Of the primitive.
      ins, outs: Arrays that it reads and writes.
      is_fused: Whether it can run where its result is used.
      bodies: Of a loop, its body; of a conditional, the branches.
      carried: Of a loop, what is carried into it and out of it, in pairs.
    """

    name: str
    ins: list[Value]
    outs: list[Value]
    is_fused: bool = False
    bodies: tuple[Region, ...] = ()
    carried: list[tuple[Value, Value]] = dataclasses.field(default_factory=list)


def program_of(
    jaxpr: Any, layouts: Sequence[Layout], sizes: Sizes, platform: str
) -> Region:
    """Returns the program of a closed jaxpr.

    Args:
      jaxpr: Of the whole program, of arrays of all devices.
      layouts: How its arguments lie.
      sizes: Of the mesh axes.
      platform: That it runs on, which chooses among implementations.
    """
    return _Reader(sizes, platform).region(jaxpr.jaxpr, layouts)[0]


@dataclasses.dataclass(frozen=True)
class _Array:
    """A variable: what it holds, maybe in another shape, and how that lies."""

    value: Value
    layout: Layout


class _Reader:
    """Reads one program."""

    def __init__(self, sizes: Sizes, platform: str):
        self._sizes = sizes
        self._platform = platform
        self._cast: dict[tuple[Value, str], Value] = {}
        self._scope = ""

    def region(
        self, jaxpr: Any, layouts: Sequence[Layout]
    ) -> tuple[Region, list[Layout]]:
        """Returns instructions by themselves, and how their results lie."""
        given = [
            self._array(var.aval, layout)
            for var, layout in zip(jaxpr.invars, layouts, strict=True)
        ]
        instructions: list[Instruction] = []
        results = self._run(jaxpr, given, instructions)
        region = Region(_values(given), instructions, _values(results))
        return region, [each.layout for each in results]

    def _array(self, aval: Any, layout: Layout, eqn: Any = None) -> _Array:
        if not hasattr(aval, "shape"):  # a token
            return _Array(Value(0), layout)
        shape = part_shape(aval.shape, layout, self._sizes)
        is_on_host = aval.memory_space == jax.memory.Space.Host
        numbers = math.prod(_padded(shape) if self._platform == "tpu" else shape)
        size = 0 if is_on_host else numbers * _bits(aval.dtype) // 8
        value = Value(size, shape, str(aval.dtype), eqn)
        if eqn is not None:
            value.role = eqn.primitive.name
            value.scope = self._scope
        return _Array(value, layout)

    def _run(
        self, jaxpr: Any, given: Sequence[_Array], out: list[Instruction]
    ) -> list[_Array]:
        """Appends the instructions of a jaxpr, and returns its results."""
        env: dict[Any, _Array] = dict(zip(jaxpr.invars, given, strict=True))
        for var in jaxpr.constvars:
            aval: Any = var.aval
            env[var] = self._array(aval, whole(aval.ndim))

        def read(var: Any) -> _Array:
            if isinstance(var, core.Literal):
                return _Array(Value(0), whole(jnp.ndim(var.val)))
            return env[var]

        for eqn in jaxpr.eqns:
            results = self._equation(eqn, [*map(read, eqn.invars)], out)
            env.update(zip(eqn.outvars, results, strict=True))
        return [*map(read, jaxpr.outvars)]

    def _equation(
        self, eqn: Any, given: list[_Array], out: list[Instruction]
    ) -> list[_Array]:
        outer = self._scope
        self._scope = f"{outer}/{eqn.source_info.name_stack}"
        results = self._written(eqn, given, out)
        self._scope = outer
        return results

    def _written(
        self, eqn: Any, given: list[_Array], out: list[Instruction]
    ) -> list[_Array]:
        name = eqn.primitive.name
        if name in _CALLS:
            return self._run(_jaxpr_of(eqn), given, out)
        special = {
            "cond": self._cond,
            "scan": self._scan,
            "shard_map": self._shard_map,
            "sharding_constraint": self._pinned,
            "while": self._while,
        }
        if name in special:
            return special[name](eqn, given, out)
        layouts = propagated(eqn, [each.layout for each in given], self._sizes)
        if name in _SAME_ARRAY or _pads_nothing(eqn):
            pairs = zip(given, layouts, strict=False)
            return [_Array(each.value, layout) for each, layout in pairs]
        results = self._results(eqn, layouts)
        is_fused = name in _FUSED
        out.append(Instruction(name, _values(given), _values(results), is_fused))
        return results

    def _results(self, eqn: Any, layouts: Sequence[Layout]) -> list[_Array]:
        pairs = zip(eqn.outvars, layouts, strict=True)
        return [self._array(var.aval, layout, eqn) for var, layout in pairs]

    def _pinned(
        self, eqn: Any, given: list[_Array], out: list[Instruction]
    ) -> list[_Array]:
        """An array that is pinned so that devices hold more or less of it is copied."""
        (array,), free = given, eqn.params["unconstrained_dims"] or ()
        spec = [*map(names_of, eqn.params["sharding"].spec)]
        spec += [()] * (len(array.layout) - len(spec))
        layout = tuple(
            old if dim in free else names
            for dim, (old, names) in enumerate(zip(array.layout, spec, strict=True))
        )
        return [self._moved(eqn, array, eqn.outvars[0].aval, layout, out)]

    def _moved(
        self, eqn: Any, array: _Array, aval: Any, layout: Layout, out: list[Instruction]
    ) -> _Array:
        """Returns an array laid out otherwise."""
        moved = self._array(aval, layout, eqn)
        if moved.value.bytes == array.value.bytes:
            return _Array(array.value, layout)
        is_cut = moved.value.bytes < array.value.bytes
        out.append(Instruction("move", [array.value], [moved.value], is_cut))
        return moved

    def _shard_map(
        self, eqn: Any, given: list[_Array], out: list[Instruction]
    ) -> list[_Array]:
        """Inside, arrays are the parts along the manual axes of the devices."""
        jaxpr, manual = _jaxpr_of(eqn), eqn.params["newly_manual_axes"]
        inside = [
            self._moved(eqn, array, var.aval, _without(array.layout, manual), out)
            for array, var in zip(given, jaxpr.invars, strict=True)
        ]
        results = self._run(jaxpr, inside, out)
        return [
            _Array(array.value, _with(array.layout, spec, manual))
            for array, spec in zip(results, eqn.params["out_specs"], strict=True)
        ]

    def _cond(
        self, eqn: Any, given: list[_Array], out: list[Instruction]
    ) -> list[_Array]:
        branches, given = eqn.params["branches"], given[1:]
        if (platforms := eqn.params.get("branches_platforms")) is not None:
            mine = [
                i
                for i, names in enumerate(platforms)
                if names and self._platform in names
            ]
            chosen = mine[0] if mine else platforms.index(None)
            return self._run(branches[chosen].jaxpr, given, out)
        layouts = [each.layout for each in given]
        regions = [self.region(branch.jaxpr, layouts) for branch in branches]
        found = [joined(each) for each in zip(*(r[1] for r in regions), strict=True)]
        results, bodies = self._results(eqn, found), tuple(r[0] for r in regions)
        out.append(Instruction("cond", _values(given), _values(results), bodies=bodies))
        return results

    def _while(
        self, eqn: Any, given: list[_Array], out: list[Instruction]
    ) -> list[_Array]:
        consts = eqn.params["body_nconsts"]
        given = given[eqn.params["cond_nconsts"] :]
        body = eqn.params["body_jaxpr"].jaxpr
        return self._loop(eqn, body, given, consts, len(given) - consts, out)

    def _scan(
        self, eqn: Any, given: list[_Array], out: list[Instruction]
    ) -> list[_Array]:
        body = eqn.params["jaxpr"].jaxpr
        return self._loop(eqn, body, given, *_consts_and_carry(eqn.params), out)

    def _loop(
        self,
        eqn: Any,
        body: Any,
        given: list[_Array],
        consts: int,
        carry: int,
        out: list[Instruction],
    ) -> list[_Array]:
        """A loop whose body takes constants, what is carried, and slices."""
        stop = consts + carry
        layouts = [each.layout for each in given[:stop]]
        layouts += [each.layout[1:] for each in given[stop:]]
        region, found = self.region(body, layouts)
        after = [*map(joined, zip(layouts[consts:stop], found[:carry], strict=True))]
        if after != layouts[consts:stop]:  # it lies as the body leaves it
            region, found = self.region(
                body, [*layouts[:consts], *after, *layouts[stop:]]
            )
        region.carried = [
            *zip(region.arguments[consts:stop], region.results[:carry], strict=True)
        ]
        stacked = [((), *layout) for layout in found[carry:]]
        results = self._results(eqn, [*after, *stacked])
        for each in results[carry:]:
            each.value.role = "stacked"
        ins, outs = _values(given), _values(results)
        ins += self._cast_before(region, ins, stop, eqn.params.get("length", 1), out)
        carried = [*zip(ins[consts:stop], outs[:carry], strict=True)]
        name = eqn.primitive.name
        out.append(Instruction(name, ins, outs, bodies=(region,), carried=carried))
        return results

    def _cast_before(
        self,
        body: Region,
        ins: Sequence[Value],
        first: int,
        length: int,
        out: list[Instruction],
    ) -> list[Value]:
        """Returns copies in a narrower type of stacked arrays of which a loop needs
        only that type: XLA casts them before the loop, once for all loops."""
        users: dict[Value, list[Instruction]] = {}
        for instruction in body.instructions:
            for value in instruction.ins:
                users.setdefault(value, []).append(instruction)
        copies = []
        for stacked, part in zip(ins[first:], body.arguments[first:], strict=True):
            casts = users.get(part, [])
            if {each.name for each in casts} != {"convert_element_type"}:
                continue
            cast = casts[0].outs[0]
            if cast.bytes >= part.bytes or part in body.results:
                continue
            key = stacked, cast.dtype
            if key not in self._cast:
                shape = (length, *cast.shape)
                size = cast.bytes * length
                copy = Value(size, shape, cast.dtype, cast.eqn, "cast", cast.scope)
                out.append(Instruction("cast", [stacked], [copy]))
                self._cast[key] = copy
            copies.append(self._cast[key])
        return copies


def _consts_and_carry(params: Mapping[str, Any]) -> tuple[int, int]:
    """Returns how many constants a scan reads, and how many arrays it carries."""
    if "ft_in" not in params:  # before JAX 0.12
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def _pads_nothing(eqn: Any) -> bool:
    """Returns whether an equation pads by nothing, as kernels do to whole blocks."""
    is_pad = eqn.primitive.name == "pad"
    return is_pad and not any(map(any, eqn.params["padding_config"]))


def _values(arrays: Sequence[_Array]) -> list[Value]:
    return [array.value for array in arrays]


def _jaxpr_of(eqn: Any) -> Any:
    """Returns the inner jaxpr of a call."""
    (name,) = {"jaxpr", "call_jaxpr"}.intersection(eqn.params)
    inner = eqn.params[name]
    return getattr(inner, "jaxpr", inner)


def _without(layout: Layout, axes: Sequence[str]) -> Layout:
    return tuple(tuple(n for n in names if n not in axes) for names in layout)


def _with(layout: Layout, spec: Sequence[Any], manual: Sequence[str]) -> Layout:
    """Adds the manual axes that a spec names, which are the outer ones."""
    entries = [*map(names_of, spec)]
    entries += [()] * (len(layout) - len(entries))
    outer = [tuple(n for n in names if n in manual) for names in entries]
    return tuple((*a, *b) for a, b in zip(outer, layout, strict=True))


def _padded(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that a TPU stores, whose registers have 128 lanes.

    The last dim is a multiple of 128. Of arrays whose last dim is far shorter, XLA
    stores another dim last.
    """
    *others, last = shape or (1,)
    return (*others, -(-last // 128) * 128) if others and last >= 32 else shape


def _bits(dtype: Any) -> int:
    """Returns the bits that a number takes in memory."""
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.finfo(dtype).bits
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        return 64  # the two words of a random key
    return 8 * dtype.itemsize
