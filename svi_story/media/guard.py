"""Files from strangers, decoded in a process of its own: bounded memory, bounded time, one thread.

A decoder may be made to take any amount of memory or time by a file that looks harmless, and no inspection
finds every such file. So one child process decodes for this one. It is started when the first file comes,
gets each file as an open descriptor and answers with a number, or with pixels of the size that was asked for.
It is replaced when it dies, or when a file left less memory than it found. Where the system has no limits
(macOS has none on memory), the deadline alone ends it. `guard_child` is the other side.
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

    Question = Mapping[str, object]
    Refusal = Callable[[str], InputError]

SLOW = "takes more time to read than its size justifies; save it again with another program"
ENDED = "cannot be read: its decoder crashed; save it again with another program"

LONGEST_ANSWER = 2**16
"""Bytes of an answer, without its data."""
MOST_DATA = 4096 * 4096 * 3
"""Bytes: the largest frame."""
LENGTH = struct.Struct("<I")

_DEADLINE = 120.0
"""Seconds for any file, with all waiting for processors and disks; processor time is limited by the child."""
_PICTURE_DEADLINE, _SOUND_DEADLINE = 1.0, 40.0
"""Seconds more for each megabyte."""

_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)
"""How it ends when somebody ends it: worth another try."""

_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Variables that a Python may need to start; none of them steers an allocator, preloads or traces."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": str(2**20)}
"""glibc's: what was freed goes back to the system, where the limit counts it."""
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
    question = {"kind": "picture", "width": width, "height": height, "fit": fit}
    with open_image(path) as file:
        seconds = _DEADLINE + _PICTURE_DEADLINE * _megabytes(file)
        answer = _CHILD.ask(question, file, seconds, partial(PictureError, path))
    if len(answer.data) != width * height * 3:
        raise PictureError(path, ENDED)
    return np.frombuffer(answer.data, np.uint8).reshape(height, width, 3)


def check_picture(path: Path) -> None:
    """Raises PictureError where `fitted_picture` would."""
    fitted_picture(path, 16, 16, "stretch")


def count_samples(path: Path, file: BinaryIO) -> int:
    """The length of an open recording in samples at 48 kHz, read to its end; `path` names it in errors.

    Raises SoundError for what is no readable sound, or costs more than its size justifies.
    """
    seconds = _DEADLINE + _SOUND_DEADLINE * _megabytes(file)
    return _CHILD.ask({"kind": "sound"}, file, seconds, partial(SoundError, path)).number


def stop() -> None:
    """End the process that decodes; the next file starts another."""
    _CHILD.stop()


def _megabytes(file: BinaryIO) -> float:
    return os.fstat(file.fileno()).st_size / 1e6


@dataclass(frozen=True)
class _Answer:
    refused: str
    """Why the file cannot be used; empty where it can."""
    number: int
    data: bytes
    last: bool
    """Whether the child ends after it."""


class _Child:
    """The process that decodes: one for this program, for one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def ask(self, question: Question, file: BinaryIO, seconds: float, refused: Refusal) -> _Answer:
        """The answer about an open file. Raises what `refused` makes of a reason, or TransientError."""
        with self._lock:
            try:
                answer = self._answer(question, file, seconds)
            except BaseException:
                self._stop()  # an answer that nobody waited for would be taken for the next one's
                raise
            if answer.last:
                self._stop()
        if answer.refused:
            raise refused(answer.refused)
        return answer

    def stop(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._stop()

    def _answer(self, question: Question, file: BinaryIO, seconds: float) -> _Answer:
        for _attempt in range(2):
            try:
                return self._exchange(question, file, time.monotonic() + seconds)
            except TimeoutError:
                return _Answer(SLOW, 0, b"", last=True)
            except (EOFError, ConnectionError, ValueError, LookupError, TypeError):
                status = self._stop()
            if status not in _FROM_OUTSIDE:
                return _Answer(SLOW if status == -signal.SIGXCPU else ENDED, 0, b"", last=True)
        return _Answer(ENDED, 0, b"", last=True)

    def _exchange(self, question: Question, file: BinaryIO, deadline: float) -> _Answer:
        channel = self._socket or self._start()
        _wait(channel, deadline)
        socket.send_fds(channel, [json.dumps(question).encode()], [file.fileno()])
        (length,) = LENGTH.unpack(_receive(channel, LENGTH.size, deadline))
        if length > LONGEST_ANSWER:
            raise EOFError
        said = json.loads(_receive(channel, length, deadline))
        data = _receive(channel, min(said["bytes"], MOST_DATA), deadline)
        return _Answer(said["refused"], said["number"], data, said["last"])

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-I", "-c", _BOOT, json.dumps(_search_path())]
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - this Python, and code of ours
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                    process_group=0,  # ^C at the terminal is for this process; the child ends with its socket
                )
        except OSError as error:
            ours.close()
            what = f"no process could be started to read images and sounds ({error.strerror}); try again"
            raise TransientError(Problem(what)) from error
        self._socket = ours
        return ours

    def _stop(self) -> int:
        """End the child, which holds nothing worth keeping; how it ended, by itself or now."""
        channel, process = self._socket, self._process
        self._socket = self._process = None
        if channel is not None:
            channel.close()
        if process is None:
            return 0
        process.kill()
        return process.wait()


def _wait(channel: socket.socket, deadline: float) -> None:
    """Let the next call on a socket take until then. Raises TimeoutError when that is over."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    channel.settimeout(left)


def _receive(channel: socket.socket, count: int, deadline: float) -> bytes:
    """So many bytes. Raises EOFError and TimeoutError."""
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
    """Where the child finds modules: where this process does, and never in the working folder of the day."""
    here = Path(__file__).resolve().parents[2]
    return [str(here), *(os.path.abspath(place) for place in sys.path if place)]  # noqa: PTH100 - links stay


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, **dict.fromkeys(_THREADS, "1"), **_ALLOCATOR}


_CHILD = _Child()
atexit.register(_CHILD.stop)
