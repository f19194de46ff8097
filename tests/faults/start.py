"""One start of a run, as a process that can be killed.

It is a fork of a process that has imported maxfdl, JAX and Orbax, and has initialized
no device. So a start costs 2.5 CPU-seconds, not 4.5.
"""

import json
import os
import pathlib
import re
import signal
import sys
import time
from collections.abc import Sequence


def import_all() -> None:
    """Imports what a run needs; each process that is forked afterwards has it."""
    import experiments.llama2_smoke
    import maxfdl.graph
    import maxfdl.launch
    import maxfdl.run.loop
    from maxfdl.checkpoint.orbax import import_orbax

    import_orbax()
    del experiments, maxfdl


class Start:
    """A process that takes the steps of a run which are left to take.

    Args:
      words: Arguments of `maxfdl.launch`.
      run_dir: Directory of the run.
    """

    def __init__(self, words: Sequence[str], run_dir: pathlib.Path):
        run_dir.mkdir(parents=True, exist_ok=True)
        self._metrics = run_dir / "metrics.jsonl"
        self._output = run_dir / "output.txt"
        self._code: int | None = None
        self._pid = os.fork()
        if not self._pid:
            _run([*words, f"--run_dir={run_dir}"], self._output)

    @property
    def code(self) -> int | None:
        """The exit code, minus the signal that ended it, or None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self) -> int:
        """Waits for its end, and returns the exit code."""
        while self.code is None:
            time.sleep(0.01)
        assert self.code is not None
        return self.code

    def wait_for_step(self, step: int) -> None:
        """Waits until `step` is logged, or the process has ended."""
        while self.code is None and last_step(self._metrics) < step:
            time.sleep(0.005)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        self.wait()

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._output.read_text()

    @property
    def began_after(self) -> int | None:
        """The step whose checkpoint it restored, 0 if it began anew, or None if it has
        not come so far."""
        if found := re.search(r"^continuing from step (\d+)$", self.output, re.M):
            return int(found[1])
        return 0 if re.search(r"^step +\d", self.output, re.M) else None


def _run(words: Sequence[str], output: pathlib.Path) -> None:
    """Becomes `python -m maxfdl.launch`; does not return."""
    code = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        from maxfdl import commandline, launch

        sys.argv = ["launch", *words]
        commandline.run(launch.main)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    finally:
        sys.stdout.flush()
        os._exit(code)


def losses(metrics: pathlib.Path) -> dict[int, float]:
    """Returns the losses logged so far, by step; a line that was cut short is none."""
    found = map(json.loads, _lines(metrics))
    return {line["step"]: line["loss"] for line in found if "loss" in line}


def last_step(metrics: pathlib.Path) -> int:
    """Returns the last step logged, or 0."""
    lines = _lines(metrics)
    return json.loads(lines[-1])["step"] if lines else 0


def _lines(metrics: pathlib.Path) -> list[str]:
    return metrics.read_text().split("\n")[:-1] if metrics.exists() else []
