"""Commands, called in this process: as a user calls them, without the seconds that a
process takes to import JAX."""

import os
import pathlib
import sys
from collections.abc import Callable

import pytest
from absl import flags

from maxfdl import commandline

ROOT = pathlib.Path(__file__).parents[1]
ON_ONE_DEVICE = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
}
"""What the environment of a process says that has one device, and compiles as tests do:
what XLA optimizes, as it does for users, takes several times as long to compile."""

Done = tuple[int, str, str]


class Caller:
    """Calls commands one after the other; each starts with flags that nobody has set.

    Args:
      monkeypatch, capsys: Of the test.
    """

    def __init__(self, monkeypatch, capsys):
        self.monkeypatch, self.capsys = monkeypatch, capsys
        monkeypatch.syspath_prepend(str(ROOT))

    def __call__(self, main: Callable, *args: str, takes_config: bool = True) -> Done:
        """Returns exit code, output and errors of `main`."""
        self.monkeypatch.setattr(sys, "argv", ["command.py", *args])
        try:
            with pytest.raises(SystemExit) as end:
                commandline.run(main, takes_config=takes_config)
        finally:
            for name in flags.FLAGS:
                flags.FLAGS[name].unparse()
        return end.value.code or 0, *self.capsys.readouterr()


def complaint(done: Done) -> str:
    """Returns the one line of a command that refused what the user gave it."""
    code, out, error = done
    assert (code, out) == (2, "") and error.startswith("error: ")
    return error.removeprefix("error: ").removesuffix("\n")
