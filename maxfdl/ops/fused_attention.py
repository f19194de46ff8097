"""Fused kernels of attention, and what each of them can be asked for.

A kernel is never given a mask of [T, T]. It is told of causal order and a window, which
let it skip whole blocks, and of the segment of each token. Letters: B rows, T tokens, H
query heads, G key-value heads, K width of a query and key, V width of a value.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from maxfdl.ops.mask import Band
from maxfdl.ops.target import target_platform

_WIDEST_ON_AMPERE, _WIDEST = 128, 256  # heads that cuDNN takes


@dataclasses.dataclass(frozen=True)
class Demand:
    """What a layer asks of attention between the tokens of its rows.

    Args:
      band: Who sees whom; None: a rule that no kernel knows.
      is_packed: Whether rows hold several documents.
      has_sinks: Whether heads have attention sinks.
      soft_cap: Of the scores.
      width: K.
      value_width: V.
      dtype: Type of queries, keys and values; None: not known yet.
    """

    band: Band | None = Band()
    is_packed: bool = False
    has_sinks: bool = False
    soft_cap: float | None = None
    width: int = 128
    value_width: int = 128
    dtype: DTypeLike | None = None


def refusal(name: str, demand: Demand, platform: str | None = None) -> str | None:
    """Returns why a kernel cannot do what is asked, as a sentence; None if it can.

    Args:
      name: `cudnn` or `tokamax`.
      demand: What is asked.
      platform: `cpu`, `gpu` or `tpu`; None, before it is known: only what the kernel
        can do nowhere is refused.
    """
    lacks, others = _LACKS[name]
    lack = next(lacks(demand, platform), None)
    if lack is None:
        return None
    return f"DotProductAttention implementation ({name}) has no {lack}; use {others}."


def _cudnn_lacks(demand: Demand, platform: str | None) -> Iterator[str]:
    if demand.soft_cap is not None:
        yield "soft_cap"
    if demand.has_sinks:
        yield "attention sinks"
    if demand.band is None:
        yield "such mask"
    elif demand.band.chunk is not None:
        yield "Chunked mask"
    if demand.is_packed:
        yield "segment ids, which keep the documents of a row apart"
    if demand.value_width != demand.width:
        yield f"values of width {demand.value_width} beside keys of {demand.width}"
    if demand.width % 8 or demand.width > _WIDEST:
        yield f"heads of width {demand.width}, only multiples of 8 up to {_WIDEST}"
    if demand.dtype is not None and jnp.dtype(demand.dtype).itemsize != 2:
        yield f"{jnp.dtype(demand.dtype).name}, only types of 16 bits"


def _tokamax_lacks(demand: Demand, platform: str | None) -> Iterator[str]:
    if demand.band is None:
        yield "such mask"
    if platform != "gpu":
        return
    if demand.has_sinks:
        yield "attention sinks on a GPU"
    if _has_mosaic():
        return
    # The gradients of its Triton kernel know nothing but causal order.
    older = "on a GPU before Hopper"
    if demand.soft_cap is not None:
        yield f"soft_cap {older}"
    if demand.is_packed:
        yield f"segment ids {older}"
    if demand.band is not None and demand.band.window is not None:
        yield f"windows and chunks {older}"


_LACKS: dict[str, tuple[Callable[[Demand, str | None], Iterator[str]], str]] = {
    "cudnn": (_cudnn_lacks, "xla or tokamax"),
    "tokamax": (_tokamax_lacks, "xla"),
}


def best_on_gpu(demand: Demand) -> str:
    """Returns the kernel for a GPU that `auto` means: `xla` if there is none."""
    dtype = demand.dtype
    if demand.soft_cap is not None or dtype is None or jnp.dtype(dtype).itemsize != 2:
        return "xla"
    if demand.width <= _WIDEST_ON_AMPERE and refusal("cudnn", demand, "gpu") is None:
        return "cudnn"
    return "xla" if refusal("tokamax", demand, "gpu") else "tokamax"


def attend_cudnn(q_BTHK, k_BTGK, v_BTGK, mask, sinks_H, *, scale, soft_cap, sharding):
    """cuDNN's flash attention, which JAX partitions by itself over rows and heads."""
    assert sinks_H is None and soft_cap is None and mask.segments() is None
    window = mask.band().window
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BTGK,
        v_BTGK,
        scale=scale,
        is_causal=True,
        # How many keys before the query are seen, and how many after it.
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )


def attend_tokamax(q_BTHK, k_BTGK, v_BTGV, mask, sinks_H, *, scale, soft_cap, sharding):
    """tokamax's kernel on a GPU; elsewhere splash attention, the kernel for TPUs."""
    on_gpu = target_platform() == "gpu"
    kernel = functools.partial(
        _attend_on_gpu if on_gpu else _attend_on_tpu,
        window=mask.band().window,
        scale=scale,
        soft_cap=soft_cap,
    )
    told_BT = mask.first_keys() if on_gpu else mask.segments()
    return _on_each_device(kernel, sharding)(q_BTHK, k_BTGK, v_BTGV, told_BT, sinks_H)


def _on_each_device(kernel: Callable, sharding: Any | None) -> Callable:
    """Returns `kernel` run by each device on its own rows and heads.

    XLA cannot partition a kernel. Query heads and the key-value heads that they share
    must be cut alike; if the rules cut them differently, each device has all heads.
    """
    if sharding is None or sharding.mesh.size == 1:
        return kernel

    def spread(q_BTHK, k_BTGK, v_BTGV, told_BT, sinks_H):
        are_shared = q_BTHK.shape[2] != k_BTGK.shape[2]
        rows, heads = sharding.spec(("batch", "heads"))
        of_keys = sharding.spec(("batch", "kv_heads" if are_shared else "heads"))[1]
        heads = heads if heads == of_keys else None
        features = PartitionSpec(rows, None, heads, None)
        return jax.shard_map(
            kernel,
            mesh=sharding.mesh,
            in_specs=(*[features] * 3, PartitionSpec(rows), PartitionSpec(heads)),
            out_specs=features,
            axis_names=set(sharding.mesh.axis_names) - set(sharding.manual),
            check_vma=False,
        )(q_BTHK, k_BTGK, v_BTGV, told_BT, sinks_H)

    return spread


def _attend_on_tpu(*args, **kwargs):
    # Pallas takes a third of a second to import, and most runs do not need it.
    from maxfdl.ops.splash_attention import splash_attention

    return splash_attention(*args, **kwargs)


def _attend_on_gpu(
    q_BTHK, k_BTGK, v_BTGV, first_keys_BT, sinks_H, *, window, scale, soft_cap
):
    """tokamax's kernel for the card: Mosaic's from Hopper on, Triton's before."""
    # Its public function takes no first keys, only masks of [T, T].
    from tokamax._src.ops.attention import api, base

    assert sinks_H is None
    first_keys = None if first_keys_BT is None else first_keys_BT[:, None]
    return api.IMPLEMENTATIONS["mosaic_gpu" if _has_mosaic() else "triton"](
        q_BTHK,
        k_BTGK,
        v_BTGV,
        mask=base.Mask(k_start=first_keys, is_causal=True),
        logits_scale=scale,
        logits_soft_cap=soft_cap,
    )


def _has_mosaic() -> bool:
    """Returns whether tokamax's newer kernels know this GPU, gradients included."""
    capability = getattr(jax.local_devices()[0], "compute_capability", None) or "0"
    return int(str(capability).split(".")[0]) in (9, 10)


KERNELS: dict[str, Callable[..., jax.Array]] = {
    "cudnn": attend_cudnn,
    "tokamax": attend_tokamax,
}
"""By name: `kernel(q, k, v, mask, sinks, scale=, soft_cap=, sharding=)`."""
