"""Compares two graphs: `python -m maxfdl.diff A B`.

A and B are expressions, such as `experiments.llama2_nnx+to_linen`, or saved graphs.
Like diff(1), exits with 0 if they are equal, 1 if they differ, 2 on trouble.
"""

import argparse
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from maxfdl.errors import UserError, did_you_mean

SAME, DIFFERENT, TROUBLE = 0, 1, 2


class _Parser(argparse.ArgumentParser):
    """Complains in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        unknown = re.fullmatch(r"unrecognized arguments: (--?[\w-]+).*", message)
        if unknown:
            near = did_you_mean(unknown[1], ["--only", "--as", "--trust"])
            message = f"unknown flag {unknown[1]}.{near}"
        print(f"error: {message}", file=sys.stderr)
        sys.exit(TROUBLE)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m maxfdl.diff", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("a", metavar="A", help="the old graph")
    parser.add_argument("b", metavar="B", help="the new graph")
    parser.add_argument("--only", default="", metavar="PATH", help="look below PATH")
    parser.add_argument(
        "--as",
        dest="form",
        choices=("lines", "fiddler"),
        default="lines",
        help="lines to read, or a Python function that turns A into B",
    )
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package that names may come from; its code will run",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the differences and returns the exit code."""
    args = _arguments(argv)
    try:
        return _compare(args)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
    except Exception:
        traceback.print_exc()
    return TROUBLE


def _compare(args: argparse.Namespace) -> int:
    from maxfdl.graph import diff, resolve  # imports JAX: after the flags are checked

    a, b = (resolve(each, trust=args.trust) for each in (args.a, args.b))
    lines = diff(a, b, only=args.only)
    if not lines:
        print("identical")
        return SAME
    print(_fiddler(a, b) if args.form == "fiddler" else "\n".join(lines))
    return DIFFERENT


def _fiddler(a: Any, b: Any) -> str:
    from fiddle.codegen import codegen_diff

    from maxfdl.graph import as_fiddle_diff

    code = codegen_diff.fiddler_from_diff(
        as_fiddle_diff(a, b), old=a, variable_naming="short"
    )
    return code.code.rstrip()


if __name__ == "__main__":
    sys.exit(main())
