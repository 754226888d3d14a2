"""Untrusted files, decoded in a process of its own: bounded memory, bounded time, one thread.

A file that looks harmless can make a decoder take any amount of memory or time, and no inspection finds every
such file. So one child process decodes for this one. It is started with the first file, gets each file as an
open descriptor and answers with a number, or with pixels of the requested size. It is replaced when it dies,
or when it keeps memory after a file. Where the system has no limits (macOS has none on memory), the deadline
alone ends it. `guard_child` is the other side.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from svi_story.errors import Problem, TransientError
from svi_story.media.audio_files import SoundError
from svi_story.media.images import PictureError, open_image

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

_ENDED_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)
"""Exit codes of a child that somebody ended: worth another try."""

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
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
    request = {"kind": "picture", "width": width, "height": height, "fit": fit}
    with open_image(path) as file:
        seconds = _DEADLINE + _PICTURE_DEADLINE * _megabytes(file)
        answer = _CHILD.ask(request, file, seconds, partial(PictureError, path))
    if len(answer.data) != width * height * 3:
        raise PictureError(path, ENDED)
    return np.frombuffer(answer.data, np.uint8).reshape(height, width, 3)


def check_picture(path: Path) -> None:
    """Raises PictureError where `fitted_picture` does."""
    fitted_picture(path, 16, 16, "stretch")


def count_samples(path: Path, file: BinaryIO) -> int:
    """The length of an open recording in samples at 48 kHz, read to its end; `path` names it in errors.

    Raises SoundError for what is no readable sound, or costs more than its size justifies.
    """
    seconds = _DEADLINE + _SOUND_DEADLINE * _megabytes(file)
    return _CHILD.ask({"kind": "sound"}, file, seconds, partial(SoundError, path)).number


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
        self._socket: socket.socket | None = None

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
        for _attempt in range(2):
            try:
                return self._exchange(request, file, time.monotonic() + seconds)
            except TimeoutError:
                return _Answer(SLOW, 0, b"", last=True)
            except (EOFError, ConnectionError, ValueError, LookupError, TypeError):
                status = self._stop()
            if status not in _ENDED_FROM_OUTSIDE:
                return _Answer(SLOW if status == -signal.SIGXCPU else ENDED, 0, b"", last=True)
        return _Answer(ENDED, 0, b"", last=True)

    def _exchange(self, request: Request, file: BinaryIO, deadline: float) -> _Answer:
        channel = self._socket or self._start()
        _wait(channel, deadline)
        socket.send_fds(channel, [json.dumps(request).encode()], [file.fileno()])
        (length,) = LENGTH.unpack(_receive(channel, LENGTH.size, deadline))
        if length > MAX_ANSWER:
            raise EOFError
        reply = json.loads(_receive(channel, length, deadline))
        data = _receive(channel, min(reply["bytes"], MAX_DATA), deadline)
        return _Answer(reply["refusal"], reply["number"], data, reply["last"])

    def _start(self) -> socket.socket:
        parent_end, child_end = socket.socketpair()
        inherited = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment = {**inherited, **dict.fromkeys(_THREADS, "1"), **_ALLOCATOR}
        command = [sys.executable, "-I", "-c", _BOOT, json.dumps(_search_path())]
        try:
            with child_end:
                self._process = subprocess.Popen(  # noqa: S603 - this Python, and our own code
                    command,
                    stdin=child_end.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    process_group=0,  # ^C at the terminal is for this process; the child ends with its socket
                )
        except OSError as error:
            parent_end.close()
            what = f"no process could be started to read images and sounds ({error.strerror}); try again"
            raise TransientError(Problem(what)) from error
        self._socket = parent_end
        return parent_end

    def _stop(self) -> int:
        """End the child if it still runs; its exit code."""
        channel, process = self._socket, self._process
        self._socket = self._process = None
        if channel is not None:
            channel.close()
        if process is None:
            return 0
        process.kill()
        return process.wait()


def _wait(channel: socket.socket, deadline: float) -> None:
    """Let the next call on a socket wait until the deadline. Raises TimeoutError after it."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    channel.settimeout(left)


def _receive(channel: socket.socket, count: int, deadline: float) -> bytes:
    """Exactly so many bytes. Raises EOFError and TimeoutError."""
    data = bytearray(count)
    view = memoryview(data)
    while view:
        _wait(channel, deadline)
        got = channel.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return bytes(data)


def _search_path() -> list[str]:
    """The module search path of the child: that of this process, without the working folder."""
    here = Path(__file__).resolve().parents[2]
    return [str(here), *(os.path.abspath(place) for place in sys.path if place)]  # noqa: PTH100 - links stay


_CHILD = _Child()
atexit.register(_CHILD.stop)
