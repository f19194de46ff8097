"""Formats to store weights in, by the names that commands know them by.

A format takes the kernels of a model and says which of them are stored how, and what
config.json says of that. Embedding, head, routers, norms and biases stay as they are.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from maxfdl.errors import UserError, did_you_mean
from maxfdl.tensors.hugging_face.quantization.fp8 import block_codec
from maxfdl.tensors.hugging_face.quantization.mxfp4 import CODEC, SIZE
from maxfdl.tensors.quantized.codec import Block, Codec
from maxfdl.tensors.quantized.codes import Codes, Float4, Float8, PackedInt
from maxfdl.tensors.safetensors import Spec
from maxfdl.tensors.table import Binding

FormatName = Literal["int8", "int4", "fp8", "fp8_block", "mxfp4"]

Kind = Literal["linear", "experts", "other"]

_HEAD = "lm_head"
_LEAST = 32  # columns of a group: with fewer, scales outweigh the codes
_POWERS = np.dtype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A matrix of theirs, or a stack of them.

    Args:
      name: Its name.
      shape: Its shape.
      dtype: The type that it has, or would have.
      kind: `linear` [outputs, inputs] multiplies activations, and so do `experts`, all
        of a layer in one tensor [experts, inputs, outputs]. `other` are router, head,
        and what no format has a place for.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    kind: Kind

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the weights of a folder are stored.

    Args:
      codecs: The codec of each weight in few bits, by its name.
      config: The `quantization_config` that says so.
      left: Kernels that stay although they multiply activations: the format has no
        place for them.
    """

    codecs: dict[str, Codec]
    config: dict[str, Any]
    left: tuple[str, ...] = ()

    @property
    def remarks(self) -> list[str]:
        """A line about kernels that stay, or none."""
        if not self.left:
            return []
        return [
            f"{len(self.left)} kernels stay in their type, for the format has no place"
            f" for them, {self.left[0]} for one"
        ]

    def specs(self, plain: Mapping[str, Spec]) -> dict[str, Spec]:
        """Returns shape and type of all tensors, for weights of `plain` ones."""
        specs: dict[str, Spec] = {}
        for name, (shape, dtype) in plain.items():
            codec = self.codecs.get(name)
            parts = {"": (shape, dtype)} if codec is None else codec.specs(shape)
            specs |= {name + part: spec for part, spec in parts.items()}
        return specs


def kernels_of(bindings: Sequence[Binding], specs: Mapping[str, Spec]) -> list[Kernel]:
    """Returns the kernels of a model, given shape and type of each of its tensors."""
    return [
        Kernel(name, *specs[name], _kind(binding, specs[name][0]))
        for binding in bindings
        for name in binding.theirs
        if all(declared.role == "kernel" for declared in binding.declared)
    ]


def _kind(binding: Binding, shape: tuple[int, ...]) -> Kind:
    for declared in binding.declared:
        outputs = declared.axes[declared.batched + declared.contracted :]
        # A gate with one output has no dim for it.
        if not outputs or {"vocab", "experts"} & {*outputs}:
            return "other"
    if len(shape) == 2 and binding.layout.transposed:
        return "linear"
    if len(shape) == 3 and all(each.batched for each in binding.declared):
        return "experts"
    return "other"


def check_format(name: str, block_size: int | None) -> None:
    """Refuses a format that there is not, and a `block_size` that it does not take."""
    if name not in _FORMATS:
        raise UserError(
            f"format ({name}) must be one of {', '.join(_FORMATS)}."
            f"{did_you_mean(name, _FORMATS)}"
        )
    if block_size is not None and (name not in _SIZED or block_size < 1):
        raise UserError(
            f"block_size ({block_size}) must be positive, and belongs to"
            f" {' and '.join(_SIZED)}."
        )


def plan(
    name: str,
    kernels: Sequence[Kernel],
    model_type: str,
    block_size: int | None = None,
) -> Plan:
    """Returns how a format stores the kernels of a model.

    Args:
      name: `int8`, a scale for each output; `int4`, a scale for each `block_size`
        inputs of an output; both as compressed-tensors packs them. `fp8`, a scale for
        each output, as compressed-tensors has it; `fp8_block`, one for each
        `block_size` inputs and outputs, as DeepSeek-V3 has it; `mxfp4`, a power of two
        for each 32 inputs of an output: of gpt-oss its experts, as its files have them,
        and of others all, as compressed-tensors has it.
      kernels: Those of the model.
      model_type: What config.json calls its family.
      block_size: Weights that share a scale; None is 128. Where it does not divide the
        inputs of all kernels, `int4` takes the greatest divisor of them below, or of
        those of each kernel, or a scale for each output, if the one before is smaller
        than 32. The last block of `fp8_block` may be smaller; transformers 5.24.0 reads
        such blocks on GPUs alone.

    Raises:
      UserError: If there is no such format, if it has no `block_size`, or if the model
        has no kernel that it stores.
    """
    check_format(name, block_size)
    store = _gpt_oss if (name, model_type) == ("mxfp4", "gpt_oss") else _FORMATS[name]
    made = store(kernels, block_size or 128)
    if not made.codecs:
        raise UserError(
            f"format ({name}) has no place for any kernel of this {model_type}; choose"
            " another format, or leave the model as it is."
        )
    return made


def _int8(kernels: Sequence[Kernel], _: int) -> Plan:
    chosen = {k: None for k in kernels if k.kind == "linear"}
    return _compressed(kernels, chosen, "pack-quantized", PackedInt(8))


def _int4(kernels: Sequence[Kernel], size: int) -> Plan:
    linear = [k for k in kernels if k.kind == "linear"]
    common = _group(math.gcd(*(k.shape[-1] for k in linear)), size)
    chosen = {k: common or _group(k.shape[-1], size) for k in linear}
    return _compressed(kernels, chosen, "pack-quantized", PackedInt(4))


def _fp8(kernels: Sequence[Kernel], _: int) -> Plan:
    chosen = {k: None for k in kernels if k.kind == "linear"}
    return _compressed(kernels, chosen, "float-quantized", Float8())


def _fp8_block(kernels: Sequence[Kernel], size: int) -> Plan:
    chosen = [k for k in kernels if k.kind == "linear"]
    config = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [size, size],
        "modules_to_not_convert": _modules(kernels, chosen),
    }
    codecs = {k.name: block_codec(size, size) for k in chosen}
    return Plan(codecs, config, _left(kernels, chosen))


def _gpt_oss(kernels: Sequence[Kernel], _: int) -> Plan:
    experts = [k for k in kernels if k.kind == "experts"]
    fits = [k for k in experts if k.shape[-2] % SIZE == 0]
    config = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": _modules(kernels, fits),
    }
    return Plan({k.name: CODEC for k in fits}, config, _left(experts, fits))


def _mxfp4(kernels: Sequence[Kernel], _: int) -> Plan:
    chosen = {
        k: SIZE for k in kernels if k.kind == "linear" and k.shape[-1] % SIZE == 0
    }
    return _compressed(kernels, chosen, "mxfp4-pack-quantized", Float4())


_FORMATS: dict[str, Callable[[Sequence[Kernel], int], Plan]] = {
    "int8": _int8,
    "int4": _int4,
    "fp8": _fp8,
    "fp8_block": _fp8_block,
    "mxfp4": _mxfp4,
}
_SIZED = ("int4", "fp8_block")


def _group(columns: int, size: int) -> int | None:
    """Returns the greatest divisor of `columns` up to `size`, if it is worthwhile."""
    best = max(d for d in range(1, min(size, columns) + 1) if columns % d == 0)
    return best if best >= min(_LEAST, size) else None


def _compressed(
    kernels: Sequence[Kernel],
    chosen: Mapping[Kernel, int | None],
    format_: str,
    codes: Codes,
) -> Plan:
    """Returns a plan of compressed-tensors.

    Args:
      kernels: All of the model.
      chosen: Those in few bits, with the inputs that share a scale; None: all.
      format_: What the library calls the format.
      codes: The codes.
    """
    powers = isinstance(codes, Float4)
    codecs = {
        k.name: Codec(codes, Block(1, size), scale_dtype=_POWERS if powers else k.dtype)
        for k, size in chosen.items()
    }
    sizes = collections.Counter(chosen.values()).most_common()
    groups = {
        f"group_{i}": {
            # A name comes before a class, so only the rest need be named.
            "targets": ["Linear"] if i == 0 else _names(chosen, size),
            "weights": _weights(codes, size),
            "input_activations": None,
            "output_activations": None,
            "format": format_,
        }
        for i, (size, _) in enumerate(sizes)
    }
    config = {
        "quant_method": "compressed-tensors",
        "format": format_,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": _modules(kernels, chosen),
    }
    return Plan(codecs, config, _left(kernels, chosen))


def _weights(codes: Codes, size: int | None) -> dict[str, Any]:
    """Returns what compressed-tensors says of the weights of a group."""
    whole = isinstance(codes, PackedInt)
    return {
        "num_bits": codes.bits if whole else 4 if isinstance(codes, Float4) else 8,
        "type": "int" if whole else "float",
        "symmetric": True,
        "strategy": "channel" if size is None else "group",
        "group_size": size,
        "dynamic": False,
    }


def _names(chosen: Mapping[Kernel, int | None], size: int | None) -> list[str]:
    return [kernel.module for kernel, each in chosen.items() if each == size]


def _modules(kernels: Iterable[Kernel], chosen: Container[Kernel]) -> list[str]:
    """Returns the modules that stay as they are, and the head, which may be tied."""
    rest = [kernel.module for kernel in kernels if kernel not in chosen]
    return list(dict.fromkeys([*rest, _HEAD]))


def _left(kernels: Iterable[Kernel], chosen: Container[Kernel]) -> tuple[str, ...]:
    rest = (kernel for kernel in kernels if kernel not in chosen)
    return tuple(kernel.name for kernel in rest if kernel.kind != "other")
