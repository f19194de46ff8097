"""Compares two graphs: `python -m maxfdl.diff A B`.

A and B are expressions, such as `experiments.llama2_nnx+to_linen`, or saved graphs.
Like diff(1), exits with 0 if they are equal, 1 if they differ, 2 on trouble.
"""

import traceback
from typing import Any

from absl import flags

from maxfdl import commandline
from maxfdl.errors import UserError

FLAGS = flags.FLAGS
SAME, DIFFERENT, TROUBLE = 0, 1, 2

# This module may be imported under two names (`python -m` makes one `__main__`).
if "only" not in FLAGS:
    flags.DEFINE_string("only", "", "Look at this path, and below it.")
    flags.DEFINE_enum(
        "as",
        "lines",
        ["lines", "fiddler"],
        "Lines to read, or a Python function that turns A into B.",
    )


def main(argv: list[str]) -> int:
    """Prints the differences and returns the exit code."""
    names = argv[1:]
    if len(names) != 2:
        raise UserError(f"diff compares two graphs, A and B; it got {len(names)}.")
    try:
        text = _differences(*names)
    except UserError:
        raise
    except Exception:  # a bug would exit with 1, which says that they differ
        traceback.print_exc()
        return TROUBLE
    print(text or "identical")
    return DIFFERENT if text else SAME


def _differences(old: str, new: str) -> str:
    """Returns what turns the graph `old` into `new`, or nothing if they are equal."""
    from maxfdl.graph import diff, resolve  # imports JAX: after the flags are checked

    a, b = (resolve(each, trust=FLAGS.trust) for each in (old, new))
    lines = diff(a, b, only=FLAGS.only)
    if lines and FLAGS["as"].value == "fiddler":
        return _fiddler(a, b)
    return "\n".join(lines)


def _fiddler(a: Any, b: Any) -> str:
    from fiddle.codegen import codegen_diff

    from maxfdl.graph import as_fiddle_diff

    code = codegen_diff.fiddler_from_diff(
        as_fiddle_diff(a, b), old=a, variable_naming="short"
    )
    return code.code.rstrip()


if __name__ == "__main__":
    commandline.run(main, takes_config=False)
