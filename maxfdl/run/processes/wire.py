"""What goes over the connections between the processes of a run: lines of JSON."""

import json
import os
import socket
from typing import Any

Message = dict[str, Any]

# A machine that is switched off or cut off is noticed after 5 + 4 * 5 seconds. The
# kernel answers for a process that lives, however busy or stopped that is.
_FIRST_PROBE_SECONDS, _PROBE_SECONDS, _PROBES = 5, 5, 4

LONGEST_LINE = 2**28
"""Bytes; the longest line is the graph of a run."""

SAY_AFTER = 10.0
"""Seconds after which a process says whom it is waiting for."""


def own_name() -> str:
    """Returns what tells a person which process this is."""
    return f"pid {os.getpid()} on {socket.gethostname()}"


def encode(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Returns the message of a line.

    Raises:
      ValueError: If the line is none, as from a program that is no process of a run.
    """
    message = json.loads(line)
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise ValueError("not a message")
    return message


def watch(connection: socket.socket) -> None:
    """Has the kernel end a connection whose other machine does not answer any more."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = _FIRST_PROBE_SECONDS + _PROBES * _PROBE_SECONDS
    options = {
        "TCP_KEEPIDLE": _FIRST_PROBE_SECONDS,
        "TCP_KEEPINTVL": _PROBE_SECONDS,
        "TCP_KEEPCNT": _PROBES,
        # Counts where sent bytes wait for their receipt, which keeps probes back.
        "TCP_USER_TIMEOUT": 1000 * seconds,
        "TCP_NODELAY": 1,
    }
    for name, value in options.items():
        if hasattr(socket, name):  # macOS lacks two of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def died(process: int, num_processes: int, name: str) -> str:
    """Returns the sentence for a process whose connection has ended."""
    return (
        f"process {process} of {num_processes} ({name}) has died: it was killed, ran"
        " out of memory, or its machine cannot be reached. Start all processes again;"
        " a run continues from its last checkpoint."
    )
