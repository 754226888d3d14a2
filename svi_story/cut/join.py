"""Pieces become the film: their packets are copied, nothing is encoded again."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from svi_story.cut.whole import sweep, unwritable, whole_file
from svi_story.errors import Problem, RenderError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from fractions import Fraction
    from pathlib import Path

    from av import Packet, VideoStream
    from av.container import InputContainer, OutputContainer

    from svi_story.cut.encoding import Encoding

_UNDECODED = {"skip_frame": "all"}
"""Opening a file decodes a frame to learn what nobody asks here; without that it is ten times as fast."""


class PieceError(RenderError):
    """A piece that cannot be part of the film; made again, it can."""

    def __init__(self, piece: Path, what: str) -> None:
        self.piece = piece
        super().__init__(Problem(f"this piece of the film {what}; delete it and render again", str(piece)))


def join(pieces: Sequence[Path], encoding: Encoding, target: Path, metadata: Mapping[str, str]) -> int:
    """Join pieces into a film whose index comes first, so that it plays while it loads; returns its frames.

    The film is under its name only when it is whole and counted; temporary files that a killed process left
    beside it are removed. One piece is open at a time. `metadata` may hold what mp4 knows: title, artist,
    comment, date, ... Raises PieceError for a piece that is unreadable or encoded otherwise than the first
    one, RenderError where the disk refuses, ValueError where there are no pieces.
    """
    import av

    if not pieces:
        raise ValueError("a film needs a piece")
    sweep(target.absolute().parent)
    with whole_file(target) as temporary:
        try:
            with av.open(str(temporary), "w", format="mp4", options=_options(encoding)) as film:
                film.metadata.update({name: _text(value) for name, value in metadata.items() if value})
                frames = _copy_all(pieces, encoding, film)
        except av.FFmpegError as error:
            raise unwritable(target, error.strerror or str(error)) from error
        counted = count_frames(temporary)
        if counted != frames:
            raise unwritable(target, f"{counted} of its {frames} frames arrived")
    return frames


def count_frames(path: Path) -> int:
    """How many frames of a video can be read whole and are shown; 0 for a file that is no video."""
    import av

    count = 0
    try:
        with av.open(str(path.absolute()), "r", options=_UNDECODED) as container:
            for packet in container.demux(video=0):
                count += bool(packet.size) and not packet.is_corrupt and not packet.is_discard
    except (av.FFmpegError, IndexError):  # IndexError: it has no video stream
        return count
    return count


class _Shape(NamedTuple):
    """What pieces of one film have in common."""

    codec: str
    width: int
    height: int
    time_base: Fraction | None
    extradata: bytes | None


def _options(encoding: Encoding) -> dict[str, str]:
    timescale = str(encoding.timescale)
    return {"movflags": "faststart", "video_track_timescale": timescale, "movie_timescale": timescale}


def _text(value: str) -> str:
    """What a C string in UTF-8 can hold of it."""
    return value.replace("\0", "").encode("utf-8", "replace").decode()


def _copy_all(pieces: Sequence[Path], encoding: Encoding, film: OutputContainer) -> int:
    """Copy all packets, on one clock whose tick is a frame; returns the frames."""
    frames, stream, first = 0, None, None
    frame_time, reorder = 1 / encoding.fps, encoding.codec.reorder
    for piece in pieces:
        with _open(piece) as source:
            shape = _shape(piece, source)
            if stream is None:
                stream, first = film.add_stream_from_template(source.streams.video[0], opaque=True), shape
            if shape != first or (shape.width, shape.height) != (encoding.width, encoding.height):
                raise PieceError(piece, "was not encoded like the rest of it")
            start = frames
            for number, packet in _packets(piece, source, encoding):
                packet.stream, packet.time_base = stream, frame_time
                packet.pts, packet.dts, packet.duration = start + number, frames - reorder, 1
                film.mux_one(packet)
                frames += 1
    return frames


def _open(piece: Path) -> InputContainer:
    import av

    try:
        return av.open(str(piece.absolute()), "r", options=_UNDECODED)
    except av.FFmpegError as error:
        raise PieceError(piece, f"cannot be read ({error.strerror})") from error


def _shape(piece: Path, source: InputContainer) -> _Shape:
    if not source.streams.video:
        raise PieceError(piece, "holds no pictures")
    video = source.streams.video[0]
    context = video.codec_context
    return _Shape(context.name, context.width, context.height, video.time_base, context.extradata)


def _packets(
    piece: Path, source: InputContainer, encoding: Encoding
) -> Iterator[tuple[int, Packet[VideoStream]]]:
    """A piece's packets in decoding order, each with its frame's number. All are there, or: PieceError."""
    import av

    video = source.streams.video[0]
    ticks = 1 / (encoding.fps * (video.time_base or 1))  # that a frame lasts
    if ticks.denominator > 1:
        raise PieceError(piece, f"was not encoded at {encoding.fps} frames a second")
    numbers: list[int] = []
    try:
        for packet in source.demux(video=0):
            if not packet.size:  # the demuxer's last one says only that there are no more
                continue
            number, rest = divmod(packet.pts or 0, ticks.numerator)
            if rest or number < len(numbers) - encoding.codec.reorder or packet.is_corrupt:
                raise PieceError(piece, "is damaged")
            numbers.append(number)
            yield number, packet
    except av.FFmpegError as error:
        raise PieceError(piece, f"cannot be read ({error.strerror})") from error
    due = video.frames  # a truncated file still tells how many it had
    if not due or sorted(numbers) != list(range(due)):
        raise PieceError(piece, "is damaged: it has not every frame once")
