"""How a process is noticed that is connected and does not answer: SIGSTOP, a hang.

Process 0 asks every process for a sign of life several times within the heartbeat, and
each knows by that that process 0 lives. The kernel tells of those that die.
"""

import time

BEATS = 10
"""How often a process is asked within the time that it may be silent."""


class Silence:
    """How long another process has said nothing, as it is measured beat by beat.

    Time in which this process did not run itself does not count, as after SIGSTOP or
    on a laptop that slept: then nobody could be heard.

    Args:
      limit: Seconds after which the silence is too long.
    """

    def __init__(self, limit: float):
        self.limit = limit
        self._seconds = 0.0
        self._last = time.monotonic()

    @property
    def beat(self) -> float:
        """Seconds from one measurement to the next."""
        return self.limit / BEATS

    def broken(self) -> None:
        """Notes that the other process has said something."""
        self._seconds = 0.0

    def is_too_long(self) -> bool:
        """Measures the silence, once a beat."""
        now = time.monotonic()
        self._seconds += min(now - self._last, 2 * self.beat)
        self._last = now
        return self._seconds > self.limit


def silent(process: int, num_processes: int, name: str, limit: float) -> str:
    """Returns the sentence for a process that has been silent for too long."""
    return (
        f"process {process} of {num_processes} ({name}) has not answered for"
        f" {limit:g} s: it is stopped, hangs, or its machine has no time for it. End it"
        " and start all processes again; a run continues from its last checkpoint."
        " --heartbeat_timeout sets the limit."
    )
