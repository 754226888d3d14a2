"""Audio files from strangers as 48 kHz stereo, exact to the sample, a little of them in memory at a time.

Any number of channels becomes two: one is heard on both sides as it is, more are mixed down by libav's usual
matrix. n samples at another rate become n * 48000 / rate, halves rounded up, and sample 0 stays where it is.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np

from svi_story.media.audio_decoding import Decoded, refusals
from svi_story.media.audio_files import CURE, SoundError, open_sound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO, Self

    from av import AudioFrame
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]
    """n x 2; full scale is 1.0."""

RATE = 48_000
"""Samples a second, of every sound in the house."""

_CHUNK = 2**20
_BLOCK = RATE
_HELD = 16_384
"""Samples that wait for the end: as much as the last frame of an M4A may hold too many."""

_PADDING = 1024
"""Silent samples after the last one, for the resampler to look ahead into."""


def count_samples(path: Path) -> int:
    """Read a recording to its end; its length in samples at `RATE`. Raises SoundError, with the cure.

    For files from strangers use `svi_story.media.guard`, which does this in a process with limits.
    """
    with open_sound(path) as file:
        return samples_in(path, file)


def samples_in(path: Path, file: BinaryIO) -> int:
    """`count_samples` of a file that is open already; `path` names it in errors."""
    return sum(len(block) for block in _blocks(path, file))


class RecordingReader:
    """The samples of one recording, from any place. Forward is cheap; going back starts over.

    The file is opened once, so what is read is what `digest` hashed, if `unchanged` says so at the end.
    Use it as a context manager. Raises SoundError where `count_samples` would.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open_sound(path)
        self._state = self._file_state()
        self._rest: Iterator[Samples] = iter(())
        self._start = 0
        self._block = _nothing()
        self._rewind()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file and of the samples."""
        self._rest, self._block = iter(()), _nothing()
        self._file.close()

    def digest(self) -> str:
        """The sha256 of the file's bytes, in hex."""
        digest = hashlib.sha256()
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK):
            digest.update(chunk)
        self._rewind()
        return digest.hexdigest()

    def unchanged(self) -> bool:
        """Whether nobody wrote into the file since it was opened."""
        return self._file_state() == self._state

    def read(self, start: int, count: int) -> Samples:
        """Samples [start, start + count); fewer where the recording ends before that."""
        if start < self._start:
            self._rewind()
        parts: list[Samples] = []
        while count > 0 and self._reach(start):
            part = self._block[start - self._start :][:count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts) if parts else _nothing()

    def _reach(self, sample: int) -> bool:
        """Go on to the block that holds a sample; False past the end."""
        while sample >= self._start + len(self._block):
            following = next(self._rest, None)
            if following is None:
                return False
            self._start += len(self._block)
            self._block = following
        return True

    def _rewind(self) -> None:
        self._start = 0
        self._block = _nothing()
        self._rest = _blocks(self._path, self._file)

    def _file_state(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def _nothing() -> Samples:
    return np.zeros((0, 2), np.float32)


def _blocks(path: Path, file: BinaryIO) -> Iterator[Samples]:
    """All samples at `RATE` in blocks, and exactly as many as there are."""
    decoded = Decoded(path, file)
    given, held = 0, _nothing()
    with refusals(path, "is damaged"):
        for block in _gathered(_resampled(decoded)):
            if not np.isfinite(block).all():
                raise SoundError(path, f"is damaged: it holds samples that are no numbers; {CURE}")
            held = np.concatenate((held, block))
            ready = max(len(held) - _HELD, 0)
            yield held[:ready]
            given, held = given + ready, held[ready:]
    due = (2 * decoded.samples * RATE + decoded.rate) // (2 * decoded.rate)
    if due == 0:
        raise SoundError(path, f"holds no sound; {CURE}")
    yield held[: due - given]


def _gathered(parts: Iterable[Samples]) -> Iterator[Samples]:
    """The same samples in fewer and longer parts."""
    waiting: list[Samples] = []
    length = 0
    for part in parts:
        waiting.append(part)
        length += len(part)
        if length >= _BLOCK:
            yield np.concatenate(waiting) if len(waiting) > 1 else part
            waiting.clear()
            length = 0
    if waiting:
        yield np.concatenate(waiting)


def _resampled(decoded: Decoded) -> Iterator[Samples]:
    """The frames at `RATE`, and what the silence after them brings to light."""
    import av

    resampler, last = None, None
    for last in decoded.frames():
        if resampler is None:
            layout = "mono" if last.layout.nb_channels == 1 else "stereo"
            resampler = av.AudioResampler(format="flt", layout=layout, rate=RATE)
        yield from map(_stereo, resampler.resample(last))
    if resampler is not None and last is not None:
        for frame in (_silence_after(last), None):
            yield from map(_stereo, resampler.resample(frame))


def _stereo(frame: AudioFrame) -> Samples:
    count = frame.layout.nb_channels
    channels = np.frombuffer(bytes(frame.planes[0]), np.float32, frame.samples * count).reshape(-1, count)
    return np.repeat(channels, 2, axis=1) if count == 1 else np.array(channels)


def _silence_after(last: AudioFrame) -> AudioFrame:
    import av

    silence = av.AudioFrame(format=last.format.name, layout=last.layout.name, samples=_PADDING)
    silence.sample_rate = last.sample_rate
    for plane in silence.planes:
        plane.update((b"\x80" if last.format.name.startswith("u8") else b"\0") * plane.buffer_size)
    return silence
