"""All commands under one name: `maxfdl launch ...` is `python -m maxfdl.launch ...`."""

import runpy
import sys

from maxfdl.errors import UserError, did_you_mean
from maxfdl.terminal import session

COMMANDS = {
    "launch": "Trains, or goes on with a run that was stopped.",
    "show": "Shows a graph: tree, parameters, FLOPs, bytes. --models lists all models.",
    "diff": "Compares two graphs.",
    "aot": "Compiles for TPUs elsewhere: memory, FLOPs, collectives, least time.",
    "bench": "Times the step of an experiment; --accelerator checks the card here.",
    "generate": "Writes text with a run, a Hugging Face folder or a GGUF file.",
    "convert": "Goes between runs, Hugging Face, and MaxText's checkpoints.",
    "checkpoint": "Lists, verifies, inspects, compares and prunes checkpoints.",
    "plot": "Draws metrics of runs over steps, tokens or bytes.",
    "quantize": "Stores a folder or a run in few bits: int8, int4, fp8, mxfp4.",
}


def main() -> None:
    """Runs the command that the first argument names; without one, lists them."""
    with session():
        name = _command(sys.argv[1:])
    if name is not None:
        del sys.argv[1]
        runpy.run_module(f"maxfdl.{name}", run_name="__main__", alter_sys=True)


def _command(arguments: list[str]) -> str | None:
    if not arguments or arguments[0] in ("help", "-h", "--help"):
        print(_listing())
        return None
    name = arguments[0]
    if name.startswith("-"):
        raise UserError(f"the command comes first, as in: maxfdl launch {name}")
    if name not in COMMANDS:
        raise UserError(
            f"no command {name!r}.{did_you_mean(name, COMMANDS)} There are:"
            f" {', '.join(COMMANDS)}."
        )
    return name


def _listing() -> str:
    return "\n".join(
        [
            "usage: maxfdl COMMAND ..., or python -m maxfdl.COMMAND ...",
            "",
            *(f"  {name:<10} {what}" for name, what in COMMANDS.items()),
            "",
            "maxfdl COMMAND --help shows the flags of a command;",
            "maxfdl launch --fdl_help shows experiments and mutations.",
        ]
    )


if __name__ == "__main__":
    main()
