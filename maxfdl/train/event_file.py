"""Scalars as TensorBoard events."""

import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from maxfdl.files import growing
from maxfdl.paths import AnyPath


class EventFile:
    """One file of events, written by the thread that calls.

    `tensorboardX.SummaryWriter` is not used: it hands events to a thread. A full disk
    ends that thread with a traceback, and the eleventh write after that blocks forever.

    Args:
      folder: Where the file goes; made if it is missing.
      first_step: TensorBoard drops events of earlier files from this step on. None
        keeps them.
    """

    def __init__(self, folder: AnyPath, first_step: int | None = None):
        # Takes 0.2 seconds, and a run without TensorBoard needs none of it.
        from tensorboardX import proto, record_writer

        messages: Any = proto  # which types do not describe
        event, summary = messages.event_pb2, messages.summary_pb2
        self._checksum = record_writer.masked_crc32c
        self._event, self._summary = event.Event, summary.Summary
        folder.mkdir(exist_ok=True)
        host = f"{socket.gethostname()}.{os.getpid()}"
        name = f"events.out.tfevents.{int(time.time()):010}.{host}"
        self._file = growing(folder / name)
        self._append(file_version="brain.Event:2")
        if first_step is not None:
            start = event.SessionLog(status=event.SessionLog.START)
            self._append(step=first_step, session_log=start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars of one step."""
        of = self._summary.Value
        scalars = [of(tag=name, simple_value=value) for name, value in values.items()]
        self._append(step=step, summary=self._summary(value=scalars))

    def close(self) -> None:
        self._file.close()

    def _append(self, **fields) -> None:
        """Appends an event as a record of TFRecord: length and data, each checked."""
        data = self._event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        checks = (struct.pack("<I", self._checksum(part)) for part in (length, data))
        self._file.append(length + next(checks) + data + next(checks))
