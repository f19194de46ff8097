"""GGUF files, the format of llama.cpp, in: needs the extra `gguf`.

    loaded = gguf.load("SmolLM2-135M-Instruct.Q4_1.gguf")

A file is unpacked into a model folder as Hugging Face writes them; whatever takes
such a folder, `init_from` among them, takes it from there.
"""

from maxfdl.gguf.unpacking import load, unpack

__all__ = ["load", "unpack"]
