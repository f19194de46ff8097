"""Checks that crash, hang and fail, for processes that must outlive them.

Not beside the tests: a child imports this module, and should not have to import JAX.
"""

import os
import sys
import time

from maxfdl.run.accelerator.check import Bench, Check, Outcome


def fine(bench: Bench) -> Outcome:
    names = ", ".join(bench.earlier) or "nothing"
    return Outcome("passed", f"after {names}", {"pid": os.getpid()})


def raising(bench: Bench) -> Outcome:
    raise ValueError("no such kernel\nand a page more")


def aborting(bench: Bench) -> Outcome:
    print("F1127 Unknown flag in XLA_FLAGS", file=sys.stderr, flush=True)
    os.abort()


def exiting(bench: Bench) -> Outcome:
    os._exit(3)


def hanging(bench: Bench) -> Outcome:
    time.sleep(600)
    raise AssertionError


def reading_environment(bench: Bench) -> Outcome:
    return Outcome("passed", os.environ["MAXFDL_FAKE"], {"pid": os.getpid()})


def starting_jax(bench: Bench) -> Outcome:
    import jax

    return Outcome("measured", jax.devices()[0].device_kind)


FINE = Check("fake/fine", fine)
AGAIN = Check("fake/again", fine)
RAISING = Check("fake/raising", raising)
ABORTING = Check("fake/aborting", aborting)
PROBE = Check("fake/probe", aborting, if_killed="refused", is_alone=True)
EXITING = Check("fake/exiting", exiting)
HANGING = Check("fake/hanging", hanging, seconds=0.5)
ALONE = Check(
    "fake/alone",
    reading_environment,
    is_alone=True,
    environment={"MAXFDL_FAKE": "seen"},
)
UNKNOWN_FLAG = Check(
    "fake/unknown_flag",
    starting_jax,
    is_alone=True,
    environment={"XLA_FLAGS": "--xla_no_such_flag=1"},
    if_killed="refused",
)
