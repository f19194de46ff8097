"""Which rows of a batch a process gives, and checks of what says so."""

from maxfdl.errors import UserError


def check_rows(data) -> None:
    """Refuses a batch that processes cannot share, a bad seed, or an empty row."""
    if not 0 <= data.seed < 2**32:
        raise UserError(f"seed [{data.seed}] must be from 0 to 2**32 - 1.")
    if data.sequence_length < 2:
        raise UserError(
            f"sequence_length [{data.sequence_length}] must be at least 2: a token and"
            " the next one, which it predicts."
        )
    if data.batch_size < 1 or data.batch_size % data.process_count:
        raise UserError(
            f"batch_size [{data.batch_size}] must be a positive multiple of the number"
            f" of processes [{data.process_count}]; every process gives the same"
            " number of rows."
        )
    if not all(0 <= share < data.process_count for share in shares_of(data)):
        raise UserError(
            f"process_index [{data.process_index}] must be from 0 to"
            f" {data.process_count - 1}."
        )


def shares_of(data) -> tuple[int, ...]:
    """Returns the shares of every batch's rows that a process gives."""
    index = data.process_index
    return (index,) if isinstance(index, int) else tuple(index)


def rows_of(data) -> list[int]:
    """Returns the rows of the global batch that a process gives, in order."""
    size = data.batch_size // data.process_count
    return [share * size + row for share in shares_of(data) for row in range(size)]
