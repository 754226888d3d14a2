"""The process behind `guard`: one file at a time, within limits, until the socket at standard input closes.

Limits are set anew for each file. Memory: so much above what the process had when its libraries were loaded.
Processor time: what this file's size and pixels justify; the system ends the process when it is used up.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story.media.guard import ENDED, LENGTH
from svi_story.media.image_headers import MEMORY
from svi_story.media.images import fit_picture, read_picture

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from svi_story.media.image_headers import Header

SECONDS = 4
"""Of processor time for any file. A good one of a few kilobytes takes some hundredths."""
PICTURE_SECONDS, PIXEL_SECONDS = 0.1, 0.3
"""For each megabyte and for each megapixel of a picture: four times what the slowest good ones took."""
SOUND_SECONDS, LONGEST_SOUND = 20.0, 1200
"""For each megabyte of a sound, and in all: Opus of four silent hours took 11 a megabyte and 36 in all."""

SOUND_MEMORY, SOUND_MEMORY_PER_BYTE = 128 * 2**20, 2
"""Bytes for any sound, and for each byte of it; MEMORY at most."""

WORN = 64 * 2**20
"""A process that keeps so many bytes more than it began with is replaced: the next file would lack them."""

_UNUSED_NAME = Path("image")


class _Limits:
    """What the system lets this process take."""

    def __init__(self) -> None:
        self._hard = {what: resource.getrlimit(what)[1] for what in (resource.RLIMIT_AS, resource.RLIMIT_CPU)}
        self._base = 0
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self.measure()

    def measure(self) -> None:
        """Take what the process has now for its libraries' own."""
        self._base = _address_space()

    @property
    def is_worn(self) -> bool:
        """Whether much of the memory did not come back."""
        return _address_space() > self._base + WORN

    def set(self, memory: int, seconds: float) -> None:
        """From now on, at most this much more."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds) + 1)
        if self._base:
            self._lower(resource.RLIMIT_AS, self._base + memory)

    def lift(self) -> None:
        """No limits but those of the parent."""
        for what, hard in self._hard.items():
            self._lower(what, hard)

    def _lower(self, what: int, soft: int) -> None:
        hard = self._hard[what]
        if hard != resource.RLIM_INFINITY:
            soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
        with suppress(OSError, ValueError):  # a system may know a limit and not set it; the deadline is left
            resource.setrlimit(what, (soft, hard))


def _address_space() -> int:
    """Bytes of this process's address space; 0 where the system does not tell."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    return 0


def serve() -> None:
    """Answer until there is nobody left to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limits = _Limits()
    with socket.socket(fileno=0) as channel, suppress(ConnectionError):
        last = False
        while not last:
            message, files, _, _ = socket.recv_fds(channel, 4096, 1)
            if not files:
                return
            refused, number, data = _answer(json.loads(message), files[0], limits)
            last = limits.is_worn
            about = {"refused": refused, "number": number, "bytes": len(data), "last": last}
            text = json.dumps(about).encode()
            channel.sendall(LENGTH.pack(len(text)) + text)
            channel.sendall(data)


def _answer(question: Mapping[str, Any], descriptor: int, limits: _Limits) -> tuple[str, int, bytes]:
    """Why not, how many samples, which pixels."""
    try:
        if question["kind"] == "sound":
            return "", _samples(descriptor, limits), b""
        return "", 0, _pixels(question, descriptor, limits)
    except MemoryError:
        return "needs more memory than its size justifies; save it again with another program", 0, b""
    except Exception as error:  # noqa: BLE001 - decoders raise whatever they like
        return getattr(error, "reason", f"{ENDED} ({type(error).__name__})")[:1000], 0, b""
    finally:
        limits.lift()


def _pixels(question: Mapping[str, Any], descriptor: int, limits: _Limits) -> bytes:
    seconds = SECONDS + PICTURE_SECONDS * _megabytes(descriptor)

    def allow(header: Header) -> None:
        pixels = max((width * height for width, height in header.sizes), default=0)
        limits.set(MEMORY, seconds + PIXEL_SECONDS * pixels / 1e6)

    limits.set(MEMORY, seconds)
    with os.fdopen(descriptor, "rb") as file:
        image = read_picture(_UNUSED_NAME, file, allow)
    return fit_picture(image, question["width"], question["height"], question["fit"]).tobytes()


def _samples(descriptor: int, limits: _Limits) -> int:
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if "av" not in sys.modules:
            import av  # noqa: F401 - before the limits, as a part of the process

            limits.measure()
        from svi_story.media.audio import samples_in

        size = os.fstat(descriptor).st_size
        seconds = min(SECONDS + SOUND_SECONDS * size / 1e6, LONGEST_SOUND)
        limits.set(min(SOUND_MEMORY + SOUND_MEMORY_PER_BYTE * size, MEMORY), seconds)
        return samples_in(_UNUSED_NAME, file)


def _megabytes(descriptor: int) -> float:
    return os.fstat(descriptor).st_size / 1e6
