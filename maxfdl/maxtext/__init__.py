"""Reads and writes checkpoints of MaxText.

    loaded = maxtext.load("out/run/checkpoints/2000")
    maxtext.save("out", loaded.config, loaded.variables, loaded.state, layout="linen")

`maxfdl.tensors.maxtext` reads and writes the arrays, and knows no graphs.
"""

from maxfdl.maxtext.loading import Loaded, load
from maxfdl.maxtext.saving import save
from maxfdl.tensors.maxtext.folder import MaxTextFolder

__all__ = ["Loaded", "MaxTextFolder", "load", "save"]
