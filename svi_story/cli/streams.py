"""The standard streams: always open, and a standard error that never fails."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING

from svi_story.portable import IS_POSIX

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PATIENCE = 1.0
"""Seconds to wait for a slow reader, where the descriptor does not block."""


class _LossyFile(io.RawIOBase):
    """Writes to a file descriptor. What cannot be written is lost, and never raises an error.

    A full disk or a closed pipe must not stop a render. As soon as writing works again, new data are written.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._cut = False
        """Whether the last line was lost half-way."""

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: ReadableBuffer) -> int:
        """Write what can be written."""
        asked = bytes(data)
        left = b"\n" + asked if self._cut else asked
        try:
            while left:
                written = self._write(left)
                self._cut = left[written - 1 : written] != b"\n"
                left = left[written:]
        except OSError:
            pass
        else:
            self._cut = False
        return len(asked)

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            select.select([], [self._descriptor], [], PATIENCE)
            return os.write(self._descriptor, data)


def open_streams() -> None:
    """Open the standard streams that are closed, and replace standard error by one that never fails.

    If one were closed, the next file that is opened would get its number, and everything that libraries and
    other programs write to it. Standard output that was closed cannot be written afterwards either.
    """
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "", os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)  # noqa: FBT003 - it knows no names
        if name and getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # Python made it
    if not IS_POSIX and sys.stderr and sys.stderr.isatty():  # a console of Windows takes text, not bytes
        sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # Python made it
        return
    lossy = io.BufferedWriter(_LossyFile(2))
    sys.stderr = io.TextIOWrapper(lossy, encoding, "backslashreplace", line_buffering=True)
