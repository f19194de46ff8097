"""Where MaxText keeps the moments of its optimizers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from maxfdl.errors import UserError
from maxfdl.tensors.maxtext.items import Key
from maxfdl.tensors.maxtext.layout import CheckpointLayout
from maxfdl.tensors.maxtext.options import Options
from maxfdl.tensors.table import Binding


@dataclasses.dataclass(frozen=True)
class OptimizerLayout:
    """The tree of an optimizer's state.

    Args:
      orders: The moments by their names in our optimizers, and whether each is a first
        (1) or a second one (2).
      places: Where the tree of each moment lies.
      counts: Where the numbers of steps lie.
      empty: Where the tree has a None.
      constants: Arrays that never change.
      matrices: Moments of the matrices alone; the others are those of the rest. None:
        all are of all parameters.
      dtypes: In what type each moment is stored.
    """

    orders: Mapping[str, int]
    places: Mapping[str, Key]
    counts: tuple[Key, ...]
    empty: tuple[Key, ...] = ()
    constants: Mapping[Key, Any] = dataclasses.field(default_factory=dict)
    matrices: frozenset[str] | None = None
    dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def has(self, name: str, binding: Binding) -> bool:
        """Says whether a parameter has the moment `name`."""
        if binding.slots[0].collection != "params":
            return False
        if self.matrices is None:
            return True
        return self.is_matrix(name) == _is_matrix(binding)

    def is_matrix(self, name: str) -> bool:
        """Says whether the moment `name` is one of the matrices alone."""
        return self.matrices is not None and name in self.matrices

    def key(self, name: str, parameter: Key) -> Key:
        """Returns where the moment `name` of the parameter `params/params/...` is."""
        return (*self.places[name], *parameter[2:])


def moments_of(options: Options, layout: CheckpointLayout) -> OptimizerLayout:
    """Returns the tree of the optimizer that options name.

    Raises:
      UserError: If it is none that is known here.
    """
    kind = options["opt_type"]
    if kind not in _LAYOUTS:
        raise UserError(
            f"MaxText's opt_type ({kind}) must be one of {', '.join(_LAYOUTS)}, whose"
            " moments can be read; read the parameters alone."
        )
    made = _LAYOUTS[kind](options, layout)
    first = options["mu_dtype"] or options["weight_dtype"]
    dtypes = {
        name: first if order == 1 else options["weight_dtype"]
        for name, order in made.orders.items()
    }
    return dataclasses.replace(made, dtypes=dtypes)


def _adamw(options: Options, layout: CheckpointLayout) -> OptimizerLayout:
    root: Key = ("opt_state",)
    decay: Key = (*root, 1)
    if options["adamw_mask"] and layout.framework == "linen":
        decay = (*decay, "inner_state")  # of a masked transformation
    return OptimizerLayout(
        orders={"mu": 1, "nu": 2},
        places={name: (*root, 0, name, "params") for name in ("mu", "nu")},
        counts=((*root, 0, "count"), (*root, 2, "count")),
        empty=(decay,),
    )


def _adam_pax(options: Options, layout: CheckpointLayout) -> OptimizerLayout:
    return OptimizerLayout(
        orders={"mu": 1, "nu": 2},
        places={name: ("opt_state", name, "params") for name in ("mu", "nu")},
        counts=(("opt_state", "count"),),
    )


def _sgd(options: Options, layout: CheckpointLayout) -> OptimizerLayout:
    """No moments: the schedule alone counts steps."""
    root: Key = ("opt_state",)
    return OptimizerLayout(
        orders={}, places={}, counts=((*root, 1, "count"),), empty=((*root, 0),)
    )


def _muon(options: Options, layout: CheckpointLayout) -> OptimizerLayout:
    """Two optimizers; Linen keeps their chains as lists, NNX as dicts without Nones."""
    is_nnx = layout.framework == "nnx"

    def chain(name: str, place: int) -> Key:
        step = str(place) if is_nnx else place
        return ("opt_state", "inner_states", name, "inner_state", step)

    level: Key = () if is_nnx else ("params",)
    empty = ((chain("adam", 1)), chain("muon", 1), chain("muon", 2))
    return OptimizerLayout(
        orders={"mu": 1, "nu": 2, "momentum": 1},
        places={
            "mu": (*chain("adam", 0), "mu", *level),
            "nu": (*chain("adam", 0), "nu", *level),
            "momentum": (*chain("muon", 0), "mu", *level),
        },
        counts=(
            (*chain("adam", 0), "count"),
            (*chain("adam", 2), "count"),
            (*chain("muon", 0), "count"),
            (*chain("muon", 3), "count"),
        ),
        empty=() if is_nnx else empty,
        constants={
            (*chain("muon", 0), "ns_coeffs"): np.asarray(
                (3.4445, -4.7750, 2.0315), np.float32
            )
        },
        matrices=frozenset({"momentum"}),
    )


_LAYOUTS = {"adamw": _adamw, "adam_pax": _adam_pax, "sgd": _sgd, "muon": _muon}


def _is_matrix(binding: Binding) -> bool:
    """Says whether a parameter maps hidden features to hidden features."""
    declared: Any = binding.slots[0].declared
    return declared.contracted > 0 and "vocab" not in declared.axes
