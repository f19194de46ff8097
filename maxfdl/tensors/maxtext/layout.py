"""How MaxText lays a training state out: which library, layers scanned or not."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from maxfdl.tensors.maxtext.items import Items, Key

Framework = Literal["linen", "nnx"]


@dataclasses.dataclass(frozen=True)
class CheckpointLayout:
    """Where MaxText keeps what.

    Both of its libraries write Linen's tree, `params/params/...`, `opt_state` and
    `step`. NNX keeps what is no parameter under `nnx_aux`: the biases by which experts
    are chosen, and random streams.

    Args:
      framework: The library.
      scanned: Whether the layers are stacks of arrays.
      axis: Index of the dim of layers in a stacked parameter.
      whole: Whether there is a training state, and not parameters alone.
    """

    framework: Framework
    scanned: bool
    axis: int = 1
    whole: bool = True

    def key(self, collection: str, path: str) -> Key:
        """Returns where an array of a collection, `params` or `state`, lies."""
        names = tuple(path.split("/"))
        if collection == "state" and self.framework == "nnx":
            return ("nnx_aux", "model", *names)
        if self.whole or self.framework == "linen":
            return ("params", "params", *names)
        return (*names, "value")

    def axis_of(self, collection: str) -> int:
        """Returns the index of the dim of layers in stacks of a collection."""
        apart = collection == "state" and self.framework == "nnx"
        return 0 if apart else self.axis


def layout_of(items: Items, options: Mapping[str, Any]) -> CheckpointLayout:
    """Returns the layout of a checkpoint, as its tree and its options tell it."""
    keys = items.arrays()
    names = {str(part) for key in keys for part in key}
    has_parameters = any(key[0] == "params" for key in keys)
    whole = any(key[0] == "opt_state" for key in keys)
    is_nnx = any(key[0] == "nnx_aux" for key in keys) or not has_parameters
    return CheckpointLayout(
        framework="nnx" if is_nnx else "linen",
        scanned=not any(map(_is_numbered, _under_decoder(keys))),
        axis=options["param_scan_axis"],
        whole=whole or (has_parameters and is_nnx and "nnx_aux" in names),
    )


def _under_decoder(keys: Iterable[Key]) -> set[str]:
    """Returns the names of what is directly in the decoder."""
    return {
        str(key[key.index("decoder") + 1])
        for key in keys
        if "decoder" in key and key[0] != "nnx_aux"
    }


def _is_numbered(name: str) -> bool:
    """Says whether a name is that of a single layer, such as `layers_3`."""
    stem, _, number = name.rpartition("_")
    return number.isdecimal() and stem.endswith("layers")
