"""What libav makes of an open file: one audio stream from a few known kinds, decoded to its end."""

from __future__ import annotations

import os
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, NoReturn

from svi_story.media.audio_files import CURE, BoundedFile, SoundError
from svi_story.media.audio_inspection import inspect
from svi_story.media.audio_source import MAX_TRACKS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from av import AudioFrame, AudioStream
    from av.container import InputContainer

    from svi_story.media.audio_source import View

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


class Decoded:
    """The sound in an open file, as libav's frames, in order.

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
        """How many samples it holds; complete when the last frame was given out."""

    def frames(self) -> Iterator[AudioFrame]:
        """All frames, once. The last one may hold more than belongs to the sound: `samples` counts."""
        view = inspect(self._path, self._file)
        with _opened(self._path, self._file, view) as container:
            stream = _stream(self._path, container)
            alone = not view.others and len(container.streams) == 1
            if (_declared(container, stream, alone=alone) or 0) > MAX_SECONDS:
                self._refuse_long()
            silence = _VALUES_PER_BYTE[stream.codec_context.name in _LOSSLESS]
            self._values = min(MAX_VALUES, _SPARE_VALUES + silence * self._bytes)
            kind, last, most = (0, 0), 0, 0
            for frame in self._decode(container, stream):
                if self.samples == 0:
                    kind = self._checked_kind(frame)
                    most = min(MAX_SECONDS * self.rate, self._values // kind[1])
                elif kind != _kind(frame):
                    raise SoundError(self._path, f"changes its rate or its channels midway; {CURE}")
                last = frame.samples
                self.samples += last
                if self.samples > most:
                    self._refuse_long()
                yield frame
            padded = "mp4" in container.format.name
            self._check_end(_declared(container, stream, alone=alone), last, padded=padded)

    def _decode(self, container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
        """All frames. Many an MP3 ends in tags and padding that nobody can decode; that is no damage."""
        import av

        junk = None
        for packet in container.demux(stream):
            self._packets += 1
            if self._packets > _SPARE_PACKETS + self.samples // _SAMPLES_PER_PACKET:
                what = f"holds {self.samples} samples in {self._packets} packets, which is too many"
                raise SoundError(self._path, f"{what}; {CURE}")
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

    def _checked_kind(self, frame: AudioFrame) -> tuple[int, int]:
        self.rate, channels = _kind(frame)
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
        """Whether all is there that the file announced; what pads an MP4's last frame does not count."""
        if self.samples == 0:
            raise SoundError(self._path, f"holds no sound; {CURE}")
        if declared is None:
            return
        seconds = Fraction(self.samples, self.rate)
        if seconds + _MISSING < declared:
            what = f"it says it lasts {float(declared):.2f} s, and {float(seconds):.2f} s can be read"
            raise SoundError(self._path, f"is cut off or damaged: {what}; copy it again, or {CURE}")
        excess = self.samples - round(declared * self.rate)
        if padded and 0 < excess < last:
            self.samples -= excess


@contextmanager
def refusals(path: Path, what: str) -> Iterator[None]:
    """libav's errors, and what its input raised meanwhile, as words for people."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SoundError(path, f"{what} ({detail}); {CURE}") from None


@contextmanager
def _opened(path: Path, file: BinaryIO, view: View) -> Iterator[InputContainer]:
    import av

    options = {**_OPTIONS, "format_whitelist": view.formats}
    with refusals(path, f"is damaged, or none of {KINDS}"):
        container = av.open(BoundedFile(file, view), "r", options=options, metadata_errors="replace")
    with container:
        yield container


def _kind(frame: AudioFrame) -> tuple[int, int]:
    return frame.sample_rate, frame.layout.nb_channels


def _stream(path: Path, container: InputContainer) -> AudioStream:
    """The file's first sound, and nothing else of it."""
    from av.stream import Discard

    if not container.streams.audio:
        raise SoundError(path, f"holds no sound, only other things; {CURE}")
    chosen = container.streams.audio[0]
    for stream in container.streams:
        if stream is not chosen:
            stream.discard = Discard.all
    codec: str | None = getattr(chosen.codec_context, "name", None)  # libav does not know every one
    if codec not in _CODECS:
        raise SoundError(path, f"is encoded as {codec or 'nothing known'}, which is not read; {CURE}")
    chosen.codec_context.options = {"max_samples": str(_MAX_SAMPLES)}
    return chosen


def _declared(container: InputContainer, stream: AudioStream, *, alone: bool) -> Fraction | None:
    """The seconds that the file says the sound lasts, where it says so and not libav guesses."""
    if "mp3" in container.format.name and not stream.start_time:
        return None  # only an encoder that wrote the length also wrote where the sound starts
    if stream.duration and stream.time_base:
        return Fraction(stream.duration * stream.time_base)
    if container.duration and alone:
        return Fraction(container.duration, 1_000_000)
    return None
