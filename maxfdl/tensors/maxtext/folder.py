"""Where MaxText leaves a checkpoint, and the options that it ran with.

A run has `checkpoints/<step>/items`, an exported checkpoint `checkpoint/items`, and
`config.json` or a YAML file has the options, resolved.
"""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from maxfdl import outside
from maxfdl.errors import UserError
from maxfdl.outside import Text
from maxfdl.paths import AnyPath, as_path
from maxfdl.tensors.maxtext.items import METADATA, Items
from maxfdl.tensors.maxtext.layout import CheckpointLayout, layout_of
from maxfdl.tensors.maxtext.moments import OptimizerLayout, moments_of
from maxfdl.tensors.maxtext.names import Naming, naming_of
from maxfdl.tensors.maxtext.options import Options, resolved

CONFIG = "config.json"
CHECKPOINT, CHECKPOINTS, ITEMS = "checkpoint", "checkpoints", "items"


class MaxTextFolder:
    """A checkpoint of MaxText.

    Args:
      path: Of the run (whose newest step it is then), of one step, of its items, or of
        a folder with `checkpoint/` and `config.json`.
      options: The options, where no config.json beside the checkpoint has them.

    Raises:
      UserError: If there is no such checkpoint.
    """

    def __init__(
        self, path: str | os.PathLike, options: Mapping[str, Any] | None = None
    ):
        self.path = as_path(path).absolute()
        items = items_in(self.path)
        if items is None:
            raise UserError(
                f"{path} must be a checkpoint of MaxText: a folder with items/, or one"
                " with checkpoint/items/ or checkpoints/STEP/items/ in it, where items/"
                f" has {METADATA}, which is written last."
            )
        self.items = Items(items)
        self._options = options

    @functools.cached_property
    def options(self) -> Options:
        """What MaxText ran with, with its defaults for what is not said.

        Raises:
          UserError: If no file beside the checkpoint says it, or if it is not valid.
        """
        if self._options is not None:
            return resolved(self._options, "the options given")
        file = self._config
        if file is None:
            raise UserError(
                f"{self.path} has no {CONFIG} with MaxText's options; put one there, or"
                " give convert --maxtext_config=FILE, a JSON or YAML file of what"
                " MaxText ran with."
            )
        return resolved(outside.read_object(file).content, str(file))

    @functools.cached_property
    def layout(self) -> CheckpointLayout:
        """How the checkpoint is laid out."""
        return layout_of(self.items, self.options)

    @property
    def naming(self) -> Naming:
        """What its arrays are called."""
        return naming_of(self.options)

    @property
    def plan(self) -> OptimizerLayout:
        """Where its moments are."""
        return moments_of(self.options, self.layout)

    @property
    def stored_type(self) -> str:
        """The type of the weights: that of the embedding."""
        keys = (key for key in self.items.arrays() if key[0] != "opt_state")
        table = next(key for key in keys if "token_embedder" in key)
        return self.items.spec(table)[1].name

    @functools.cached_property
    def _config(self) -> AnyPath | None:
        """The file of options nearest to the items, in the folders around them."""
        around = [self.items.path, *self.items.path.parents][:4]
        files = (folder / CONFIG for folder in around)
        return next((file for file in files if _has_options(file)), None)


def is_maxtext(path: AnyPath) -> bool:
    """Says whether a folder looks like a checkpoint of MaxText, and not like another
    run: those here keep their state under other names."""
    return items_in(path) is not None


def items_in(path: AnyPath) -> AnyPath | None:
    """Returns the folder of the arrays: of the newest step, if there are several."""
    places = [path, path / ITEMS, path / CHECKPOINT / ITEMS]
    for folder in (path / CHECKPOINTS, path):
        places += [step / ITEMS for step in _steps(folder)]
    return next((place for place in places if (place / METADATA).is_file()), None)


def _steps(folder: AnyPath) -> list[AnyPath]:
    """Returns the folders of steps, newest first; some may be unfinished."""
    steps = [each for each in folder.glob("*") if each.name.isdecimal()]
    return sorted(steps, key=lambda each: int(each.name), reverse=True)


def _has_options(file: AnyPath) -> bool:
    if not file.is_file():
        return False
    content = outside.read_object(file).content
    return any(name in content for name in ("resolved", "decoder_block"))


def read_options(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the options in a JSON or YAML file, such as MaxText's own.

    Raises:
      UserError: If it cannot be read, or is no mapping.
    """
    if pathlib.PurePath(path).suffix not in (".yml", ".yaml"):
        return dict(outside.read_object(path).content)
    import yaml

    try:
        content = yaml.safe_load(outside.read_text(path))
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not valid YAML ({reason}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a mapping of MaxText's options.")
    name = outside.Values(str(path), content).take("model_name", Text(), "default")
    assert isinstance(name, str)
    return content
