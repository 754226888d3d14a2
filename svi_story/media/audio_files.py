"""Files from strangers, opened so that nothing waits, no other file is read and the work is bounded."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, BinaryIO

from svi_story.errors import InputError, Problem

if TYPE_CHECKING:
    from pathlib import Path

    from svi_story.media.audio_source import View

MAX_BYTES = 4 * 2**30
"""As much as a WAV file can hold: four hours of studio sound."""

CURE = "save it again as WAV or MP3"

_READS_PER_BYTE = 32
_SPARE_BYTES = 64 * 2**20
_CALL_BYTES = 512
"""What one call counts for at least, so that reading nothing over and over comes to an end too."""

_UNKNOWN_LENGTH = 0x7FFF_0000
"""From here on a WAV file's length is what programs write that did not know it yet."""

_LONGEST_PAGE = 65_307
"""Bytes of an Ogg page."""


class SoundError(InputError):
    """A recording that cannot be used. `reason` says why and what to do, without naming the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(Problem(f"the sound {path} {reason}"))
        self.reason = reason


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, unbuffered. Raises SoundError for anything else, and never waits."""
    try:
        _check(path, path.stat())
        # The file may be swapped for a named pipe meanwhile: O_NONBLOCK keeps that from waiting for ever.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
    except FileNotFoundError:
        raise SoundError(path, "does not exist; check the path and its spelling") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SoundError(path, f"cannot be read ({reason}); check the path and its permissions") from None
    try:
        _check(path, os.fstat(file.fileno()))
        _check_whole(path, file)
    except BaseException:
        file.close()
        raise
    return file


def _check(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise SoundError(path, "is a folder; name an audio file in it")
    if not stat.S_ISREG(status.st_mode):
        raise SoundError(path, "is not a regular file; name an audio file")
    if status.st_size == 0:
        raise SoundError(path, "is empty (0 bytes); copy or save it again")
    if status.st_size > MAX_BYTES:
        raise SoundError(path, f"is larger than {MAX_BYTES // 2**30} GiB; cut it, or save it as MP3 or FLAC")


def _check_whole(path: Path, file: BinaryIO) -> None:
    """libav plays what is left of a WAV or Ogg file that was cut off, and says nothing."""
    size = os.fstat(file.fileno()).st_size
    head = os.pread(file.fileno(), 12, 0)
    claimed = size
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        claimed = _wav_size(head)
    elif head[:4] == b"OggS":
        start = max(size - _LONGEST_PAGE, 0)
        claimed = start + _ogg_size(os.pread(file.fileno(), _LONGEST_PAGE, start))
    if _UNKNOWN_LENGTH > claimed > size:
        what = f"should have at least {claimed} bytes, and has {size}"
        raise SoundError(path, f"is cut off: it {what}; copy or save it again")


def _wav_size(head: bytes) -> int:
    return (
        int.from_bytes(head[4:8], "little") & ~1
    )  # some count the first 8 bytes, some a padding byte too many


def _ogg_size(tail: bytes) -> int:
    """Where the last page that begins in a file's last bytes ends: 27 bytes, a table of lengths, the data."""
    page = max(tail.rfind(b"OggS"), 0)
    if len(tail) < page + 27:
        return page + 27
    lengths = tail[page + 27 :][: tail[page + 26]]
    return page + 27 + tail[page + 26] + sum(lengths)


class BoundedFile:
    """An open file as libav reads it: by no name, only what `view` shows of it, and not over and over.

    A damaged index may send a reader round in circles; after many times the file's size it is an OSError.
    """

    def __init__(self, file: BinaryIO, view: View | None = None) -> None:
        self._file = file
        self._view = view
        self._start = view.start if view else 0
        self._left = _READS_PER_BYTE * os.fstat(file.fileno()).st_size + _SPARE_BYTES
        file.seek(self._start)

    def read(self, count: int) -> bytes:
        """At most `count` bytes; none at the end."""
        at = self._file.tell()
        data = self._file.read(count)
        self._left -= max(len(data), _CALL_BYTES)
        if self._left < 0:
            raise OSError(None, "its index goes round in circles")
        return self._view.masked(at, data) if self._view else data

    def seek(self, offset: int, whence: int) -> int:
        """Move, as a file does."""
        self._left -= _CALL_BYTES
        return self._file.seek(offset + (self._start if whence == os.SEEK_SET else 0), whence) - self._start

    def tell(self) -> int:
        """Where it is."""
        return self._file.tell() - self._start
