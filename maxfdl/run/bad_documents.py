"""Bad documents that a run has passed over, counted over all processes."""

import jax
import numpy as np

from maxfdl.errors import UserError


def count_bad_documents(met: list[int], skip_bad: int) -> int:
    """Returns how many documents all processes together have passed over.

    A document counts once, whatever processes met it in whatever epoch. Every process
    must call this at the same step.

    Args:
      met: Those of this process.
      skip_bad: How many there may be.

    Raises:
      UserError: At every process, if there are more.
    """
    found = len(_of_all_processes(met))
    if found > skip_bad:
        raise UserError(
            f"All processes together met {found} bad documents, and data.skip_bad"
            f" [{skip_bad}] lets fewer pass; correct those that were named, or set it"
            " higher."
        )
    return found


def _of_all_processes(documents: list[int]) -> set[int]:
    if jax.process_count() == 1:
        return set(documents)
    from jax.experimental import multihost_utils

    sizes = multihost_utils.process_allgather(np.asarray(len(documents)))
    padded = np.full(max(1, int(np.max(sizes))), -1)
    padded[: len(documents)] = documents
    return set(np.ravel(multihost_utils.process_allgather(padded)).tolist()) - {-1}
