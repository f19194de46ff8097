"""Settings that decide the batches, by which a resumed run notices a difference."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
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

    def refuse_another(self, saved: dict[str, Any]) -> None:
        """Raises a UserError that names the first difference from what was saved.

        The source comes first: a tokenizer that is trained on it changes with it.
        """
        here = fingerprint_of(self._source, ())
        if here.name != self._accept:
            without_mended = fingerprint_of(self._source, saved["mended"])
            was = Fingerprint.from_json(saved["source"])
            if problem := without_mended.difference(was):
                raise UserError(
                    f"{self._name}.source {problem} when this run was saved; put back"
                    " what was there, start a new run in another --run_dir, or go on"
                    f" with what is there now by data.accept_source={here.name}."
                )
        for key, value in self._settings.items():
            was = saved["settings"].get(key)
            if value != was:
                raise UserError(
                    f"{self._name}.{key} is {value}, but was {was} when this run was"
                    " saved; set it back, or start a new run in another --run_dir."
                )

    @functools.cached_property
    def _settings(self) -> Mapping[str, Any]:
        return self._make_settings()


def described(node: Any) -> str:
    """Returns the name of the class of a part, with its fields if it is a dataclass."""
    return repr(node) if dataclasses.is_dataclass(node) else type(node).__name__
