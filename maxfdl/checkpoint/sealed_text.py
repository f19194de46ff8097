"""Text inside a checkpoint, with a checksum."""

import asyncio
import zlib
from collections.abc import Awaitable
from typing import Any


class SealedText:
    """One text file of a checkpoint that notices when it is read back changed.

    Orbax saves and loads it through the two coroutines of its `StatefulCheckpointable`
    protocol: each does what must not wait, and returns the rest to be done in the
    background. The file holds the CRC-32 of the text on its first line.

    Args:
      filename: File to write; processes that save different texts need different names.
      text: What to save, or None to write nothing. Set by loading.
    """

    def __init__(self, filename: str, text: str | None = None):
        self.filename = filename
        self.text = text

    async def save(self, directory: Any) -> Awaitable[None]:
        return self._write(directory, self.text)

    async def load(self, directory: Any) -> Awaitable[None]:
        return self._read(directory)

    async def _write(self, directory: Any, text: str | None) -> None:
        folder = await directory.await_creation()
        if text is not None:
            content = f"{_checksum(text)}\n{text}"
            await asyncio.to_thread((folder / self.filename).write_text, content)

    async def _read(self, directory: Any) -> None:
        path = directory / self.filename
        checksum, _, text = (await asyncio.to_thread(path.read_text)).partition("\n")
        if checksum != _checksum(text):
            raise ValueError(f"{self.filename} has changed since it was written")
        self.text = text


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
