"""The run that trains a model folder of Hugging Face on."""

import pathlib
import re

import fiddle as fdl

from fdl_configs import data, optimizers
from fdl_configs.families import network_of
from fdl_configs.runs import pretrain
from maxfdl.data import ByteTokenizer, HuggingFaceTokenizer
from maxfdl.data.tokenizers.saving import in_other_format
from maxfdl.experiment import Experiment
from maxfdl.layers.parameter import DType
from maxfdl.paths import AnyPath, as_path
from maxfdl.tensors.hugging_face.folder import TOKENIZER, Folder

_LONGEST = 1024


def fine_tuning(folder: str) -> fdl.Config[Experiment]:
    """Trains on Python's own sources from the weights in `folder`, in their type.

    It has the folder's tokenizer, reads bytes if there is none, and random tokens if
    there are fewer of them than bytes. A tokenizer in another format than
    tokenizer.json is refused when it is to be read. The peak learning rate is a tenth
    of what such models were trained with, and meant to be changed.
    """
    found = Folder(folder)
    config = found.config
    model = network_of(found)
    model.dtype = model.param_dtype = _dtype(config)
    longest = config.get("max_position_embeddings") or config["n_positions"]
    run = pretrain(
        name=_name(found.path),
        model=model,
        data=_data(found, as_path(folder).absolute()),
        optimizer=optimizers.adamw(peak=2e-5, warmup_steps=20),
        steps=1000,
        batch_size=8,
        sequence_length=min(longest, _LONGEST),
    )
    run.init_from = str(as_path(folder).absolute())
    return run


def _data(folder: Folder, path: AnyPath) -> fdl.Partial:
    text = data.python_source()
    if folder.tokenizer is not None or in_other_format(folder.path) is not None:
        file = str(path / TOKENIZER)
        text.tokenizer = fdl.Config(HuggingFaceTokenizer, file=file)
    elif folder.config["vocab_size"] < ByteTokenizer().vocab_size:
        return data.synthetic()
    return text


def _dtype(config: dict) -> DType:
    """The type that config.json says the weights have."""
    dtype = config.get("dtype")
    return dtype if dtype in ("bfloat16", "float16") else "float32"


def _name(path: pathlib.Path) -> str:
    """The folder's name, as far as it may name a run."""
    name = re.sub(r"[^\w.+-]", "_", path.absolute().name)
    return name if re.match(r"\w", name) else f"model{name}"
