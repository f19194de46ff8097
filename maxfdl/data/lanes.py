"""Which documents feed which rows of the batch, whatever the number of processes.

The global batch is made by *lanes*. Lane `l` of `L` packs documents l, l + L, l + 2L,
... of the shuffled order and gives `batch_size / L` consecutive rows to every batch.
A process runs the lanes that its rows come from. So the global batch is the same for
every number of processes, and each tokenises its own share only.

Each lane has several *tracks* that give a row in turn, so that the next batch does not
go on where the last one left off in the same few documents. Track `t` of `S` in lane
`l` packs documents l + t L, l + (t + S) L, ...; a resumable place is three integers a
track.

`L` is the largest divisor of the batch size for which every lane can begin with a
document of its own, and each track has four documents at least. Tracks go through
the corpus at their own pace: after one epoch's worth of tokens some documents
may have been seen twice and others not yet.
"""

import dataclasses
import math

from maxfdl.data.documents import Documents
from maxfdl.data.packing import Packing, PieceReader, Row
from maxfdl.data.rows import rows_of


class Track:
    """One stream of rows. Its place: where the open rows began, and how many went."""

    def __init__(self, reader: PieceReader, packing: Packing, length: int):
        self._reader = reader
        self._packing = packing
        self._length = length
        self._rows: list[Row] = []
        self._given = 0
        self._began = reader.place

    def next_row(self) -> Row:
        if self._given == len(self._rows):
            self._pack()
        self._given += 1
        return self._rows[self._given - 1]

    @property
    def place(self) -> tuple[int, int, int]:
        if self._given == len(self._rows):
            return *self._reader.place, 0
        return *self._began, self._given

    def seek(self, done: int, offset: int, given: int) -> None:
        self._reader.seek(done, offset)
        self._rows, self._given, self._began = [], 0, (done, offset)
        if given:
            self._pack()
            self._given = given

    def _pack(self) -> None:
        self._began = self._reader.place
        self._rows = self._packing(self._reader, self._length)
        self._given = 0


class Lane:
    """Tracks that give a row each in turn. Its place: whose turn, and their places."""

    def __init__(self, tracks: list[Track]):
        self._tracks = tracks
        self._turn = 0

    def next_row(self) -> Row:
        row = self._tracks[self._turn].next_row()
        self._turn = (self._turn + 1) % len(self._tracks)
        return row

    @property
    def place(self) -> list[int]:
        return [self._turn, *(n for track in self._tracks for n in track.place)]

    def seek(self, place: list[int]) -> None:
        self._turn = place[0]
        for i, track in enumerate(self._tracks):
            track.seek(*place[1 + 3 * i : 4 + 3 * i])


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanePlan:
    """How the rows of a batch are divided into lanes and among processes.

    Args:
      interleave: Tracks that a lane has, if there are documents for them.
      process_index, process_count: As in `TextData`.
    """

    batch_size: int
    interleave: int
    num_documents: int
    process_index: int | tuple[int, ...]
    process_count: int

    @property
    def num_lanes(self) -> int:
        fewest = min(self.batch_size, self.num_documents)
        return next(n for n in range(fewest, 0, -1) if self.batch_size % n == 0)

    @property
    def num_tracks(self) -> int:
        return max(1, min(self.interleave, self.num_documents // (4 * self.num_lanes)))

    @property
    def rows_per_lane(self) -> int:
        return self.batch_size // self.num_lanes

    @property
    def rows(self) -> list[int]:
        """The rows of the global batch that this process gives, in order."""
        return rows_of(self)

    @property
    def lanes(self) -> list[int]:
        """The lanes that these rows come from; another process may run them too."""
        return [*dict.fromkeys(row // self.rows_per_lane for row in self.rows)]

    @property
    def step(self) -> int:
        """How far apart the documents of one track are: the number of all tracks."""
        return self.num_lanes * self.num_tracks

    @property
    def shift(self) -> int:
        """How far to move an order that is not shuffled from one epoch to the next.

        Without that a track would get the same documents in every epoch, if the number
        of tracks and of documents have a common factor. They may all be empty.
        """
        return int(math.gcd(self.step, self.num_documents) > 1)

    def make_lanes(
        self, documents: Documents, packing: Packing, length: int
    ) -> list[Lane]:
        step = self.step

        def make_track(first: int) -> Track:
            return Track(PieceReader(documents, first, step), packing, length)

        return [
            Lane([make_track(first) for first in range(lane, step, self.num_lanes)])
            for lane in self.lanes
        ]

    def next_rows(self, lanes: list[Lane]) -> list[Row]:
        """Takes the next row of the global batch for each of `rows`."""
        size = self.rows_per_lane
        given = {
            number * size + place: lane.next_row()
            for number, lane in zip(self.lanes, lanes, strict=True)
            for place in range(size)
        }
        return [given[row] for row in self.rows]
