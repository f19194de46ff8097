"""CPU time of every test, and the twenty that cost most: see CONTRIBUTING.md.

CPU seconds, of the test's process and of those that it starts, compare across machines
that are busy, where seconds on the clock do not. They are in the JUnit file as the
property `cpu_seconds`; a fixture counts for the test that makes it.
"""

import os
from collections import Counter
from typing import Any

import pytest

_SHOWN = 20


class CpuTimes:
    """Measures where tests run, and adds up where they are reported."""

    def __init__(self):
        self._began = 0.0
        self._of_tests: dict[str, float] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._began = _cpu_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: Any) -> Any:
        report = yield
        if call.when == "teardown":
            spent = _cpu_seconds() - self._began
            report.user_properties.append(("cpu_seconds", round(spent, 2)))
        return report

    def pytest_runtest_logreport(self, report: Any) -> None:
        for name, value in report.user_properties:
            if name == "cpu_seconds":
                self._of_tests[report.nodeid] = value

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if len(self._of_tests) < _SHOWN:
            return
        files = Counter[str]()
        for test, seconds in self._of_tests.items():
            files[test.partition("::")[0]] += seconds
        total = sum(self._of_tests.values())
        write = terminalreporter.write_line
        terminalreporter.section(f"{total:.0f} CPU seconds; the {_SHOWN} dearest tests")
        for name, seconds in Counter(self._of_tests).most_common(_SHOWN):
            write(f"{seconds:7.1f} {name}")
        terminalreporter.section(f"the {_SHOWN} dearest files")
        for name, seconds in files.most_common(_SHOWN):
            write(f"{seconds:7.1f} {name}")


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
