"""Reads and writes model folders of Hugging Face.

    loaded = hf.load("models/SmolLM2-135M-Instruct")
    hf.save("out", loaded.config, loaded.variables, source="models/...")
    hf.quantize("models/SmolLM2-135M-Instruct", "out", "int4")

`maxfdl.tensors` reads and writes the tensors, and knows no graphs.
"""

from maxfdl.hf.loading import Loaded, load
from maxfdl.hf.quantizing import quantize
from maxfdl.hf.saving import save
from maxfdl.tensors.hugging_face.folder import Folder

__all__ = ["Folder", "Loaded", "load", "quantize", "save"]
