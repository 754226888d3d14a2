"""The tracks beside the pictures: sound and captions, as packets ready to be copied into the film."""

from __future__ import annotations

import re
import struct
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from svi_story.cut.extras import in_turn
from svi_story.cut.pieces import PieceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from av import Packet
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.subtitles.stream import SubtitleStream

    from svi_story.cut.encoding import Encoding
    from svi_story.cut.extras import Cue

LONGEST_CUE = 65_535
"""Bytes: what a sample of text can count."""

FASTEST = 48_000
"""Ticks in a second of the sound's clock. libav ends a caption when another track's packet has a greater
number, whatever their clocks are."""

_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")

_ASS = """[Script Info]
ScriptType: v4.00+
PlayResX: {width}
PlayResY: {height}

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, \
Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, \
MarginR, MarginV, Encoding
Style: Default,sans-serif,{size},&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""
"""How the captions look, in the words that libav turns into the head of a text track."""


def sound(path: Path, source: InputContainer, film: OutputContainer) -> Iterator[Packet[Any]]:
    """The packets of a sound file, on its own clock: those that only prime the decoder come before 0.

    Raises PieceError where it holds no sound, or is damaged.
    """
    if not source.streams.audio:
        raise PieceError(path, "holds no sound")
    return _samples(path, source, film.add_stream_from_template(source.streams.audio[0]))


def _samples(path: Path, source: InputContainer, stream: AudioStream) -> Iterator[Packet[Any]]:
    import av

    try:
        for packet in source.demux(audio=0):
            if packet.is_corrupt:
                raise PieceError(path, "is damaged")
            if packet.size:
                packet.stream = stream
                yield packet
    except av.FFmpegError as error:
        raise PieceError(path, f"cannot be read ({error.strerror})") from error


def captions(cues: Iterable[Cue], encoding: Encoding, film: OutputContainer) -> Iterator[Packet[Any]]:
    """A track of plain text: a packet for every cue, an empty one for every gap before one."""
    stream = film.add_stream("mov_text")
    height = encoding.height
    header = _ASS.format(width=encoding.width, height=height, size=max(height // 18, 1))
    stream.codec_context.subtitle_header = header.encode()
    stream.time_base = Fraction(1, _ticks(encoding))
    return _texts(in_turn(cues), encoding.fps, stream)


def _ticks(encoding: Encoding) -> int:
    """Of the captions' clock in a second: every frame lasts a whole number of them, and none is quicker."""
    ticks = encoding.timescale
    while ticks < FASTEST:
        ticks *= 2
    return ticks


def _texts(cues: Sequence[Cue], fps: Fraction, stream: SubtitleStream) -> Iterator[Packet[Any]]:
    end = 0
    for cue in cues:
        if end < cue.start:
            yield _text(b"", end, cue.start, stream, fps)
        yield _text(_plain(cue.text), cue.start, cue.stop, stream, fps)
        end = cue.stop


def _plain(text: str) -> bytes:
    """Text as a track holds it: UTF-8, line feeds, nothing invisible, cut between two characters."""
    lines = _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    raw = lines.encode("utf-8", "replace")[:LONGEST_CUE]
    return raw.decode("utf-8", "ignore").encode()


def _text(raw: bytes, start: int, stop: int, stream: SubtitleStream, fps: Fraction) -> Packet[Any]:
    from av import Packet

    packet: Packet[Any] = Packet(struct.pack(">H", len(raw)) + raw)
    packet.stream, packet.time_base = stream, 1 / fps
    packet.pts = packet.dts = start
    packet.duration = stop - start
    return packet
