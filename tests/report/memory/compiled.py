"""Steps whose memory was compiled for TPUs, and what was found: `memory.json`.

`python -m tests.report.memory.compiled [NAME...]` compiles all of them, or those that
are named, and writes the file anew. Each takes a minute of a processor.
"""

import ast
import json
import pathlib
import sys

from maxfdl import graph
from maxfdl.experiment import Experiment

FILE = pathlib.Path(__file__).parents[2] / "goldens" / "memory.json"

_STACK = "model.decoder.stacks[0]."
_LAYER = _STACK + "layers[0]."
_BFLOAT16 = "+compute_dtype(bfloat16)"
_FULL = "+remat(policy=full)"
_TILED = "+vocab_tiling(num_tiles=8)"
_SIZES = ("model.vocab_size=8192", "sequence_length=1024", "batch_size=64")


def _llama(mutations: str, *values: str, features: int = 1024) -> tuple[str, ...]:
    """Four layers of heads of 128, or six of half the width."""
    heads, repeats = features // 128, 4 if features == 1024 else 6
    return (
        f"experiments.llama2_nnx{_BFLOAT16}{mutations}",
        f"model.features={features}",
        f"{_STACK}repeats={repeats}",
        f"{_LAYER}attention.head_dim=128",
        f"{_LAYER}attention.num_heads={heads}",
        f"{_LAYER}attention.num_kv_heads={heads}",
        f"{_LAYER}mlp.hidden={features * 11 // 4}",
        *_SIZES,
        *values,
    )


def _mixtral(mutations: str) -> tuple[str, ...]:
    return (
        f"experiments.zoo_smoke(family=mixtral){_BFLOAT16}{mutations}",
        "model.features=512",
        f"{_LAYER}attention.head_dim=128",
        f"{_LAYER}mlp.experts.hidden=1408",
        *_SIZES,
    )


CASES: dict[str, tuple[str, ...]] = {
    "full": _llama(f"{_FULL}{_TILED}+mesh(fsdp=4)"),
    "dots": _llama("+remat(policy=dots)+mesh(fsdp=4)", features=512),
    "context": _llama(
        f"{_FULL}{_TILED}+mesh(fsdp=2,context=2)",
        "sequence_length=2048",
        "batch_size=32",
    ),
    "tensor": _llama(f"{_FULL}{_TILED}+mesh(fsdp=2,tensor=2)"),
    "offload": _llama(f"+offload_activations(){_TILED}+mesh(fsdp=4)"),
    "experts": _mixtral(f"{_FULL}{_TILED}+mesh(fsdp=4)"),
    "none": _llama(f"+remat(policy=none){_TILED}+mesh(fsdp=4)", features=512),
}
"""The words of a command line, for v5e:2x2. Smaller steps would leave much of what they
need in the fast memory of a TPU, which is not counted."""


def experiment_of(words: tuple[str, ...]) -> Experiment:
    """Returns what the words of a command line make."""
    config = graph.resolve(words[0])
    for word in words[1:]:
        path, _, value = word.partition("=")
        config = graph.set_value(config, path, ast.literal_eval(value))
    return graph.build(config)


def found() -> dict[str, dict[str, int]]:
    """Returns what was found, by the name of the case."""
    return json.loads(FILE.read_text())


def write(names: list[str]) -> None:
    """Compiles cases, and writes down what each needs on a device."""
    from maxfdl.report.ahead import compile_ahead, program_of
    from maxfdl.run.topology import devices_of

    everything = found() if FILE.exists() else {}
    for name in names or CASES:
        program = program_of(experiment_of(CASES[name]), devices_of("v5e:2x2"))
        report, _ = compile_ahead(name, program)
        everything[name] = {
            "argument_bytes": report.argument_bytes or 0,
            "peak_bytes": report.peak_bytes or 0,
        }
        FILE.write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
    write(sys.argv[1:])
