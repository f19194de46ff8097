"""Hugging Face folders in and out.

    loaded = hf.load("models/SmolLM2-135M-Instruct")
    hf.save("out", loaded.config, loaded.variables, source="models/...")

What a training run needs of it, `weights.py` and below, knows no graphs.
"""

from maxfdl.hf.folder import Folder
from maxfdl.hf.loading import Loaded, load
from maxfdl.hf.saving import save

__all__ = ["Folder", "Loaded", "load", "save"]
