"""One attention layer, twice."""

from typing import Literal

import fiddle as fdl

from tests.graph.toys import ops, root
from tests.graph.toys.nnx import layers


def linear() -> fdl.Partial:
    return fdl.Partial(layers.Linear, dot=fdl.Config(ops.Dot), dtype="float32")


def attention(num_heads: int = 4) -> fdl.Partial:
    return fdl.Partial(
        layers.Attention,
        q=linear(),
        k=linear(),
        num_heads=num_heads,
        num_kv_heads=2,
    )


def experiment(
    size: Literal["7b", "13b"] = "7b", depth: int = 2, label: str = ""
) -> fdl.Config:
    features = {"7b": 8, "13b": 16}[size]
    return fdl.Config(
        root.Experiment,
        model=fdl.Partial(
            layers.Decoder,
            layers=[attention() for _ in range(depth)],
            features=features,
            label=label,
        ),
        optimizer=fdl.Partial(root.sgd, learning_rate=0.1),
        rules={"embed": "fsdp", "vocab": None},
    )


def not_a_graph():
    return 3


def broken():
    return fdl.Config(root.Experiment, model=undefined_name)  # noqa: F821
