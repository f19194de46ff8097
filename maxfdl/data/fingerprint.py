"""Fingerprints of text, by which a resumed run notices that its text has changed."""

import dataclasses
import json
import zlib
from collections.abc import Collection
from typing import Any, NamedTuple, Protocol, runtime_checkable

from maxfdl.data.bad_documents import BadDocumentError

_NUM_SAMPLES = 16
_MOST_PARTS = 1000


class Part(NamedTuple):
    """A part of a source that may change: a file, or a document.

    Args:
      name: For error messages; a part that is only renamed is the same.
      size: In bytes.
      digest: Of its content, or of samples of it.
    """

    name: str
    size: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """A fingerprint of a source: one of each of its parts.

    Args:
      kind: What it is, with the settings that decide what a document is.
      parts: In their order.
    """

    kind: str
    parts: list[Part]

    @classmethod
    def of_many(cls, kind: str, parts: list[Part]) -> "Fingerprint":
        """Joins neighbours if there are over 1,000 parts, to keep states small."""
        size = -(-len(parts) // _MOST_PARTS)
        if size > 1:
            groups = (parts[i : i + size] for i in range(0, len(parts), size))
            parts = [_joined(group) for group in groups]
        return cls(kind, parts)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "parts": [list(part) for part in self.parts]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Fingerprint":
        return cls(value["kind"], [Part(*part) for part in value["parts"]])

    @property
    def name(self) -> str:
        """A short name, which the user may give as `accept_source`."""
        return f"text-{zlib.crc32(json.dumps(self.to_json()).encode()):08x}"

    def difference(self, saved: "Fingerprint") -> str:
        """Says what differs from the source that was saved, after its name.

        Returns nothing if they are the same.
        """
        if self.kind != saved.kind:
            return f"is {self.kind}, but was {saved.kind}"
        return _other_parts(self.parts, saved.parts)


def _joined(parts: list[Part]) -> Part:
    digest = zlib.crc32(repr([part[1:] for part in parts]).encode())
    name = f"{parts[0].name} to {parts[-1].name}"
    return Part(name, sum(part.size for part in parts), f"{digest:08x}")


def _other_parts(here: list[Part], saved: list[Part]) -> str:
    """Says which part differs; nothing if none does."""
    if len(here) != len(saved):
        names, were = ([part.name for part in parts] for parts in (here, saved))
        if gone := [name for name in were if name not in names]:
            return f"lacks [{gone[0]}], which it had"
        if new := [name for name in names if name not in were]:
            return f"has [{new[0]}], which it did not have"
        return f"has {len(here)} parts, but had {len(saved)}"
    for part, was in zip(here, saved, strict=True):
        if part[1:] != was[1:]:
            return (
                f"has changed: [{part.name}] ({part.size:,} bytes) is not what it was"
                f" ({was.size:,} bytes)"
            )
    return ""


@runtime_checkable
class Fingerprinted(Protocol):
    """A source with a better fingerprint than samples of its documents."""

    def fingerprint(self, mended: Collection[int]) -> Fingerprint:
        """Returns the fingerprint of the documents.

        Args:
          mended: Documents that could not be read, and may be repaired by now. They
            are left out where that is possible.
        """
        ...


def fingerprint_of(source: Any, mended: Collection[int]) -> Fingerprint:
    """Returns the source's own fingerprint, else one of 16 of its documents.

    Synthetic batches have no source and an empty fingerprint.
    """
    if source is None:
        return Fingerprint("None", [])
    if isinstance(source, Fingerprinted):
        return source.fingerprint(mended)
    last = len(source) - 1
    indices = sorted({last * i // (_NUM_SAMPLES - 1) for i in range(_NUM_SAMPLES)})
    parts = [_sample(source, index) for index in indices if index not in mended]
    return Fingerprint(f"{type(source).__name__} of {last + 1} documents", parts)


def _sample(source: Any, index: int) -> Part:
    try:
        text = source[index]
    except BadDocumentError as error:
        text = error.problem
    return part_of_text(f"document {index}", text)


def part_of_text(name: str, text: str) -> Part:
    data = text.encode("utf-8", errors="surrogatepass")
    return Part(name, len(data), f"{zlib.crc32(data):08x}")
