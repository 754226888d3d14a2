"""The process behind `guard`: one file at a time, within limits, until the pipe at standard input closes.

Limits are set again for each file. Memory: so much more than the process had after loading its libraries.
Processor time: what this file's size and pixels justify; the system ends the process that exceeds it.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import AvifImagePlugin

from svi_story.files import open_regular
from svi_story.media.guard import ENDED, LENGTH, identity_of
from svi_story.media.image_headers import MEMORY
from svi_story.media.images import fit_picture, read_picture
from svi_story.portable import resource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, BinaryIO

    from svi_story.media.image_headers import Header

SECONDS = 4
"""Of processor time for any file. A good one of a few kilobytes takes some hundredths."""
PICTURE_SECONDS, PIXEL_SECONDS = 0.1, 0.3
"""For each megabyte and for each megapixel of a picture: four times what the slowest good ones took."""
SOUND_SECONDS, LONGEST_SOUND = 20.0, 1200
"""For each megabyte of a sound, and in all: Opus of four silent hours took 11 a megabyte and 36 in all."""

SOUND_MEMORY, SOUND_MEMORY_PER_BYTE = 128 * 2**20, 2
"""Bytes for any sound, and for each byte of it; MEMORY at most."""

MAX_GROWTH = 64 * 2**20
"""A process whose memory has grown by more bytes is replaced: the next file needs that memory."""

_UNUSED_NAME = Path("image")
CHANGED = "changed while it was read; run the same command again"


class Limits:
    """Limits on memory and processor time of this process; none on Windows."""

    def __init__(self) -> None:
        limits = (resource.RLIMIT_AS, resource.RLIMIT_CPU) if resource else ()
        self._hard = {what: resource.getrlimit(what)[1] for what in limits}
        self._base = 0
        if resource:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self.measure()

    def measure(self) -> None:
        """Take the present size of the process as its base."""
        self._base = _address_space()

    @property
    def has_grown(self) -> bool:
        """Whether the process keeps much more memory than it started with."""
        return _address_space() > self._base + MAX_GROWTH

    def set(self, memory: int, seconds: float) -> None:
        """Allow so many bytes and seconds more from now on."""
        if not resource:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds) + 1)
        if self._base:
            self._lower(resource.RLIMIT_AS, self._base + memory)

    def lift(self) -> None:
        """Return to the limits of the parent."""
        for what, hard in self._hard.items():
            self._lower(what, hard)

    def _lower(self, what: int, soft: int) -> None:
        hard = self._hard[what]
        if hard != resource.RLIM_INFINITY:
            soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
        with suppress(OSError, ValueError):  # where a system refuses a limit, the deadline remains
            resource.setrlimit(what, (soft, hard))


def _address_space() -> int:
    """Bytes of this process's address space; 0 where the system does not report it."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * mmap.PAGESIZE
    return 0


def take_output() -> BinaryIO:
    """Standard output, for answers alone: libraries may print."""
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    return answers


def serve() -> None:
    """Answer requests until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    requests, answers = sys.stdin.buffer, take_output()
    limits = Limits()
    last = False
    with suppress(ConnectionError), answers:
        while not last and (head := requests.read(LENGTH.size)):
            request = json.loads(requests.read(*LENGTH.unpack(head)))
            refusal, number, data = _answer(request, limits)
            last = limits.has_grown
            reply = {"refusal": refusal, "number": number, "bytes": len(data), "last": last}
            text = json.dumps(reply).encode()
            answers.write(LENGTH.pack(len(text)) + text + data)
            answers.flush()


def _answer(request: Mapping[str, Any], limits: Limits) -> tuple[str, int, bytes]:
    """The reason of a refusal, the number of samples or the picture's size, the pixels."""
    try:
        with open_regular(Path(request["path"])) as file:
            if identity_of(file) != request["identity"]:
                return CHANGED, 0, b""
            if request["kind"] == "sound":
                return "", _samples(file, limits), b""
            return "", *_pixels(request, file, limits)
    except MemoryError:
        return "needs more memory than its size justifies; save it again with another program", 0, b""
    except Exception as error:  # noqa: BLE001 - decoders raise anything
        return getattr(error, "reason", f"{ENDED} ({type(error).__name__})")[:1000], 0, b""
    finally:
        limits.lift()


def _pixels(request: Mapping[str, Any], file: BinaryIO, limits: Limits) -> tuple[int, bytes]:
    """The size before it was fitted (width << 32 | height), and the fitted pixels."""
    seconds = SECONDS + PICTURE_SECONDS * os.fstat(file.fileno()).st_size / 1e6

    def allow(header: Header) -> None:
        pixels = max((width * height for width, height in header.sizes), default=0)
        limits.set(MEMORY, seconds + PIXEL_SECONDS * pixels / 1e6)

    limits.set(MEMORY, seconds)
    image = read_picture(_UNUSED_NAME, file, allow)
    fitted = fit_picture(image, request["width"], request["height"], request["fit"])
    return image.width << 32 | image.height, fitted.tobytes()


def _samples(file: BinaryIO, limits: Limits) -> int:
    if "av" not in sys.modules:
        import av  # noqa: F401 - before the limits, as a part of the process

        limits.measure()
    from svi_story.media.audio import samples_in

    size = os.fstat(file.fileno()).st_size
    seconds = min(SECONDS + SOUND_SECONDS * size / 1e6, LONGEST_SOUND)
    limits.set(min(SOUND_MEMORY + SOUND_MEMORY_PER_BYTE * size, MEMORY), seconds)
    return samples_in(_UNUSED_NAME, file)
