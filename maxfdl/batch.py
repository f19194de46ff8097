"""What a batch holds: data declares which arrays it gives, a loss which it needs."""

from collections.abc import Mapping
from typing import NamedTuple

from maxfdl.errors import UserError


class Field(NamedTuple):
    """One array of a batch.

    Fields:
      dtype: Type of its numbers.
      axes: Logical name of each dim, which the sharding rules map to mesh axes.
      row: Size of each dim after the first, which counts rows; None is the
        experiment's `sequence_length`.
    """

    dtype: str
    axes: tuple[str, ...] = ("batch", "sequence")
    row: tuple[int | None, ...] = (None,)

    def shape(self, batch_size: int, sequence_length: int) -> tuple[int, ...]:
        sizes = (sequence_length if size is None else size for size in self.row)
        return (batch_size, *sizes)


Fields = Mapping[str, Field]

MODEL_INPUTS: Fields = {
    "tokens": Field("int32"),
    "segment_ids": Field("int32"),
    "positions": Field("int32"),
}
"""What a language model reads."""

NEXT_TOKENS: Fields = {"targets": Field("int32"), "weights": Field("float32")}
"""What is predicted at each place, and how much that counts."""


def check_fields(given: Fields, needed: Fields, data: str, loss: str) -> None:
    """Refuses data that lacks a field, or gives it in another type or shape.

    Raises:
      UserError: Naming the data, the loss, and all such fields.
    """
    wrong = [name for name, field in needed.items() if given.get(name) != field]
    if wrong:
        have = ", ".join(given) or "nothing"
        raise UserError(
            f"Experiment data [{data}] gives {have}, but the model and loss [{loss}]"
            f" need {', '.join(_described(name, needed[name]) for name in wrong)}; take"
            " data that declares these, or another loss."
        )


def _described(name: str, field: Field) -> str:
    return f"{name} ({field.dtype} [{', '.join(field.axes)}])"
