"""What a hushed package prints of its failures, and what others still print."""

import subprocess
import sys

import pytest

# One file for the package and one for its user: the same failures, in every way that
# Python prints one that nobody catches.
FAILURES = """
import asyncio, gc, logging, threading

def fail(what):
    raise RuntimeError(what)

async def fail_later(what):
    fail(what)

class FailsAtItsEnd:
    def __init__(self, what):
        self.what = what

    def __del__(self):
        fail(self.what)

async def abandon(what):
    task = asyncio.ensure_future(fail_later(what))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

def fail_in_all_ways(who):
    thread = threading.Thread(target=fail, args=[f"thread of {who}"])
    thread.start(), thread.join()
    asyncio.run(abandon(f"task of {who}"))
    FailsAtItsEnd(f"end of {who}")
    never_begun = fail_later("")
    never_begun.__qualname__ = f"coroutine of {who}"
    del never_begun
    try:
        fail(f"caught by {who}")
    except RuntimeError:
        logging.getLogger("absl").exception(f"logged by {who}")
    logging.getLogger("absl").warning(f"warning of {who}")
    gc.collect()
"""
USER = """
import noisy
from maxfdl.hush import hush

noisy.fail_in_all_ways("a package")
hush("noisy")
noisy.fail_in_all_ways("a hushed package")
fail_in_all_ways("its user")
"""
WAYS = ("thread of", "task of", "end of", "coroutine of", "logged by")


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    (folder / "noisy").mkdir()
    (folder / "noisy" / "__init__.py").write_text(FAILURES)
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{FAILURES}{USER}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_failures_of_a_hushed_package_are_not_printed(printed, way):
    assert f"{way} a package" in printed
    assert f"{way} a hushed package" not in printed


@pytest.mark.parametrize("way", WAYS)
def test_failures_elsewhere_still_are(printed, way):
    assert f"{way} its user" in printed


def test_warnings_of_a_hushed_package_still_are(printed):
    assert "warning of a hushed package" in printed
