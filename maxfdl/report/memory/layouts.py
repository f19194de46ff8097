"""How arrays lie along the mesh axes that XLA shards over by itself.

A layout has, for each dim of an array, the names of the mesh axes that cut it. XLA
propagates layouts from arguments and pinned arrays through a program. So does this, in
the order of the program and by the rules of its commonest operations. Of other
operations, a result that has the shape of an operand lies as that does, and any other
is whole on every device.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Layout = tuple[tuple[str, ...], ...]
Sizes = Mapping[str, int]
Shape = Sequence[int]


def whole(ndim: int) -> Layout:
    """Returns the layout of an array that no mesh axis cuts."""
    return ((),) * ndim


def joined(layouts: Sequence[Layout]) -> Layout:
    """Returns the layout of what is computed of equally shaped arrays: each dim lies as
    in the first of them that is cut there."""
    cut = [next(filter(None, dims), ()) for dims in zip(*layouts, strict=True)]
    return _once(cut)


def part_shape(shape: Shape, layout: Layout, sizes: Sizes) -> tuple[int, ...]:
    """Returns the shape of what one device holds of an array."""
    return tuple(
        -(-size // _parts(names, sizes))
        for size, names in zip(shape, layout, strict=True)
    )


def propagated(eqn: Any, layouts: Sequence[Layout], sizes: Sizes) -> list[Layout]:
    """Returns the layouts of the results of an equation without an inner jaxpr.

    Args:
      eqn: Of a jaxpr.
      layouts: Of its operands.
      sizes: Of the mesh axes.
    """
    rule = _RULES.get(eqn.primitive.name, _like_an_operand)
    shapes = [getattr(out.aval, "shape", ()) for out in eqn.outvars]
    return [rule(eqn, layouts, shape, sizes) for shape in shapes]


def _parts(names: Sequence[str], sizes: Sizes) -> int:
    return math.prod(sizes[name] for name in names)


def _once(dims: Sequence[tuple[str, ...]]) -> Layout:
    """Leaves out mesh axes that cut an earlier dim already."""
    taken: set[str] = set()
    out = []
    for names in dims:
        out.append(tuple(name for name in names if name not in taken))
        taken.update(names)
    return tuple(out)


def _like_an_operand(
    eqn: Any, layouts: Sequence[Layout], shape: Shape, sizes: Sizes
) -> Layout:
    alike = [
        layout
        for var, layout in zip(eqn.invars, layouts, strict=True)
        if getattr(var.aval, "shape", None) == shape
    ]
    return joined(alike) if alike else whole(len(shape))


def _broadcast(
    eqn: Any, layouts: Sequence[Layout], shape: Shape, sizes: Sizes
) -> Layout:
    out: list[tuple[str, ...]] = [()] * len(shape)
    source = eqn.invars[0].aval.shape
    for i, dim in enumerate(eqn.params["broadcast_dimensions"]):
        if source[i] == shape[dim]:
            out[dim] = layouts[0][i]
    return tuple(out)


def _transpose(
    eqn: Any, layouts: Sequence[Layout], shape: Shape, sizes: Sizes
) -> Layout:
    return tuple(layouts[0][dim] for dim in eqn.params["permutation"])


def _without(param: str) -> Callable[..., Layout]:
    """Returns the rule of operations whose parameter lists dims that go."""

    def rule(eqn: Any, layouts: Sequence[Layout], shape: Shape, sizes: Sizes) -> Layout:
        kept = [x for dim, x in enumerate(layouts[0]) if dim not in eqn.params[param]]
        return tuple(kept)

    return rule


def _expand(eqn: Any, layouts: Sequence[Layout], shape: Shape, sizes: Sizes) -> Layout:
    old, new = iter(layouts[0]), eqn.params["dimensions"]
    return tuple(() if dim in new else next(old) for dim in range(len(shape)))


def _reshape(eqn: Any, layouts: Sequence[Layout], shape: Shape, sizes: Sizes) -> Layout:
    """Dims that are merged or split: the first takes the mesh axes, if it can."""
    out: list[tuple[str, ...]] = [()] * len(shape)
    for old, new in _regrouped(eqn.invars[0].aval.shape, shape):
        names = layouts[0][old]
        if shape[new] % _parts(names, sizes) == 0:
            out[new] = names
    return tuple(out)


def _regrouped(old: Shape, new: Shape) -> Iterator[tuple[int, int]]:
    """Yields the first dims of the groups that a reshape keeps together."""
    olds = [(dim, size) for dim, size in enumerate(old) if size != 1]
    news = [(dim, size) for dim, size in enumerate(new) if size != 1]
    while olds and news and 0 not in (*old, *new):
        (first, left), (other, right) = olds.pop(0), news.pop(0)
        yield first, other
        while left != right:
            if left < right:
                left *= olds.pop(0)[1]
            else:
                right *= news.pop(0)[1]


def _dot(eqn: Any, layouts: Sequence[Layout], shape: Shape, sizes: Sizes) -> Layout:
    contracted, batch = eqn.params["dimension_numbers"]
    left, right = layouts[:2]
    shared = [left[i] or right[j] for i, j in zip(*batch, strict=True)]
    free = [
        names
        for side in (0, 1)
        for dim, names in enumerate(layouts[side])
        if dim not in (*contracted[side], *batch[side])
    ]
    return _once([*shared, *free])


def _same_sizes(
    eqn: Any, layouts: Sequence[Layout], shape: Shape, sizes: Sizes
) -> Layout:
    """Dims that keep their size lie as they did."""
    source = eqn.invars[0].aval.shape
    if len(source) != len(shape):
        return whole(len(shape))
    dims = zip(source, shape, layouts[0], strict=True)
    return tuple(names if old == new else () for old, new, names in dims)


def _gather(eqn: Any, layouts: Sequence[Layout], shape: Shape, sizes: Sizes) -> Layout:
    """Dims of the indices lie as these, slices that are whole as the operand."""
    numbers = eqn.params["dimension_numbers"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    sizes_of_slices = eqn.params["slice_sizes"]
    slices = iter(
        [
            names if size == sizes_of_slices[dim] else ()
            for dim, (size, names) in enumerate(
                zip(eqn.invars[0].aval.shape, layouts[0], strict=True)
            )
            if dim not in gone
        ]
    )
    indices, offsets = iter(layouts[1]), numbers.offset_dims
    return _once([next(slices if d in offsets else indices) for d in range(len(shape))])


def _first(eqn: Any, layouts: Sequence[Layout], shape: Shape, sizes: Sizes) -> Layout:
    return layouts[0]


_RULES: dict[str, Callable[..., Layout]] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _without("dimensions"),
    "expand_dims": _expand,
    "reshape": _reshape,
    "dot_general": _dot,
    "gather": _gather,
    **dict.fromkeys(("dynamic_update_slice", "scatter", "scatter-add"), _first),
    **dict.fromkeys(
        "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod"
        " reduce_sum".split(),
        _without("axes"),
    ),
    **dict.fromkeys(
        "all_gather concatenate dynamic_slice pad reduce_scatter slice sort split"
        " top_k".split(),
        _same_sizes,
    ),
}
