"""Joins pieces, sound and captions into the film: packets are copied, nothing is encoded again."""

from __future__ import annotations

import heapq
import re
import struct
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from svi_story.cut.extras import ordered_cues
from svi_story.cut.mp4 import add_xmp, hide_captions
from svi_story.errors import Problem, RenderError
from svi_story.files import atomic_file, check_regular, disk, remove_stale_temps, unwritable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from av import Packet, VideoStream
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.subtitles.stream import SubtitleStream

    from svi_story.cache.outputs import Publish
    from svi_story.cut.encode import Encoding
    from svi_story.cut.extras import Cue, Extras

    Timed = Iterator[tuple[float, Packet[Any]]]
    """Packets, each with the second it is due."""


UNDECODED = {"skip_frame": "all"}
"""Opening a file decodes a frame to probe it, which is not needed here; this makes it ten times as fast."""


class PieceError(RenderError):
    """A piece, or the sound, that cannot be part of the film until it is encoded again."""

    def __init__(self, piece: Path, what: str) -> None:
        self.piece = piece
        super().__init__(Problem(f"this piece of the film {what}; delete it and render again", str(piece)))


class _StreamFormat(NamedTuple):
    """The properties that all pieces of one film must share."""

    codec: str
    width: int
    height: int
    time_base: Fraction | None
    extradata: bytes | None


class PiecePackets:
    """The packets of all pieces on one clock whose tick is a frame. One piece is open at a time.

    Raises PieceError for a piece that is unreadable, or encoded otherwise than the first.
    """

    def __init__(self, pieces: Sequence[Path], encoding: Encoding, film: OutputContainer) -> None:
        self.frames = 0
        """Frames in the packets so far."""
        self._pieces = pieces
        self._encoding = encoding
        with open_piece(pieces[0]) as source:
            self._format = _format_of(pieces[0], source)
            self._stream = film.add_stream_from_template(source.streams.video[0], opaque=True)

    def __iter__(self) -> Iterator[Packet[VideoStream]]:
        encoding = self._encoding
        size = encoding.width, encoding.height
        for piece in self._pieces:
            with open_piece(piece) as source:
                found = _format_of(piece, source)
                if found != self._format or (found.width, found.height) != size:
                    raise PieceError(piece, "was not encoded like the rest of it")
                start = self.frames
                for number, packet in _frames(piece, source, encoding):
                    packet.stream, packet.time_base = self._stream, 1 / encoding.fps
                    packet.pts, packet.duration = start + number, 1
                    packet.dts = self.frames - encoding.codec.reorder
                    self.frames += 1
                    yield packet


@contextmanager
def open_piece(piece: Path) -> Iterator[InputContainer]:
    """A piece or sound, open. Raises PieceError where it cannot be opened."""
    import av

    try:
        check_regular(piece)
        source = av.open(str(piece.absolute()), "r", options=UNDECODED)
    except (av.FFmpegError, OSError) as error:
        raise PieceError(piece, f"cannot be read ({error.strerror})") from error
    with source:
        yield source


def _format_of(piece: Path, source: InputContainer) -> _StreamFormat:
    if not source.streams.video:
        raise PieceError(piece, "holds no pictures")
    video = source.streams.video[0]
    context = video.codec_context
    return _StreamFormat(context.name, context.width, context.height, video.time_base, context.extradata)


def _frames(
    piece: Path, source: InputContainer, encoding: Encoding
) -> Iterator[tuple[int, Packet[VideoStream]]]:
    """A piece's packets in decoding order, each with its frame's number. PieceError if one is missing."""
    import av

    video = source.streams.video[0]
    ticks = 1 / (encoding.fps * (video.time_base or 1))  # that a frame lasts
    if ticks.denominator > 1:
        raise PieceError(piece, f"was not encoded at {encoding.fps} frames a second")
    numbers: list[int] = []
    try:
        for packet in source.demux(video=0):
            if not packet.size:  # the demuxer's last, empty packet marks the end
                continue
            number, rest = divmod(packet.pts or 0, ticks.numerator)
            if rest or number < len(numbers) - encoding.codec.reorder or packet.is_corrupt:
                raise PieceError(piece, "is damaged")
            numbers.append(number)
            yield number, packet
    except av.FFmpegError as error:
        raise PieceError(piece, f"cannot be read ({error.strerror})") from error
    due = video.frames  # a truncated file still states how many it had
    if not due or sorted(numbers) != list(range(due)):
        raise PieceError(piece, "is damaged: frames are missing or repeated")


LONGEST_CUE = 65_535
"""Bytes, the most that a text sample can have."""

FASTEST = 48_000
"""Ticks in a second of the sound's clock. libav ends a caption when another track's packet has a greater time
stamp, even if their clocks differ."""

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
"""How the captions look, as an ASS header that libav turns into the header of a text track."""


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
    ticks = encoding.timescale  # of which every frame lasts a whole number
    while ticks < FASTEST:
        ticks *= 2
    stream.time_base = Fraction(1, ticks)
    return _texts(ordered_cues(cues), encoding.fps, stream)


def _texts(cues: Sequence[Cue], fps: Fraction, stream: SubtitleStream) -> Iterator[Packet[Any]]:
    end = 0
    for cue in cues:
        if end < cue.start:
            yield _text_packet(b"", end, cue.start, stream, fps)
        yield _text_packet(_plain(cue.text), cue.start, cue.stop, stream, fps)
        end = cue.stop


def _plain(text: str) -> bytes:
    """Text for a text track: UTF-8, line feeds, no control characters, cut between two characters."""
    lines = _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    raw = lines.encode("utf-8", "replace")[:LONGEST_CUE]
    return raw.decode("utf-8", "ignore").encode()


def _text_packet(raw: bytes, start: int, stop: int, stream: SubtitleStream, fps: Fraction) -> Packet[Any]:
    from av import Packet

    packet: Packet[Any] = Packet(struct.pack(">H", len(raw)) + raw)
    packet.stream, packet.time_base = stream, 1 / fps
    packet.pts = packet.dts = start
    packet.duration = stop - start
    return packet


LONGEST_TITLE = 255
"""Bytes, the most that one of the two chapter lists of an mp4 can hold."""

SLACK = Fraction(1, 40)
"""Seconds that a sound may be too short: about a packet of AAC."""


def join(
    pieces: Sequence[Path],
    encoding: Encoding,
    target: Path,
    extras: Extras,
    publish: Publish = atomic_file,
) -> int:
    """Join pieces into a film whose index comes first, so that it plays while it loads; returns its frames.

    The film gets its name only when it is complete and counted; temporary files that a killed process left
    beside it are removed. One piece is open at a time. Sound ends with the last frame. Raises PieceError for
    a piece or sound that is unreadable, or a piece that is encoded otherwise than the first one, RenderError
    where the disk fails, ValueError where there are no pieces.
    """
    import av

    if not pieces:
        raise ValueError("a film needs a piece")
    remove_stale_temps(target.absolute().parent)
    options = {
        "movflags": "faststart",
        "video_track_timescale": str(encoding.timescale),
        "movie_timescale": str(encoding.timescale),
        "max_interleave_delta": "1",  # microseconds: packets come in their order, none has to wait in memory
    }
    with publish(target) as temporary:
        try:
            with av.open(str(temporary), "w", format="mp4", options=options) as film:
                frames = _copy_all(pieces, encoding, film, extras)
        except av.FFmpegError as error:
            raise unwritable(target, error.strerror or str(error)) from error
        with disk(target), temporary.open("r+b") as file:  # what libav does not write; nothing it wrote moves
            if extras.captions and not extras.captions_on:
                hide_captions(file)
            if extras.xmp:
                add_xmp(file, extras.xmp)
        counted = count_frames(temporary)
        if counted != frames:
            raise unwritable(target, f"{counted} of its {frames} frames arrived")
    return frames


def count_frames(path: Path) -> int:
    """How many frames of a video are intact and displayed; 0 for a file that is no video."""
    import av

    count = 0
    try:
        with av.open(str(path.absolute()), "r", options=UNDECODED) as container:
            for packet in container.demux(video=0):
                count += bool(packet.size) and not packet.is_corrupt and not packet.is_discard
    except (av.FFmpegError, IndexError):  # IndexError: it has no video stream
        return count
    return count


def _copy_all(pieces: Sequence[Path], encoding: Encoding, film: OutputContainer, extras: Extras) -> int:
    """Copy the packets of all tracks, sorted by time; returns the frames."""
    film.metadata.update({name: _text(value) for name, value in extras.metadata.items() if value})
    if extras.chapters:
        film.set_chapters(
            [
                {
                    "id": number,
                    "start": chapter.start,
                    "end": chapter.stop,
                    "time_base": 1 / encoding.fps,
                    "metadata": {
                        "title": _text(chapter.title).encode()[:LONGEST_TITLE].decode("utf-8", "ignore")
                    },
                }
                for number, chapter in enumerate(extras.chapters)
            ]
        )
    pictures = PiecePackets(pieces, encoding, film)
    sound_end = Fraction(0)
    with ExitStack() as files:
        tracks = [_timed(pictures)]
        if extras.audio:
            source = files.enter_context(open_piece(extras.audio))
            # by their ends: when the pictures are past that, it is known that the film lasts so long
            tracks.append(_timed(sound(extras.audio, source, film), at_end=True))
        if extras.captions:
            # before pictures that are due at the same time: libav would end the cue before with an empty one
            tracks.insert(0, _timed(captions(extras.captions, encoding, film)))
        for _, packet in heapq.merge(*tracks, key=lambda timed: timed[0]):
            if packet.stream.type == "audio":
                # cut at the end of the film, to 0 where it begins after that
                rest = int(pictures.frames / encoding.fps / packet.time_base) - (packet.pts or 0)
                packet.duration = max(min(packet.duration or 0, rest), 0)
                sound_end = ((packet.pts or 0) + packet.duration) * packet.time_base
            if packet.duration:
                film.mux_one(packet)
    if extras.audio and sound_end < pictures.frames / encoding.fps - SLACK:
        raise PieceError(extras.audio, "is a sound that ends before it")
    return pictures.frames


def _timed(packets: Iterable[Packet[Any]], *, at_end: bool = False) -> Timed:
    """Packets with the second of their start or end, as a float: fractions take much longer to sort."""
    for packet in packets:
        ticks = (packet.dts or 0) + ((packet.duration or 0) if at_end else 0)
        yield ticks * packet.time_base.numerator / packet.time_base.denominator, packet


def _text(value: str) -> str:
    """The text as a C string in UTF-8: without NUL and lone surrogates."""
    return value.replace("\0", "").encode("utf-8", "replace").decode()
