"""What all kinds of data have in common."""

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from maxfdl.batch import MODEL_INPUTS, NEXT_TOKENS, Fields

if TYPE_CHECKING:
    from maxfdl.data.stream import SavedBatches
    from maxfdl.data.tokenizers import Tokenizer


class Data:
    """Base: batches for training and for evaluation.

    `fields` declares the arrays of a batch. An instance gives the rows of one process,
    and has the `tokenizer` that its ids belong to.
    """

    fields: ClassVar[Fields] = {**MODEL_INPUTS, **NEXT_TOKENS}

    if TYPE_CHECKING:

        @property
        def tokenizer(self) -> Tokenizer: ...

    def train(self) -> "SavedBatches":
        """Returns this process's rows of every training batch, without end.

        The iterator has `get_state` and `set_state`, in JSON values.
        """
        raise NotImplementedError

    def evaluation(self, num_batches: int) -> list[dict[str, np.ndarray]]:
        """Returns this process's rows of batches that are the same in each run."""
        raise NotImplementedError
