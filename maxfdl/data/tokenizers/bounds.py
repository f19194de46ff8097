"""Check of token ids against the model's vocabulary size."""

from collections.abc import Sequence

import numpy as np

from maxfdl.data.tokenizers.tokenizer import Tokenizer
from maxfdl.errors import UserError


def check_ids(
    ids: Sequence[int] | np.ndarray, tokenizer: Tokenizer, vocab_size: int
) -> None:
    """Refuses ids that a model with `vocab_size` rows cannot look up.

    Raises:
      UserError: With the text of the first such id.
    """
    array = np.asarray(ids)
    beyond = array[array >= vocab_size]
    if len(beyond):
        raise UserError(
            f"the text holds {tokenizer.token(int(beyond[0]))!r}, which is token"
            f" {beyond[0]}, but model.vocab_size is {vocab_size}: the highest id that"
            f" the model knows is {vocab_size - 1}; take it out of the text, or use the"
            " tokenizer of the model."
        )
