"""Untrusted files, decoded in a process of its own: bounded memory, bounded time, one thread.

A file that looks normal can make a decoder take any amount of memory or time, and no inspection finds every
such file. So one child process decodes for this one. It is started with the first file, gets each file's path
over a pipe and answers with a number, or with pixels of the requested size. It is replaced when it dies, or
when it keeps memory after a file. Where the system has no limits (macOS has none on memory, Windows none at
all), the deadline alone ends it. `guard_child` is the other side.
"""

from __future__ import annotations

import atexit
import json
import os
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from svi_story.errors import Problem, TransientError
from svi_story.media.audio_files import SoundError
from svi_story.media.images import PictureError, open_image
from svi_story.portable import KILLED, OUT_OF_TIME, OWN_GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import BinaryIO

    from numpy.typing import NDArray

    from svi_story.errors import InputError

    Request = Mapping[str, object]
    ErrorType = Callable[[str], InputError]

SLOW = "takes more time to read than its size justifies; save it again with another program"
ENDED = "cannot be read: its decoder crashed; save it again with another program"

MAX_ANSWER = 2**16
"""Bytes of an answer, without its data."""
MAX_DATA = 4096 * 4096 * 3
"""Bytes: the largest frame."""
LENGTH = struct.Struct("<I")

_DEADLINE = 120.0
"""Seconds for any file, including waits for processors and disks; the child limits processor time."""
_PICTURE_DEADLINE, _SOUND_DEADLINE = 1.0, 40.0
"""Seconds more for each megabyte."""

_PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("SYSTEMROOT", "WINDIR", "USERPROFILE", "TEMP", "TMP"),
)
"""Environment variables that a Python may need to start; none sets an allocator, preloads or traces."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": str(2**20)}
"""For glibc: freed memory returns to the system, so that the limit does not count it."""
_BOOT = (
    "import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "sys.path[:] = json.loads(sys.argv[1]); from svi_story.media.guard_child import serve; serve()"
)


def fitted_picture(
    path: Path, width: int, height: int, fit: Literal["crop", "pad", "stretch"]
) -> NDArray[np.uint8]:
    """An image file, upright, in sRGB, brought to a size: height x width x 3, uint8.

    Raises PictureError for what is no readable image, or costs more than its size justifies.
    """
    return fitted_and_size(path, width, height, fit)[0]


def fitted_and_size(
    path: Path, width: int, height: int, fit: Literal["crop", "pad", "stretch"]
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """As `fitted_picture`, with the size that the picture had before."""
    request = {"kind": "picture", "path": str(path.absolute()), "width": width, "height": height, "fit": fit}
    with open_image(path) as file:
        seconds = _DEADLINE + _PICTURE_DEADLINE * _megabytes(file)
        answer = _CHILD.ask(request, file, seconds, partial(PictureError, path))
    if len(answer.data) != width * height * 3:
        raise PictureError(path, ENDED)
    pixels = np.frombuffer(answer.data, np.uint8).reshape(height, width, 3)
    return pixels, (answer.number >> 32, answer.number & 0xFFFFFFFF)


def check_picture(path: Path) -> None:
    """Raises PictureError where `fitted_picture` does."""
    fitted_picture(path, 16, 16, "stretch")


def count_samples(path: Path, file: BinaryIO) -> int:
    """The length of an open recording in samples at 48 kHz, read to its end.

    Raises SoundError for what is no readable sound, or costs more than its size justifies.
    """
    seconds = _DEADLINE + _SOUND_DEADLINE * _megabytes(file)
    request = {"kind": "sound", "path": str(path.absolute())}
    return _CHILD.ask(request, file, seconds, partial(SoundError, path)).number


def stop() -> None:
    """End the decoding process; the next file starts another."""
    _CHILD.stop()


def _megabytes(file: BinaryIO) -> float:
    return os.fstat(file.fileno()).st_size / 1e6


@dataclass(frozen=True)
class _Answer:
    refusal: str
    """Why the file cannot be used; empty where it can."""
    number: int
    data: bytes
    last: bool
    """Whether the child exits after it."""


class _Child:
    """The decoding process: one for this program, used by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Request, file: BinaryIO, seconds: float, error: ErrorType) -> _Answer:
        """The answer about an open file. Raises `error` with the reason of a refusal, or TransientError."""
        with self._lock:
            try:
                answer = self._answer(request, file, seconds)
            except BaseException:
                self._stop()  # a late answer would be taken for that to the next request
                raise
            if answer.last:
                self._stop()
        if answer.refusal:
            raise error(answer.refusal)
        return answer

    def stop(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._stop()

    def _answer(self, request: Request, file: BinaryIO, seconds: float) -> _Answer:
        request = {**request, "identity": identity_of(file)}
        ended = _Answer(ENDED, 0, b"", last=True)
        return self._attempt(request, seconds) or self._attempt(request, seconds) or ended

    def _attempt(self, request: Request, seconds: float) -> _Answer | None:
        """The answer; None where somebody else ended the child, which is worth another attempt."""
        process = self._process or self._start()
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            return _exchange(process, request)
        except (EOFError, OSError, ValueError, LookupError, TypeError):
            status = self._stop()
        finally:
            timer.cancel()
        if is_late.is_set() or status == OUT_OF_TIME:
            return _Answer(SLOW, 0, b"", last=True)
        return None if status in KILLED else _Answer(ENDED, 0, b"", last=True)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-c", _BOOT, json.dumps(search_path())]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this Python, and our own code
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=child_environment(),
                bufsize=0,
                **OWN_GROUP,  # ^C at the terminal is for this process; the child ends with its pipe
            )
        except OSError as error:
            what = f"no process could be started to read images and sounds ({error.strerror}); try again"
            raise TransientError(Problem(what)) from error
        return self._process

    def _stop(self) -> int:
        """End the child if it still runs; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        return process.wait()


def _exchange(process: subprocess.Popen[bytes], request: Request) -> _Answer:
    """Send a request and wait for its answer. Raises EOFError, or OSError where the child is gone."""
    assert process.stdin is not None
    text = json.dumps(request).encode()
    process.stdin.write(LENGTH.pack(len(text)) + text)
    (length,) = LENGTH.unpack(_receive(process, LENGTH.size))
    if length > MAX_ANSWER:
        raise EOFError
    reply = json.loads(_receive(process, length))
    data = _receive(process, min(reply["bytes"], MAX_DATA))
    return _Answer(reply["refusal"], reply["number"], data, reply["last"])


def _receive(process: subprocess.Popen[bytes], count: int) -> bytes:
    """Exactly so many bytes. Raises EOFError."""
    assert process.stdout is not None
    data = bytearray()
    while len(data) < count:
        got = process.stdout.read(count - len(data))
        if not got:
            raise EOFError
        data += got
    return bytes(data)


def identity_of(file: BinaryIO) -> list[int]:
    """What another file, or another content, does not have."""
    status = os.fstat(file.fileno())
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


def child_environment() -> dict[str, str]:
    """The environment of a decoding process."""
    inherited = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**inherited, **dict.fromkeys(_THREADS, "1"), **_ALLOCATOR}


def search_path() -> list[str]:
    """The module search path of the child: that of this process, without the working folder."""
    here = Path(__file__).resolve().parents[2]
    return [str(here), *(os.path.abspath(place) for place in sys.path if place)]  # noqa: PTH100 - links stay


_CHILD = _Child()
atexit.register(_CHILD.stop)
