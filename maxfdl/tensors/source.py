"""The tensors of a folder as the weights of a model, and lines on stderr about them."""

import sys
from collections.abc import Iterable

import jax
import numpy as np

from maxfdl.model import Model
from maxfdl.tensors.hugging_face.folder import Folder
from maxfdl.tensors.matching import check_count, left_out, match
from maxfdl.tensors.names import table_of
from maxfdl.tensors.quantized.reader import QuantizedReader
from maxfdl.tensors.quantized.rounded import Rounded
from maxfdl.tensors.safetensors import Spec
from maxfdl.tensors.table import bind, leaves_of


class Source:
    """The tensors of a folder that are the weights of a model, by their usual names.

    Attributes:
      bindings: What each is in the model.

    Raises:
      UserError: If the tensors are not those of the model, listing all that differ.
    """

    def __init__(self, folder: Folder, model: Model):
        self._folder = folder
        table, config = table_of(folder.config["model_type"]), folder.config
        leaves, self._tensors = leaves_of(model), folder.tensors()
        check_count(leaves, self._tensors, table, folder.path)
        self.bindings = bind(table, leaves)
        self._spelled = match(self.bindings, self._tensors, table, config, folder.path)
        self._unused = left_out(self._tensors, self._spelled, table, config)

    def read(self, name: str) -> np.ndarray:
        return self._tensors.read(self._spelled[name])

    def rounded(self, name: str) -> Rounded | None:
        """Returns a weight that is stored in few bits as it is; None: it is not."""
        if not isinstance(self._tensors, QuantizedReader):
            return None
        return self._tensors.rounded(self._spelled[name])

    def where(self, name: str) -> str:
        """Returns the file and the name in it of a tensor, for errors."""
        spelled = self._spelled[name]
        return f"{self._tensors.path(spelled)}: {spelled}"

    @property
    def remarks(self) -> list[str]:
        """Lines about what a user may not expect, for stderr."""
        path = self._folder.path
        unused = self._unused.items()
        return [
            *self._folder.remarks,
            *(
                f"{path}: {count} tensors of {why} are not used"
                for why, count in unused
            ),
        ]

    def specs(self) -> dict[str, Spec]:
        """Returns the shape and type of each tensor; of one in few bits, the type that
        config.json says."""
        stated = np.dtype(self._folder.config.get("dtype") or "float32")
        names = (name for binding in self.bindings for name in binding.theirs)
        spelled = {name: self._spelled[name] for name in names}
        return {
            name: (self._tensors.shape(each), self._tensors.dtype(each) or stated)
            for name, each in spelled.items()
        }


def tell(lines: Iterable[str]) -> None:
    """Prints lines on stderr, on the first process only."""
    for line in lines:
        if jax.process_index() == 0:
            print(line, file=sys.stderr, flush=True)
