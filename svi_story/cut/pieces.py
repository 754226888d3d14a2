"""The packets of a film's pieces, one after the other, ready to be copied into it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from svi_story.errors import Problem, RenderError
from svi_story.files import check_regular

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from fractions import Fraction
    from pathlib import Path

    from av import Packet, VideoStream
    from av.container import InputContainer, OutputContainer

    from svi_story.cut.encoding import Encoding

UNDECODED = {"skip_frame": "all"}
"""Opening a file decodes a frame to learn what nobody asks here; without that it is ten times as fast."""


class PieceError(RenderError):
    """A piece, or the sound, that cannot be part of the film; made again, it can."""

    def __init__(self, piece: Path, what: str) -> None:
        self.piece = piece
        super().__init__(Problem(f"this piece of the film {what}; delete it and render again", str(piece)))


class _Shape(NamedTuple):
    """What pieces of one film have in common."""

    codec: str
    width: int
    height: int
    time_base: Fraction | None
    extradata: bytes | None


class Pictures:
    """The packets of all pieces on one clock whose tick is a frame. One piece is open at a time.

    Raises PieceError for a piece that is unreadable, or encoded otherwise than the first.
    """

    def __init__(self, pieces: Sequence[Path], encoding: Encoding, film: OutputContainer) -> None:
        self.frames = 0
        """That the packets handed out so far stand for."""
        self._pieces = pieces
        self._encoding = encoding
        with opened(pieces[0]) as source:
            self._shape = _shape(pieces[0], source)
            self._stream = film.add_stream_from_template(source.streams.video[0], opaque=True)

    def __iter__(self) -> Iterator[Packet[VideoStream]]:
        encoding = self._encoding
        size = encoding.width, encoding.height
        for piece in self._pieces:
            with opened(piece) as source:
                shape = _shape(piece, source)
                if shape != self._shape or (shape.width, shape.height) != size:
                    raise PieceError(piece, "was not encoded like the rest of it")
                start = self.frames
                for number, packet in _frames(piece, source, encoding):
                    packet.stream, packet.time_base = self._stream, 1 / encoding.fps
                    packet.pts, packet.duration = start + number, 1
                    packet.dts = self.frames - encoding.codec.reorder
                    self.frames += 1
                    yield packet


@contextmanager
def opened(piece: Path) -> Iterator[InputContainer]:
    """A file that was made here, to be closed. Raises PieceError where it cannot be opened."""
    import av

    try:
        check_regular(piece)
        source = av.open(str(piece.absolute()), "r", options=UNDECODED)
    except (av.FFmpegError, OSError) as error:
        raise PieceError(piece, f"cannot be read ({error.strerror})") from error
    with source:
        yield source


def _shape(piece: Path, source: InputContainer) -> _Shape:
    if not source.streams.video:
        raise PieceError(piece, "holds no pictures")
    video = source.streams.video[0]
    context = video.codec_context
    return _Shape(context.name, context.width, context.height, video.time_base, context.extradata)


def _frames(
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
