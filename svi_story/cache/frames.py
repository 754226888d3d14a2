"""Lossless RGB frames on disk: MagicYUV (gbrp) in AVI.

Every frame is decoded independently of others. At 832x480, writing one takes about 4 ms and reading one 5 ms.
UT Video is as good otherwise, but its encoder silently truncates frames that hardly compress (noise; at small
sizes almost always). No codec detects a flipped bit, so the sha256 of every such file is stored with it.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Self, cast

from svi_story.files import CorruptError, check_regular, disk, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from fractions import Fraction
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]
    """One picture: height x width x 3, RGB."""

DOING = "writing frames"

CODEC = "magicyuv"
TRUSTED = {"codec_whitelist": CODEC}
"""A file from an untrusted bundle cannot start another decoder."""
ROW = 128
_HEAD = 2**16
"""Bytes at the beginning of an AVI that describe its streams; those written here need a tenth of that."""
OPTIONS = {"pred": "gradient", "slices": "8"}
"""By default, the number of slices is the number of cores, and the bytes would depend on it."""


def write_frames(path: Path, frames: Iterable[Frame], fps: Fraction) -> int:
    """Write frames of one size to a new AVI and sync it; returns how many there were.

    Without frames no file is written. After an error the file is removed: RenderError if the disk fails, and
    any error of `frames`.
    """
    rest = iter(frames)
    first = next(rest, None)
    if first is None:
        return 0
    with disk(path, DOING):
        file = path.open("xb")
    try:
        try:
            count = _encode(path, chain((first,), rest), fps, first.shape)
            with disk(path, DOING):
                os.fsync(file.fileno())
        finally:
            with disk(path, DOING):
                file.close()
        with Frames(path) as written:  # libav ignores errors of close(2), and a truncated file can be opened
            if len(written) != count:
                raise CorruptError(f"{path} has {len(written)} of {count} frames")
            written.last()
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    return count


def _encode(path: Path, frames: Iterable[Frame], fps: Fraction, shape: tuple[int, ...]) -> int:
    import av
    from av.video.reformatter import VideoReformatter

    with disk(path, DOING):
        # By name, not as a Python file: in libav's callbacks into Python, ^C is lost together with the write.
        container = av.open(str(path.absolute()), "w", format="avi")
    try:
        stream = container.add_stream(CODEC, rate=fps, options=OPTIONS)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], "gbrp"
        reformatter = VideoReformatter()  # one for all frames: each one starts threads
        count = 0
        for frame in frames:
            assert frame.shape == shape, f"frame {count} is {frame.shape}, the first was {shape}"
            picture = reformatter.reformat(av.VideoFrame.from_ndarray(frame, format="rgb24"), format="gbrp")
            picture.pts = count
            with disk(path, DOING):
                container.mux(stream.encode(picture))
            count += 1
        with disk(path, DOING):
            container.mux(stream.encode(None))
    except BaseException:
        with suppress(av.FFmpegError):  # closing writes the index, which a full disk refuses again
            container.close()
        raise
    with disk(path, DOING):
        container.close()
    return count


def _declared_size(path: Path) -> tuple[int, int]:
    """Width and height of the only stream of an AVI, before any library allocates memory for them.

    Raises CorruptError if there is not exactly one, or if the file is too small for one frame of that size:
    MagicYUV takes at least one bit per value.
    """
    try:
        with open_regular(path) as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(_HEAD)
    except OSError as error:
        raise CorruptError(f"{path} is not an AVI file: {error}") from error
    declared = [
        struct.unpack_from("<ii", head, at + 12)
        for name, at in _chunks(head, 12, len(head))
        if name == b"strf" and at + 20 <= len(head)
    ]
    if len(declared) != 1:
        raise CorruptError(f"{path} has {len(declared)} streams, not one")
    width, height = declared[0]
    if min(width, height) <= 0 or 3 * width * height > 8 * size:
        raise CorruptError(f"{path} has {size} bytes, too few for frames of {width}x{height}")
    return width, height


def _chunks(head: bytes, at: int, stop: int) -> Iterator[tuple[bytes, int]]:
    """The names and offsets of all chunks at the beginning of a RIFF file, also of those in lists."""
    while at + 8 <= stop:
        name, length = struct.unpack_from("<4sI", head, at)
        if name == b"LIST" and head[at + 8 : at + 12] in (b"hdrl", b"strl"):
            at += 12
        else:
            yield name, at
            at += 8 + length + length % 2


class Frames:
    """The frames of a file, by number. Any frame is decoded without the others.

    Memory does not grow with the file. Not for several threads at once. CorruptError if the file is not what
    `write_frames` wrote, as far as the container shows.
    """

    def __init__(self, path: Path) -> None:
        import av

        self._path = path
        width, height = _declared_size(path)
        # A forged frame may declare a larger size than its file. libav rounds rows up.
        most = {"max_pixels": str((width + ROW) * (height + ROW))}
        try:
            check_regular(path)
            # An absolute name is never taken for a protocol ("a:b.avi"). The format is not guessed, because
            # opening decodes a frame.
            self._container = av.open(
                str(path.absolute()),
                format="avi",
                options=TRUSTED,
                stream_options=[most],  # type: ignore[list-item]  # a dict for each stream, whatever the stubs say
            )
        except (av.FFmpegError, OSError) as error:
            raise CorruptError(f"{path} is not an AVI file: {error}") from error
        if not self._container.streams.video:
            self._container.close()
            raise CorruptError(f"{path} has no frames")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context.name != CODEC:
            self._container.close()
            raise CorruptError(f"{path} is not {CODEC}")
        # One packet in, one frame out: with threads, frames would come later.
        self._stream.thread_type = "NONE"
        self._packets = self._container.demux(self._stream)
        self._next = 0
        self.width, self.height = self._stream.width, self._stream.height
        self._stream.codec_context.options = most

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the file."""
        self._container.close()

    def __len__(self) -> int:
        return self._stream.frames

    def __iter__(self) -> Iterator[Frame]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, k: int) -> Frame:
        import av

        if not 0 <= k < len(self):
            raise IndexError(f"frame {k} of {len(self)}")
        if k != self._next:
            self._container.seek(k, stream=self._stream)
            self._packets = self._container.demux(self._stream)
        self._next = -1  # unknown, should decoding fail
        try:
            packet = next(self._packets)
            pictures = packet.decode()
        except (av.FFmpegError, StopIteration) as error:
            raise CorruptError(f"{self._path} has no frame {k}") from error
        if packet.pts != k or len(pictures) != 1:
            raise CorruptError(f"{self._path} has no frame {k}")
        (picture,) = pictures
        if (picture.width, picture.height) != (self.width, self.height):
            raise CorruptError(f"{self._path}: frame {k} has another size")
        self._next = k + 1
        return cast("Frame", picture.to_ndarray())  # of gbrp, that is RGB

    def last(self) -> Frame:
        """The last frame."""
        return self[len(self) - 1]
