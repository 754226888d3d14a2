"""Untrusted audio files as 48 kHz stereo, exact to the sample, decoded in small blocks.

Any number of channels becomes two: mono is copied to both sides, more are mixed down by libav's usual
matrix. n samples at another rate become n * 48000 / rate, halves rounded up, and sample 0 stays where it is.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from svi_story.media.audio_files import MAX_TRACKS, REMEDY, BoundedFile, SoundError, open_sound
from svi_story.media.containers import inspect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO, Self

    from av import AudioFrame, AudioStream
    from av.container import InputContainer
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]
    """n x 2; full scale is 1.0."""


MAX_SECONDS = 4 * 3600
MAX_VALUES = MAX_SECONDS * 2 * 96_000
"""Samples of all channels: four hours of stereo at 96 kHz. A few kilobytes of FLAC can be days of silence."""
_SPARE_VALUES = 2**26
_VALUES_PER_BYTE = (256, 1024)
"""Samples of all channels that a file may hold, and how many more for each byte of lossy or lossless sound:
silence comes close."""
_LOSSLESS = ("flac", "alac")
_SPARE_PACKETS = 2**15
_SAMPLES_PER_PACKET = 64
"""Packets that a file may hold, and samples that it must hold for each of more: each takes some time."""
MAX_CHANNELS = 8
RATES = (4_000, 384_000)
"""Samples a second. One sample at 1 Hz would be a second of sound."""

KINDS = "WAV, MP3, FLAC, Ogg, Opus, M4A, AAC, AIFF, MP4, MOV, MKV, WebM"

_CODECS = (
    *("aac", "alac", "flac", "mp2float", "mp3", "mp3float", "opus", "libopus", "vorbis"),
    *("pcm_u8", "pcm_s8", "pcm_alaw", "pcm_mulaw"),
    *("pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"),
    *("pcm_s16be", "pcm_s24be", "pcm_s32be", "pcm_f32be", "pcm_f64be"),
)
_OPTIONS = {
    "codec_whitelist": ",".join(_CODECS),
    "protocol_whitelist": "none",  # there is no such protocol: no other file is opened
    "max_streams": str(MAX_TRACKS),
    "probesize": str(2**19),  # bytes that libav may read ahead, and keep in packets of maybe one byte
}
_MAX_SAMPLES = 2**20
"""In one packet."""

_MISSING = Fraction(8, 100)
"""Seconds that may be missing at the end: what encoders add there is not always in the length they write."""


class AudioDecoder:
    """Decodes the sound in an open file into libav's frames, in order.

    Raises SoundError for a file that is of another kind, holds no sound, is damaged, cut off or too long.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._bytes = os.fstat(file.fileno()).st_size
        self._values = self._packets = 0
        self.rate = 0
        """Samples a second."""
        self.samples = 0
        """Samples so far; final after the last frame."""

    def frames(self) -> Iterator[AudioFrame]:
        """All frames, once. The last one may hold more than belongs to the sound: `samples` is right."""
        import av

        view = inspect(self._path, self._file)
        options = {**_OPTIONS, "format_whitelist": view.formats}
        with refusals(self._path, f"is damaged, or none of {KINDS}"):
            file = BoundedFile(self._file, view)
            container = av.open(file, "r", options=options, metadata_errors="replace")
        with container:
            stream = _select_stream(self._path, container)
            alone = not view.others and len(container.streams) == 1
            if (_declared_seconds(container, stream, alone=alone) or 0) > MAX_SECONDS:
                self._refuse_long()
            silence = _VALUES_PER_BYTE[stream.codec_context.name in _LOSSLESS]
            self._values = min(MAX_VALUES, _SPARE_VALUES + silence * self._bytes)
            kind, last, most = (0, 0), 0, 0
            for frame in self._decode(container, stream):
                if self.samples == 0:
                    kind = self._checked_format(frame)
                    most = min(MAX_SECONDS * self.rate, self._values // kind[1])
                elif kind != _rate_and_channels(frame):
                    raise SoundError(self._path, f"changes its rate or its channels midway; {REMEDY}")
                last = frame.samples
                self.samples += last
                if self.samples > most:
                    self._refuse_long()
                yield frame
            padded = "mp4" in container.format.name
            self._check_end(_declared_seconds(container, stream, alone=alone), last, padded=padded)

    def _decode(self, container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
        """All frames. MP3 files may end in tags and padding that cannot be decoded; that is no damage."""
        import av

        junk = None
        for packet in container.demux(stream):
            self._packets += 1
            if self._packets > _SPARE_PACKETS + self.samples // _SAMPLES_PER_PACKET:
                what = f"holds {self.samples} samples in {self._packets} packets, which is too many"
                raise SoundError(self._path, f"{what}; {REMEDY}")
            try:
                frames = stream.decode(packet)
            except av.InvalidDataError as error:
                if "mp3" not in container.format.name:
                    raise
                junk = error
                continue
            if frames and junk:
                raise junk
            yield from frames

    def _checked_format(self, frame: AudioFrame) -> tuple[int, int]:
        self.rate, channels = _rate_and_channels(frame)
        if not 1 <= channels <= MAX_CHANNELS:
            what = f"has {channels} channels, not 1 to {MAX_CHANNELS}; save it in stereo"
            raise SoundError(self._path, what)
        if not RATES[0] <= self.rate <= RATES[1]:
            raise SoundError(self._path, f"has {self.rate} samples a second; save it with 48000 of them")
        return self.rate, channels

    def _refuse_long(self) -> NoReturn:
        short = 0 < self.samples <= MAX_SECONDS * self.rate
        if short and self._values < MAX_VALUES:
            what = f"holds more than {self.samples // self.rate} s of sound in {self._bytes} bytes"
            raise SoundError(self._path, f"{what}; save it again as WAV")
        if short:
            what = "is too long for its rate and channels; save it in stereo, or cut it"
            raise SoundError(self._path, what)
        raise SoundError(self._path, f"is longer than {MAX_SECONDS // 3600} hours; cut it")

    def _check_end(self, declared: Fraction | None, last: int, *, padded: bool) -> None:
        """Refuse a file with less sound than it declares; do not count what pads an MP4's last frame."""
        if self.samples == 0:
            raise SoundError(self._path, f"holds no sound; {REMEDY}")
        if declared is None:
            return
        seconds = Fraction(self.samples, self.rate)
        if seconds + _MISSING < declared:
            what = f"it declares {float(declared):.2f} s, and {float(seconds):.2f} s can be read"
            raise SoundError(self._path, f"is cut off or damaged: {what}; copy it again, or {REMEDY}")
        excess = self.samples - round(declared * self.rate)
        if padded and 0 < excess < last:
            self.samples -= excess


@contextmanager
def refusals(path: Path, what: str) -> Iterator[None]:
    """Turn errors of libav, and of its input file, into SoundError."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SoundError(path, f"{what} ({detail}); {REMEDY}") from None


def _rate_and_channels(frame: AudioFrame) -> tuple[int, int]:
    return frame.sample_rate, frame.layout.nb_channels


def _select_stream(path: Path, container: InputContainer) -> AudioStream:
    """The file's first audio stream; all others are discarded."""
    from av.stream import Discard

    if not container.streams.audio:
        raise SoundError(path, f"holds no sound, only other things; {REMEDY}")
    chosen = container.streams.audio[0]
    for stream in container.streams:
        if stream is not chosen:
            stream.discard = Discard.all
    codec: str | None = getattr(chosen.codec_context, "name", None)  # None if libav does not know it
    if codec not in _CODECS:
        raise SoundError(path, f"is encoded as {codec or 'nothing known'}, which is not read; {REMEDY}")
    chosen.codec_context.options = {"max_samples": str(_MAX_SAMPLES)}
    return chosen


def _declared_seconds(container: InputContainer, stream: AudioStream, *, alone: bool) -> Fraction | None:
    """The duration that the file declares; None where libav only estimates it."""
    if "mp3" in container.format.name and not stream.start_time:
        return None  # only an encoder that wrote the length also wrote where the sound starts
    if stream.duration and stream.time_base:
        return Fraction(stream.duration * stream.time_base)
    if container.duration and alone:
        return Fraction(container.duration, 1_000_000)
    return None


RATE = 48_000
"""Samples a second, of all audio in the program."""

_CHUNK = 2**20
_BLOCK = RATE
_HELD_BACK = 16_384
"""Samples held back until the end: as many as the last frame of an M4A may have too many."""

_PADDING = 1024
"""Silent samples after the last one, for the resampler to look ahead into."""


def count_samples(path: Path) -> int:
    """Read a recording to its end; its length in samples at `RATE`. Raises SoundError, with a remedy.

    For untrusted files use `svi_story.media.guard`, which does this in a process with limits.
    """
    with open_sound(path) as file:
        return samples_in(path, file)


def samples_in(path: Path, file: BinaryIO) -> int:
    """`count_samples` of a file that is open already; `path` names it in errors."""
    return sum(len(block) for block in _blocks(path, file))


class RecordingReader:
    """The samples of one recording, from any place. Reading forward is cheap; going back starts over.

    The file is opened once, so what is read is what `digest` hashed, if `unchanged` is true at the end.
    Use it as a context manager. Raises SoundError where `count_samples` would.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open_sound(path)
        self._state = self._file_state()
        self._rest: Iterator[Samples] = iter(())
        self._start = 0
        self._block = _no_samples()
        self._rewind()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and free the samples."""
        self._rest, self._block = iter(()), _no_samples()
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
        """Whether the file was not written since it was opened."""
        return self._file_state() == self._state

    def read(self, start: int, count: int) -> Samples:
        """Samples [start, start + count); fewer where the recording ends before that."""
        if start < self._start:
            self._rewind()
        parts: list[Samples] = []
        while count > 0:
            while start >= self._start + len(self._block):
                following = next(self._rest, None)
                if following is None:
                    return np.concatenate((_no_samples(), *parts))
                self._start += len(self._block)
                self._block = following
            part = self._block[start - self._start :][:count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate((_no_samples(), *parts))

    def _rewind(self) -> None:
        self._start = 0
        self._block = _no_samples()
        self._rest = _blocks(self._path, self._file)

    def _file_state(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def _no_samples() -> Samples:
    return np.zeros((0, 2), np.float32)


def _blocks(path: Path, file: BinaryIO) -> Iterator[Samples]:
    """All samples at `RATE` in blocks, exactly as many as the recording has."""
    decoded = AudioDecoder(path, file)
    done, held = 0, _no_samples()
    with refusals(path, "is damaged"):
        for block in _joined(_resampled(decoded)):
            if not np.isfinite(block).all():
                raise SoundError(path, f"is damaged: it holds NaN or infinite samples; {REMEDY}")
            held = np.concatenate((held, block))
            ready = max(len(held) - _HELD_BACK, 0)
            yield held[:ready]
            done, held = done + ready, held[ready:]
    total = (2 * decoded.samples * RATE + decoded.rate) // (2 * decoded.rate)
    if total == 0:
        raise SoundError(path, f"holds no sound; {REMEDY}")
    yield held[: total - done]


def _joined(parts: Iterable[Samples]) -> Iterator[Samples]:
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


def _resampled(decoded: AudioDecoder) -> Iterator[Samples]:
    """The frames at `RATE`; silence after them flushes the resampler."""
    import av

    resampler, last = None, None
    for last in decoded.frames():
        if resampler is None:
            layout = "mono" if last.layout.nb_channels == 1 else "stereo"
            resampler = av.AudioResampler(format="flt", layout=layout, rate=RATE)
        yield from map(_stereo, resampler.resample(last))
    if resampler is None or last is None:
        return
    silence = av.AudioFrame(format=last.format.name, layout=last.layout.name, samples=_PADDING)
    silence.sample_rate = last.sample_rate
    for plane in silence.planes:
        plane.update((b"\x80" if last.format.name.startswith("u8") else b"\0") * plane.buffer_size)
    for frame in (silence, None):
        yield from map(_stereo, resampler.resample(frame))


def _stereo(frame: AudioFrame) -> Samples:
    count = frame.layout.nb_channels
    channels = np.frombuffer(bytes(frame.planes[0]), np.float32, frame.samples * count).reshape(-1, count)
    return np.repeat(channels, 2, axis=1) if count == 1 else np.array(channels)
