"""The training stream as a Grain dataset, and the iterator that a run saves.

The only file of `maxfdl.data` that imports Grain at its top, which takes about 0.6 s;
it is imported when a stream is asked for.
"""

import atexit
import weakref
from collections.abc import Callable
from typing import Any

import grain

from maxfdl.data.bad_documents import BadDocuments
from maxfdl.data.documents import Documents
from maxfdl.data.identity import Identity
from maxfdl.data.lanes import LanePlan
from maxfdl.data.packing import Batch, Packing, make_batch
from maxfdl.errors import UserError

_FOREVER = 2**62


def made_forever(make: Callable[[int], Batch]) -> grain.IterDataset:
    """Returns `make(0)`, `make(1)`, ... without end."""
    numbers = grain.MapDataset.range(_FOREVER).map(make)
    return numbers.to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    )


def prefetched(batches: grain.IterDataset, size: int) -> grain.DatasetIterator:
    """Returns an iterator whose next `size` batches a background thread makes."""
    if not size:
        return iter(batches)
    iterator = iter(
        grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=size)
    )
    # Grain closes it in __del__, which prints a traceback when that comes so late that
    # the interpreter has taken Grain's modules apart.
    atexit.register(_close, weakref.ref(iterator))
    return iterator


def _close(reference: "weakref.ref[grain.DatasetIterator]") -> None:
    if iterator := reference():
        iterator.close()
        iterator.close = lambda: None


class SavedBatches(grain.DatasetIterator):
    """Batches whose state also says what they are made of.

    Once it has failed it fails again at every call, and its state stays that after the
    last batch that it gave.

    Args:
      batches: The iterator that makes them.
      identity: What they are made of.
      bad: The bad documents that it has met, in making batches that come later too.
    """

    def __init__(
        self,
        batches: grain.DatasetIterator,
        identity: Identity,
        bad: BadDocuments | None = None,
    ):
        super().__init__(batches)
        self._identity = identity
        self._bad = bad or BadDocuments()
        self._failure: Exception | None = None

    def __next__(self) -> Batch:
        if self._failure is not None:
            raise self._failure
        try:
            return next(self._parent)
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._identity.note(self._bad.known)

    @property
    def skip_bad(self) -> int:
        """How many documents may be bad."""
        return self._bad.limit

    @property
    def bad_documents(self) -> list[int]:
        """The bad documents passed over in the batches given so far, by their index."""
        return self._parent.get_state().get("bad", [])

    def get_state(self) -> dict[str, Any]:
        """Returns the place after the last batch; reads no file, for it may be gone."""
        return {
            "batches": self._parent.get_state(),
            "made_of": self._identity.to_json(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        saved = state["made_of"]
        self._identity.refuse_another(saved if isinstance(saved, list) else [saved])
        self._parent.set_state(state["batches"])
        self._failure = None


class PackedBatches(grain.IterDataset):
    """Batches of packed rows, without end."""

    def __init__(
        self,
        documents: Documents,
        *,
        plan: LanePlan,
        packing: Packing,
        length: int,
        padding: int,
    ):
        super().__init__()
        self.documents = documents
        self.plan = plan
        self.packing = packing
        self.length = length
        self.padding = padding

    def __iter__(self) -> grain.DatasetIterator:
        return _PackedBatchesIterator(self)


class _PackedBatchesIterator(grain.DatasetIterator):
    """Its state is plain integers: every lane's place, and what it is a place in.

    The bad documents met so far belong to it, for they decide which one is too many.
    """

    def __init__(self, dataset: PackedBatches):
        super().__init__()
        self._dataset = dataset
        self._plan = dataset.plan
        self._lanes = dataset.plan.make_lanes(
            dataset.documents, dataset.packing, dataset.length
        )

    def __next__(self) -> Batch:
        rows = self._plan.next_rows(self._lanes)
        return make_batch(rows, self._dataset.length, self._dataset.padding)

    def get_state(self) -> dict[str, Any]:
        return {
            "bad": self._dataset.documents.bad.met,
            "documents": self._plan.num_documents,
            "lanes": self._plan.num_lanes,
            "tracks": self._plan.num_tracks,
            "places": self._places(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes the places of this process's lanes from a state that has them."""
        self._refuse_another_stream(state, self.get_state())
        self._dataset.documents.bad.restart(state["bad"])
        for number, lane in zip(self._plan.lanes, self._lanes, strict=True):
            place = state["places"][number]
            assert place is not None, "join the states of all first"
            lane.seek(place)

    def _places(self) -> list[list[int] | None]:
        """Returns the place of each lane; None of those that are not run here."""
        here = dict(zip(self._plan.lanes, self._lanes, strict=True))
        numbers = range(self._plan.num_lanes)
        return [here[n].place if n in here else None for n in numbers]

    def _refuse_another_stream(self, state: dict, here: dict) -> None:
        if state["documents"] != here["documents"]:
            raise UserError(
                f"TextData.source has {here['documents']} documents to train on, but"
                f" had {state['documents']} when this run was saved; resume with the"
                " same files and eval_fraction, or start a new run."
            )
        shapes = [(each["lanes"], each["tracks"]) for each in (state, here)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"TextData state is of {shapes[0][0]} lanes of {shapes[0][1]} tracks,"
                f" and here are {shapes[1][0]} of {shapes[1][1]}; resume with the"
                " batch_size and data.interleave that the run was saved with."
            )
