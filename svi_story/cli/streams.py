"""The standard streams: always open, and a standard error that stops nobody."""

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
"""Seconds for a reader that does not keep up, where writing does not wait by itself."""


class _LossyFile(io.RawIOBase):
    """A file descriptor to write to; what cannot be written is lost, and never an error.

    A full disk under a log, a pipe whose reader has left: none of that is worth a render. As soon as there is
    room again, what comes is written.
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
    """Open what of the standard streams is closed, and make of standard error one that stops nobody.

    Where one is closed, the next file that is opened would get its number, and what libraries and other
    programs write to it. Standard output that was closed stays one that cannot be written.
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
