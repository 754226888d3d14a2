"""Untrusted films, decoded in a process of its own: bounded memory, bounded time, one thread.

A `VideoReader` starts the process for one film and gets its pictures, upright, with square pixels and scaled
down, one after another through a pipe. The process ends with the reader. Names, playlists and other files are
never opened: libav reads the one open descriptor. See `guard` for single pictures and sounds.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from svi_story.errors import InputError, Problem, RenderError
from svi_story.files import open_regular, why_not_opened
from svi_story.media.audio_files import MAX_TRACKS, BoundedFile
from svi_story.media.guard import child_environment, identity_of, search_path
from svi_story.portable import KILLED, OUT_OF_TIME, OWN_GROUP

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import BinaryIO, Self

    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    from svi_story.media.guard_child import Limits

    Picture = NDArray[np.uint8]
    """Height x width x 3, RGB."""

LONGEST_SIDE = 832
"""Pixels: larger pictures are scaled down, to the width that the model's clips have."""
SMALL_WIDTH, SMALL_HEIGHT = 208, 832
"""Pixels: width of the small pictures, and the height that narrow ones have at most."""
MAX_PIXELS = 8192 * 4320
MAX_FRAMES = 6 * 3600 * 60
"""Six hours at 60 frames a second."""
LONGEST_GAP = 60.0
"""Seconds from one frame to the next."""
MAX_CHAPTERS = 1000
MAX_DAMAGED = 1000
"""Packets that cannot be decoded; after more, reading ends."""

_REMEDY = "save it again as MP4 with another program"
_DEADLINE = 180.0
"""Seconds that a picture may take, including waits for processors and disks."""
_SECONDS = 30
"""Of processor time for opening a film, and for any _COUNTED pictures."""
_COUNTED = 10
_MEMORY, _MEMORY_PER_PIXEL = 768 * 2**20, 64
"""Bytes for any film, and for each pixel of its pictures: decoders keep up to 16 of them."""
_MISSING = 0.5
"""Seconds that a film may be shorter than it declares."""

_MESSAGE = struct.Struct("<cI")
_TIME = struct.Struct("<d?")
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from svi_story.media.video import serve; serve(json.loads(sys.argv[2]))"
)


class VideoError(InputError):
    """A film that cannot be used."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(Problem(f"the film {reason}", file=str(path)))


@dataclass(frozen=True)
class FoundChapter:
    """A chapter of a film."""

    title: str
    start: float
    """Seconds."""


@dataclass(frozen=True)
class VideoInfo:
    """What a film's headers say; sizes are those of the pictures as they are shown."""

    width: int
    height: int
    codec: str
    rotation: int
    """Degrees counter-clockwise by which players turn its pictures."""
    pixel_aspect: str
    """Width of a pixel by its height."""
    frames: int
    """0 where it is not known."""
    seconds: float
    """0 where it is not known."""
    rate: str
    """Frames a second, as declared."""
    chapters: tuple[FoundChapter, ...]


@dataclass(frozen=True)
class FilmFrame:
    """One frame of a film."""

    seconds: float
    """Since the first frame."""
    small: Picture
    """SMALL_WIDTH wide."""
    full: Picture | None
    """At most LONGEST_SIDE wide or high, for some frames."""


class VideoReader:
    """Reads a film once, in order. Use it as a context manager.

    Raises VideoError for what is no film or costs more than is justified, RenderError when it cannot be read.
    """

    def __init__(self, path: Path, every: float) -> None:
        """Full pictures come every so many seconds."""
        self._path = path
        self._is_late = False
        self.damage = ""
        """After the last frame: what could not be read; empty where all could."""
        self._waiting_since = float("inf")
        self._closed = threading.Event()
        try:
            with open_regular(path) as file:
                request = {"path": str(path.absolute()), "identity": identity_of(file), "every": every}
        except (OSError, ValueError) as error:
            raise VideoError(path, why_not_opened(error, "a film")) from None
        try:
            self._process = _start(request)
        except OSError as error:
            what = f"no process could be started to read films ({error.strerror}); try again"
            raise RenderError(what) from error
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            kind, data = self._message()
            if kind != b"H":
                raise VideoError(path, json.loads(data)["refusal"])
            found = json.loads(data)
            chapters = tuple(FoundChapter(**each) for each in found.pop("chapters"))
            self.small, self.full = (tuple(found.pop(name)) for name in ("small", "full"))
            self.info = VideoInfo(**found, chapters=chapters)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._closed.set()
        self._process.kill()
        if self._process.stdout:
            self._process.stdout.close()
        self._process.wait()

    def _watch(self) -> None:
        """End a process that does not answer in time."""
        while not self._closed.wait(1):
            if time.monotonic() - self._waiting_since > _DEADLINE:
                self._is_late = True
                self._process.kill()

    def __iter__(self) -> Iterator[FilmFrame]:
        while True:
            kind, data = self._message()
            if kind in (b"E", b"R"):
                end = json.loads(data)
                self.damage = end["damage"]
                return
            seconds, has_full = _TIME.unpack_from(data)
            pixels = np.frombuffer(data, np.uint8, offset=_TIME.size)
            small = pixels[: self._bytes(self.small)].reshape(*self.small, 3)
            full = pixels[self._bytes(self.small) :].reshape(*self.full, 3) if has_full else None
            yield FilmFrame(seconds, small, full)

    @staticmethod
    def _bytes(size: tuple[int, ...]) -> int:
        return size[0] * size[1] * 3

    def _message(self) -> tuple[bytes, bytes]:
        self._waiting_since = time.monotonic()
        try:
            kind, length = _MESSAGE.unpack(self._receive(_MESSAGE.size))
            return kind, self._receive(length)
        except EOFError:
            status = self._process.wait()
        finally:
            self._waiting_since = float("inf")
        if self._is_late or status == OUT_OF_TIME:
            raise VideoError(self._path, f"takes more time than a film justifies; {_REMEDY}")
        if status in KILLED:
            raise RenderError(f"{self._path}: the process that decodes the film was ended; try again")
        raise VideoError(self._path, f"makes its decoder fail; {_REMEDY}")

    def _receive(self, count: int) -> bytes:
        """Exactly so many bytes. Raises EOFError."""
        assert self._process.stdout is not None
        data, at = bytearray(count), 0
        while at < count:
            got = self._process.stdout.readinto(memoryview(data)[at:])  # type: ignore[attr-defined]  # raw
            if not got:
                raise EOFError
            at += got
        return bytes(data)


def _start(request: dict[str, Any]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-c", _BOOT, json.dumps(search_path()), json.dumps(request)]
    return subprocess.Popen(  # noqa: S603 - this Python, and our own code
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
        bufsize=0,
        **OWN_GROUP,  # ^C at the terminal is for this process, which ends the other
    )


# The other side: the process that decodes


def serve(request: dict[str, Any]) -> None:
    """Decode a film to standard output, until the other end closes it."""
    import av

    from svi_story.media.guard_child import CHANGED, Limits, take_output

    out = take_output()
    limits = Limits()
    limits.set(_MEMORY, _SECONDS)
    with open_regular(Path(request["path"])) as file, out:
        if identity_of(file) != request["identity"]:
            _refuse(out, CHANGED)
            return
        try:
            _decode(file, out, request["every"], limits)
        except BrokenPipeError:
            os._exit(0)
        except MemoryError:
            _refuse(out, f"needs more memory than a film justifies; {_REMEDY}")
        except (av.FFmpegError, OSError, ValueError) as error:
            detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
            _refuse(out, f"cannot be opened, because it is damaged or of another kind ({detail}); {_REMEDY}")


def _refuse(out: BinaryIO, reason: str) -> None:
    _send(out, b"R", json.dumps({"refusal": reason, "damage": reason}).encode())


def _send(out: BinaryIO, kind: bytes, *parts: bytes) -> None:
    out.write(_MESSAGE.pack(kind, sum(map(len, parts))))
    out.writelines(parts)
    out.flush()


def _decode(file: BinaryIO, out: BinaryIO, every: float, limits: Limits) -> None:
    import av

    options = {"protocol_whitelist": "none", "max_streams": str(MAX_TRACKS)}
    with av.open(BoundedFile(file), "r", options=options, metadata_errors="replace") as container:
        moving = [each for each in container.streams.video if "attached_pic" not in str(each.disposition)]
        if not moving:
            _refuse(out, "holds no moving pictures")
            return
        stream = moving[0]
        for each in container.streams:
            if each is not stream:
                each.discard = av.stream.Discard.all
        context = stream.codec_context
        if context is None or context.width * context.height > MAX_PIXELS:
            _refuse(out, f"has larger pictures than {MAX_PIXELS // 1_000_000} megapixels; scale it down")
            return
        limits.set(_MEMORY + _MEMORY_PER_PIXEL * context.width * context.height, _SECONDS)
        context.thread_count = 1
        context.options = {"max_pixels": str(MAX_PIXELS)}
        _Pictures(container, stream, out, every, limits).send()


class _Pictures:
    """Sends the head, the frames and the end of an open film."""

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        out: BinaryIO,
        every: float,
        limits: Limits,
    ) -> None:
        self._container, self._stream, self._out, self._every = container, stream, out, every
        self._limits = limits
        self._rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._turns = 0
        self._small = self._full = (0, 0)
        self._damaged = self._count = 0
        self._first: float | None = None
        self._last, self._step = -1.0, 1 / float(self._rate)
        self._next_full = 0.0

    def send(self) -> None:
        """All frames, in order."""
        for frame in self._frames():
            if self._count == 0:
                self._send_head(frame)
            if self._count % _COUNTED == 0:
                size = frame.width * frame.height
                self._limits.set(_MEMORY + _MEMORY_PER_PIXEL * size, _SECONDS)
            if self._count == MAX_FRAMES:
                break
            self._send_frame(frame)
        if self._count == 0:
            _refuse(self._out, f"holds no picture that can be decoded; {_REMEDY}")
            return
        _send(self._out, b"E", json.dumps({"damage": self._damage()}).encode())

    def _frames(self) -> Iterator[VideoFrame]:
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError):
                self._damaged += 1
                return
            if packet is None:
                return
            try:
                yield from self._stream.decode(packet)
            except av.FFmpegError:
                self._damaged += 1
                if self._damaged > MAX_DAMAGED:
                    return

    def _damage(self) -> str:
        declared = self._declared_seconds()
        # Some formats declare where the film ends, counted from 0, and not how long it is
        read = self._last + 1 / float(self._rate) + max(self._first or 0.0, 0.0)
        if self._count >= MAX_FRAMES:
            return f"only its first {MAX_FRAMES} frames were read"
        if declared and read < declared - _MISSING:
            return f"it declares {declared:.1f} s, and {read:.1f} s can be read"
        return f"{self._damaged} of its packets cannot be decoded" if self._damaged else ""

    def _declared_seconds(self) -> float:
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration and len(self._container.streams) == 1:
            return self._container.duration / 1e6
        return 0.0

    def _send_head(self, frame: VideoFrame) -> None:
        aspect = self._stream.sample_aspect_ratio or Fraction(1)
        if not Fraction(1, 10) <= aspect <= 10:
            aspect = Fraction(1)
        rotation = frame.rotation
        self._turns = round(rotation / 90) % 4
        width, height = Fraction(frame.width), Fraction(frame.height)
        # Narrow pixels make the picture higher: what was sampled is never thrown away
        width, height = (width * aspect, height) if aspect > 1 else (width, height / aspect)
        if self._turns % 2:
            width, height = height, width
        shrink = min(LONGEST_SIDE / float(max(width, height)), 1.0)
        full = max(round(float(height) * shrink), 16), max(round(float(width) * shrink), 16)
        small = min(max(round(SMALL_WIDTH * float(height / width) / 8), 2) * 8, SMALL_HEIGHT), SMALL_WIDTH
        self._full, self._small = full, small
        head: dict[str, Any] = {
            "width": round(width),
            "height": round(height),
            "codec": self._stream.codec_context.name if self._stream.codec_context else "",
            "rotation": rotation,
            "pixel_aspect": f"{aspect.numerator}:{aspect.denominator}",
            "frames": self._stream.frames,
            "seconds": self._declared_seconds(),
            "rate": str(self._rate),
            "chapters": [asdict(each) for each in self._chapters()],
            "small": small,
            "full": full,
        }
        _send(self._out, b"H", json.dumps(head).encode())

    def _chapters(self) -> Iterator[FoundChapter]:
        for chapter in self._container.chapters()[:MAX_CHAPTERS]:
            if chapter["time_base"]:
                title = str(chapter["metadata"].get("title", ""))[:200]
                yield FoundChapter(title, float(chapter["start"] * chapter["time_base"]))

    def _send_frame(self, frame: VideoFrame) -> None:
        time = None if frame.pts is None or not frame.time_base else float(frame.pts * frame.time_base)
        if self._first is None:
            self._first = time or 0.0
        step = self._step
        seconds = self._last + step if time is None else time - self._first
        if self._count and abs(seconds - self._last) > max(LONGEST_GAP, 10 * step):
            # Time stamps begin anew, or jump: the film goes on
            self._first += seconds - self._last - step
            seconds = self._last + step
        elif self._count and seconds <= self._last:
            seconds = self._last + min(step, 1e-3)
        elif self._count:
            self._step = seconds - self._last
        seconds = max(seconds, 0.0)
        full = b""
        if seconds >= self._next_full - 1e-6:
            full = self._pixels(frame, self._full)
            self._next_full = max(self._next_full + self._every, seconds)
        _send(self._out, b"F", _TIME.pack(seconds, bool(full)), self._pixels(frame, self._small), full)
        self._last = seconds
        self._count += 1

    def _pixels(self, frame: VideoFrame, size: tuple[int, int]) -> bytes:
        height, width = size if self._turns % 2 == 0 else size[::-1]
        see_through = any(each.is_alpha for each in frame.format.components)
        kind = "rgba" if see_through else "rgb24"
        pixels = frame.reformat(width, height, kind, interpolation="AREA").to_ndarray()
        if see_through:  # as players do, on black
            pixels = (pixels[..., :3].astype(np.uint16) * pixels[..., 3:] // 255).astype(np.uint8)
        return np.ascontiguousarray(np.rot90(pixels, self._turns)).tobytes()
