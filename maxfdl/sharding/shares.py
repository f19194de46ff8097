"""Which rows of a batch the devices of one process hold."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Shares:
    """The shares of a batch's rows that one process feeds to its devices.

    They need not be neighbours, for a process has a block of the devices of a torus:
    on v5e:4x4, where `fsdp` cuts the rows in 16, the first process has the shares 0, 1,
    6 and 15.

    Args:
      here: Numbers of the shares, in order.
      count: In how many shares of equal size all rows are cut.
    """

    here: tuple[int, ...]
    count: int

    @classmethod
    def of(cls, parts: Iterable[int], count: int) -> "Shares":
        """Returns the fewest shares that consist of these parts of the rows, of
        `count` parts."""
        here = sorted(set(parts))

        def shares(size: int) -> list[int]:
            return sorted({part // size for part in here})

        sizes = [n for n in range(1, len(here) + 1) if count % n == 0]
        size = max(n for n in sizes if n * len(shares(n)) == len(here))
        return cls(tuple(shares(size)), count // size)

    def rows(self, batch_size: int) -> list[int]:
        """Returns the rows of a batch that are in these shares, in order."""
        size = batch_size // self.count
        return [share * size + row for share in self.here for row in range(size)]

    def local(self, rows: slice, batch_size: int) -> slice:
        """Returns where rows of the batch lie among those of this process.

        Args:
          rows: Of one device, which are all in one share.
          batch_size: Rows of the batch.
        """
        first, stop, _ = rows.indices(batch_size)
        size = batch_size // self.count
        skipped = (first // size - self.here.index(first // size)) * size
        return slice(first - skipped, stop - skipped)
