"""Kernels stored in a few bits."""

from collections.abc import Iterable
from typing import Literal, TypeVar

import fiddle as fdl

from maxfdl.errors import MutationError
from maxfdl.graph import copy, nodes_of
from maxfdl.graph.select import iterate
from maxfdl.graph.signatures import fields
from maxfdl.mutations.fields import chosen, put
from maxfdl.mutations.products import is_matrix_product, selected
from maxfdl.mutations.scope import MODEL, network_in
from maxfdl.ops.codec import Codec, Simulated

C = TypeVar("C", bound=fdl.Buildable)
Format = Literal["int8", "int4", "nf4", "fp8", "mxfp4"]

_FORMATS = {
    "int8": {"numbers": "int8"},
    "int4": {"numbers": "int4", "inputs": 32},
    "nf4": {"numbers": "nf4", "inputs": 64},
    "fp8": {"numbers": "e4m3", "inputs": 128, "outputs": 128},
    "mxfp4": {"numbers": "e2m1", "inputs": 32, "scales": "e8m0"},
}


def quantize_weights(
    cfg: C,
    *,
    format: Format = "int8",
    group: int | None = None,
    simulate: bool = False,
    only: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    under: str = MODEL,
) -> C:
    """Stores kernels in 8 or 4 bits; they are no longer trained.

    For inference, and for frozen bases of what is trained beside them. A product takes
    the weights back to the type of its activations, so activations, gradients and what
    else a product does stay as they are. Weights that a run starts with, or that are
    loaded, are packed as they are read. `dequantize_weights` is the inverse.

    Bytes per weight: int8 and fp8 1, the others 0.5, and those of scales.

    Args:
      cfg: The graph.
      format: `int8`: integers, a float32 scale per output. `int4`: integers from -7 to
        7, a scale for 32 inputs. `nf4`: quantiles of a normal distribution, a scale for
        64 inputs, as in QLoRA. `fp8`: e4m3, a scale for 128 x 128 weights, as in the
        checkpoints of DeepSeek-V3. `mxfp4`: e2m1, a power of two for 32 inputs, as in
        those of gpt-oss. See `maxfdl.ops.codec`.
      group: Other than these, inputs that share a scale; of `fp8` the side of a block.
        `mxfp4` has 32.
      simulate: Trains kernels for the storage in place of storing them
        (quantisation-aware training): they stay as they are, products are given what
        the format would make of them, and gradients go straight through that. Packed
        afterwards, by this mutation without it, the model computes the same.
      only: Which products; empty: all but the head's. Names as `enable_fp8` takes them.
      skip: Which of these stay as they are.
      under: Path of the network.

    Raises:
      MutationError: If nothing is selected, if `only` or `skip` names nothing, or if
        the format has no such group.
    """
    storage: fdl.Config = _codec(format, group)
    if simulate:
        storage = fdl.Config(Simulated, codec=storage)
    out = copy(cfg)
    network = network_in(out, under)
    chosen_products = selected(network, only, skip, "quantize_weights")
    for layer in _layers_with(network, chosen_products):
        if "storage" not in fields(layer):
            raise MutationError(
                "quantize_weights [head] has no kernel of its own in this network:"
                " its head is the embedding table, which is stored as it is."
            )
        layer.storage = copy(storage)
    return out


def dequantize_weights(cfg: C, *, under: str = MODEL) -> C:
    """Stores all kernels as numbers of the type `param_dtype` again, and trains them.

    `quantize_weights` is the inverse.

    Raises:
      MutationError: If there is no matrix product.
    """
    out = copy(cfg)
    network = network_in(out, under)
    for layer in _layers_with(network, nodes_of(network, is_matrix_product)):
        if "storage" in fields(layer):
            put(layer, "storage", None)
    return out


def _codec(format: str, group: int | None) -> fdl.Config[Codec]:
    made = dict(chosen(_FORMATS, format, "quantize_weights format"))
    if group is not None:
        if format == "mxfp4":
            raise MutationError(
                f"quantize_weights group ({group}) has no meaning for mxfp4, whose"
                " groups are of 32; leave it out."
            )
        made["inputs"] = group
        if "outputs" in made:
            made["outputs"] = group
    return fdl.Config(Codec, **made)


def _layers_with(
    network: fdl.Buildable, products: Iterable[fdl.Buildable]
) -> list[fdl.Buildable]:
    """Returns the layers of a network that hold these products."""
    wanted = {id(product) for product in products}
    nodes = {id(node): node for _, node in iterate(network)}.values()
    return [node for node in nodes if id(getattr(node, "dot", None)) in wanted]
