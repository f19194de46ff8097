"""Settings that decide the batches, by which a resumed run notices a difference."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from maxfdl.data.fingerprint import Fingerprint, fingerprint_of
from maxfdl.errors import UserError


class Identity:
    """Settings that decide what is in the batches, and the source of their text.

    Args:
      name: Class that has the settings, for errors.
      settings: Returns them as JSON values; called when first needed.
      source: The documents; None where there are none.
      accept: Name of the fingerprint of a source that need not be the one saved.
    """

    def __init__(
        self,
        name: str,
        settings: Callable[[], Mapping[str, Any]],
        source: Any = None,
        accept: str | None = None,
    ):
        self._name = name
        self._make_settings = settings
        self._source = source
        self._accept = accept
        self._noted: tuple[Collection[int], Fingerprint] | None = None

    def note(self, mended: Collection[int]) -> None:
        """Takes the source's fingerprint, for a state that is saved later.

        The source may have changed by then. One that has changed already keeps the
        fingerprint it had.

        Args:
          mended: Documents that could not be read: they may be mended before the run is
            resumed.
        """
        if self._noted is None or self._noted[0] != mended:
            try:
                self._noted = mended, fingerprint_of(self._source, mended)
            except UserError:
                if self._noted is None:
                    raise

    def to_json(self) -> dict[str, Any]:
        """Returns the identity as JSON values, with the fingerprint noted last."""
        self.note(set() if self._noted is None else self._noted[0])
        assert self._noted is not None
        mended, fingerprint = self._noted
        return {
            "settings": dict(self._settings),
            "mended": sorted(mended),
            "source": fingerprint.to_json(),
        }

    def refuse_another(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Raises a UserError that names the first difference from what was saved.

        The source comes first: a tokenizer that is trained on it changes with it.

        Args:
          saved: What the processes of the run saved, which all read the same source.
            They differ in the bad documents that each has met; it is enough if the
            source is what it was but for those of one process.
        """
        here = fingerprint_of(self._source, ())
        if here.name != self._accept:
            problems = [self._difference(each) for each in saved]
            if all(problems):
                raise UserError(
                    f"{self._name}.source {problems[0]} when this run was saved; put"
                    " back what was there, start a new run in another --run_dir, or go"
                    " on with what is there now by"
                    f" data.accept_source={here.name}."
                )
        for key, value in self._settings.items():
            was = saved[0]["settings"].get(key)
            if value != was:
                raise UserError(
                    f"{self._name}.{key} is {value}, but was {was} when this run was"
                    " saved; set it back, or start a new run in another --run_dir."
                )

    def _difference(self, saved: Mapping[str, Any]) -> str:
        """Says what has changed in the source but for documents that were bad."""
        now = fingerprint_of(self._source, saved["mended"])
        return now.difference(Fingerprint.from_json(saved["source"]))

    @functools.cached_property
    def _settings(self) -> Mapping[str, Any]:
        return self._make_settings()


def described(node: Any) -> str:
    """Returns the name of the class of a part, with its fields if it is a dataclass."""
    return repr(node) if dataclasses.is_dataclass(node) else type(node).__name__
