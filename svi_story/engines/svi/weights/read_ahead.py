"""Weight files, read into the system's page cache before they are needed, while something else computes."""

from __future__ import annotations

from contextlib import suppress
from threading import Event, Thread
from typing import TYPE_CHECKING

from svi_story.engines.svi.device import free_ram
from svi_story.files import open_regular
from svi_story.units import GIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

CHUNK = 8 * 2**20
SPARE = 4 * GIB
"""Bytes of RAM that stay free: pages that push out others would have to be read twice."""


class ReadAhead:
    """Reads files in a thread of its own and throws away what they hold.

    Never fails, and changes nothing: what cannot be read is reported when it is needed.
    """

    def __init__(self, free: Callable[[], int] = free_ram) -> None:
        self._free = free
        self._stopped = Event()
        self._thread: Thread | None = None

    def start(self, files: Iterable[Path]) -> None:
        """Begin to read these files, if they fit into RAM; nothing while others are being read."""
        due = sorted(set(files))
        with suppress(OSError):
            size = sum(file.stat().st_size for file in due)
            is_busy = self._thread is not None and self._thread.is_alive()
            if due and not is_busy and size + SPARE <= self._free():
                self._stopped.clear()
                self._thread = Thread(target=self._read, args=(due,), name="read ahead", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the reading."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _read(self, files: Iterable[Path]) -> None:
        memory = memoryview(bytearray(CHUNK))
        for path in files:
            with suppress(OSError), open_regular(path) as file:
                while not self._stopped.is_set() and file.readinto(memory):
                    pass
