"""GPT-3 as Paxml keeps it: the checkpoint that MLPerf's training of 175B starts from.

A folder holds one zarr array for each leaf of the training state, named by its path in
the tree. Layers are stacked along the first dim. Paxml computes what MaxText's gpt3
does, with the same weights: a scale is kept without its 1, and scores are scaled as the
network runs.
"""

import dataclasses
import functools
import os
from typing import Any

import numpy as np

from maxfdl.errors import UserError
from maxfdl.paths import AnyPath, as_path, kvstore
from maxfdl.tensors.layouts import Layout
from maxfdl.tensors.maxtext.groups import Group
from maxfdl.tensors.maxtext.items import (
    Entry,
    Key,
    chunks_of,
    read_array,
    resolved_array,
    tensorstore,
    write_array,
)
from maxfdl.tensors.maxtext.layouts import Plus, Same, Side
from maxfdl.tensors.maxtext.moments import OptimizerLayout
from maxfdl.tensors.maxtext.names import LAYER_STACK, Naming
from maxfdl.tensors.maxtext.options import Options, resolved
from maxfdl.tensors.table import Row

_PARAMS = "params.lm"
_LAYERS = f"{_PARAMS}.transformer.repeat.sub.x_layers_0"
_VARIABLES = "mdl_vars"
_TABLE = f"{_PARAMS}.softmax.logits_ffn.linear.w"
_COUNT = "opt_states_0.no_prefix_0.count"


@dataclasses.dataclass(frozen=True)
class Transposed(Layout):
    """Theirs is ours with the last two dims exchanged."""

    def to_ours(self, theirs, declared, config):
        return [x.swapaxes(-1, -2) for x in theirs]

    def to_theirs(self, ours, declared, config):
        return [x.swapaxes(-1, -2) for x in ours]


@dataclasses.dataclass(frozen=True)
class OutputsFirst(Layout):
    """Theirs is [outputs, heads, width], ours [heads, width, outputs]."""

    def to_ours(self, theirs, declared, config):
        return [x.swapaxes(-3, -2).swapaxes(-2, -1) for x in theirs]

    def to_theirs(self, ours, declared, config):
        return [x.swapaxes(-2, -1).swapaxes(-3, -2) for x in ours]


def _norm(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        Row(f"{theirs}.scale", f"{ours}/offset", Same()),
        Row(f"{theirs}.scale", f"{ours}/scale", Plus(-1.0)),
        Row(f"{theirs}.bias", f"{ours}/bias", Same()),
    )


_LAYER = f"{LAYER_STACK}."
_QKV = ("attention/query", "attention/key", "attention/value")
ROWS = (
    Row(_TABLE, "embedding/table", Transposed()),
    Row(f"{_PARAMS}.position_emb.emb_var", "position_embedding/table", Same()),
    *_norm(f"{_PARAMS}.final_ln", "final_norm"),
    *_norm(f"{_LAYER}layer_norm", "attention_norm"),
    Row(
        f"{_LAYER}self_attention.combined_qkv.w",
        tuple(f"{each}/kernel" for each in _QKV),
        Side(-4),
    ),
    Row(
        f"{_LAYER}self_attention.combined_qkv.b",
        tuple(f"{each}/bias" for each in _QKV),
        Side(-3),
    ),
    Row(f"{_LAYER}self_attention.post.w", "attention/out/kernel", OutputsFirst()),
    Row(f"{_LAYER}self_attention.post.b", "attention/out/bias", Same()),
    *_norm(f"{_LAYER}ff_layer.layer_norm", "mlp_norm"),
    *(
        row
        for theirs, ours in (("ffn_layer1", "up"), ("ffn_layer2", "down"))
        for row in (
            Row(f"{_LAYER}ff_layer.{theirs}.linear.w", f"mlp/{ours}/kernel", Same()),
            Row(f"{_LAYER}ff_layer.{theirs}.bias.b", f"mlp/{ours}/bias", Same()),
        )
    ),
)


def _one_stack(count: int, options: Options, scanned: bool) -> list[Group]:
    return [Group(_LAYERS, tuple(range(count)), True)]


NAMING = Naming(ROWS, _one_stack)


@dataclasses.dataclass(frozen=True)
class PaxmlLayout:
    """Where Paxml keeps what: see `CheckpointLayout`."""

    whole: bool
    framework: str = "paxml"
    scanned: bool = True

    def key(self, collection: str, path: str) -> Key:
        return (f"{_VARIABLES}.{path}",)

    def axis_of(self, collection: str) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class PaxmlMoments(OptimizerLayout):
    """Where Paxml keeps Adam's moments.

    Args:
      num_layers: Layers of the stack, which the name of its group has.
    """

    num_layers: int = 0

    def key(self, name: str, parameter: Key) -> Key:
        path = str(parameter[0]).removeprefix(f"{_VARIABLES}.")
        in_stack = path.startswith(_LAYERS)
        group = f"p#{self.num_layers}#i-1_2" if in_stack else "no_prefix_2"
        moment = {"mu": "m", "nu": "v"}[name]
        return (f"opt_states_0.{group}.{moment}.{path}",)


def moments_for(options: Options) -> PaxmlMoments:
    return PaxmlMoments(
        orders={"mu": 1, "nu": 2},
        places={},
        counts=((_COUNT,),),
        dtypes=dict.fromkeys(("mu", "nu"), "float32"),
        num_layers=options["num_decoder_layers"],
    )


class PaxmlItems:
    """The arrays of a checkpoint of Paxml; a key is the name of a folder."""

    def __init__(self, path: AnyPath):
        self.path = path
        found = (each.parent.name for each in sorted(path.glob("*/.zarray")))
        self.entries: dict[Key, Entry] = {
            (name,): Entry((name,), "array") for name in found
        }

    def arrays(self) -> list[Key]:
        return list(self.entries)

    def read(self, key: Key) -> np.ndarray:
        name = "step" if key == ("step",) else str(key[0])
        return read_array(self._opened(name), self.where(key))

    def spec(self, key: Key) -> tuple[tuple[int, ...], np.dtype]:
        array = self._opened(str(key[0]))
        return tuple(array.shape), array.dtype.numpy_dtype

    def where(self, key: Key) -> str:
        return f"{self.path}: {key[0]}"

    def _opened(self, name: str) -> Any:
        spec = _spec(self.path, name)
        future = tensorstore().open(spec, open=True, read=True)
        return resolved_array(future, self.where((name,)))


class PaxmlFolder:
    """A checkpoint of Paxml, which has a folder for each array.

    Raises:
      UserError: If there is none, or its arrays are not those of a GPT-3.
    """

    naming = NAMING

    def __init__(self, path: str | os.PathLike):
        self.path = as_path(path).absolute()
        if not is_paxml(self.path):
            raise UserError(
                f"{path} must be a checkpoint of Paxml's GPT-3: a folder with"
                f" {_VARIABLES}.{_TABLE}, a zarr array, and others beside it."
            )
        self.items = PaxmlItems(self.path)

    @property
    def layout(self) -> PaxmlLayout:
        return PaxmlLayout(whole=(_COUNT,) in self.items.entries)

    @property
    def plan(self) -> PaxmlMoments:
        return moments_for(self.options)

    @property
    def stored_type(self) -> str:
        return self.items.spec((f"{_VARIABLES}.{_TABLE}",))[1].name

    @functools.cached_property
    def options(self) -> Options:
        """MaxText's options for the same network, from the shapes of its arrays."""
        width, vocabulary = self._shape(_TABLE, 2)
        positions, _ = self._shape(f"{_PARAMS}.position_emb.emb_var", 2)
        layers, _, _, heads, head_dim = self._shape(
            f"{_LAYERS}.self_attention.combined_qkv.w", 5
        )
        *_, hidden = self._shape(f"{_LAYERS}.ff_layer.ffn_layer1.linear.w", 3)
        given = {
            "decoder_block": "gpt3",
            "emb_dim": width,
            "vocab_size": vocabulary,
            "trainable_position_size": positions,
            "max_target_length": min(positions, 2048),  # of MLPerf's training
            "num_decoder_layers": layers,
            "num_query_heads": heads,
            "num_kv_heads": heads,
            "head_dim": head_dim,
            "mlp_dim": hidden,
            "mlp_activations": ["gelu"],
            "logits_via_embedding": True,
            "normalize_embedding_logits": False,
            "fused_qkv": True,
            "opt_type": "adam_pax",
            "scan_layers": True,
        }
        return resolved(given, str(self.path))

    def _shape(self, name: str, dims: int) -> tuple[int, ...]:
        shape, _ = self.items.spec((f"{_VARIABLES}.{name}",))
        if len(shape) != dims:
            raise UserError(
                f"{self.path}: {name} {list(shape)} must have {dims} dims, as in"
                " Paxml's GPT-3."
            )
        return shape


def is_paxml(path: AnyPath) -> bool:
    return (path / f"{_VARIABLES}.{_TABLE}" / ".zarray").is_file()


class PaxmlWriter:
    """Writes arrays as folders of zarr 2, one beside the other."""

    def __init__(self, path: AnyPath):
        self._path = path

    def write(self, key: Key, values: np.ndarray) -> None:
        chunks = chunks_of(values)
        spec = _spec(self._path, str(key[0])) | {
            "dtype": values.dtype.name,
            "metadata": {"shape": list(values.shape), "chunks": chunks},
        }
        write_array(spec, values, chunks)


def _spec(path: AnyPath, name: str) -> dict[str, Any]:
    store = kvstore(path / name)
    return {"driver": "zarr", "metadata_key": ".zarray", "kvstore": store}
