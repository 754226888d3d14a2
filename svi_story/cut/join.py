"""Pieces become the film: packets are copied, nothing is encoded again."""

from __future__ import annotations

import heapq
from contextlib import ExitStack
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from svi_story.cut.boxes import add_xmp, hide_captions
from svi_story.cut.pieces import UNDECODED, Pictures, PieceError, opened
from svi_story.cut.tracks import captions, sound
from svi_story.files import atomic_file, refusals, remove_stale_temps, unwritable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from av import Packet
    from av.container import OutputContainer
    from av.container.core import Chapter as MadeChapter

    from svi_story.cache.outputs import Publish
    from svi_story.cut.encoding import Encoding
    from svi_story.cut.extras import Chapter, Extras

    Timed = Iterator[tuple[float, Packet[Any]]]
    """Packets, each with the second it is due."""

LONGEST_TITLE = 255
"""Bytes: what one of the two lists of chapters in an mp4 can count."""

SLACK = Fraction(1, 40)
"""Seconds that a sound may lack at its end: about a packet of AAC."""


def join(
    pieces: Sequence[Path],
    encoding: Encoding,
    target: Path,
    extras: Extras,
    publish: Publish = atomic_file,
) -> int:
    """Join pieces into a film whose index comes first, so that it plays while it loads; returns its frames.

    The film is under its name only when it is whole and counted; temporary files that a killed process left
    beside it are removed. One piece is open at a time. Sound ends with the last frame. Raises PieceError for
    a piece or sound that is unreadable, or a piece that is encoded otherwise than the first one, RenderError
    where the disk refuses, ValueError where there are no pieces.
    """
    import av

    if not pieces:
        raise ValueError("a film needs a piece")
    remove_stale_temps(target.absolute().parent)
    with publish(target) as temporary:
        try:
            with av.open(str(temporary), "w", format="mp4", options=_options(encoding)) as film:
                frames = _copy_all(pieces, encoding, film, extras)
        except av.FFmpegError as error:
            raise unwritable(target, error.strerror or str(error)) from error
        with refusals(target):
            _finish(temporary, extras)
        counted = count_frames(temporary)
        if counted != frames:
            raise unwritable(target, f"{counted} of its {frames} frames arrived")
    return frames


def count_frames(path: Path) -> int:
    """How many frames of a video can be read whole and are shown; 0 for a file that is no video."""
    import av

    count = 0
    try:
        with av.open(str(path.absolute()), "r", options=UNDECODED) as container:
            for packet in container.demux(video=0):
                count += bool(packet.size) and not packet.is_corrupt and not packet.is_discard
    except (av.FFmpegError, IndexError):  # IndexError: it has no video stream
        return count
    return count


def _options(encoding: Encoding) -> dict[str, str]:
    timescale = str(encoding.timescale)
    return {
        "movflags": "faststart",
        "video_track_timescale": timescale,
        "movie_timescale": timescale,
        "max_interleave_delta": "1",  # microseconds: packets come in their order, none has to wait in memory
    }


def _copy_all(pieces: Sequence[Path], encoding: Encoding, film: OutputContainer, extras: Extras) -> int:
    """Copy the packets of all tracks in the order of time; returns the frames."""
    film.metadata.update({name: _text(value) for name, value in extras.metadata.items() if value})
    if extras.chapters:
        film.set_chapters([_chapter(*each, encoding.fps) for each in enumerate(extras.chapters)])
    pictures = Pictures(pieces, encoding, film)
    heard = Fraction(0)
    with ExitStack() as files:
        tracks = [_by_start(pictures)]
        if extras.audio:
            source = files.enter_context(opened(extras.audio))
            tracks.append(_by_end(sound(extras.audio, source, film)))
        if extras.captions:
            # before pictures that are due at the same time: libav would end the cue before with an empty one
            tracks.insert(0, _by_start(captions(extras.captions, encoding, film)))
        for _, packet in heapq.merge(*tracks, key=lambda timed: timed[0]):
            if packet.stream.type == "audio":
                heard = _fit(packet, pictures.frames / encoding.fps)
            if packet.duration:
                film.mux_one(packet)
    if extras.audio and heard < pictures.frames / encoding.fps - SLACK:
        raise PieceError(extras.audio, "is a sound that ends before it")
    return pictures.frames


def _by_start(packets: Iterable[Packet[Any]]) -> Timed:
    return ((_seconds(packet, packet.dts or 0), packet) for packet in packets)


def _by_end(packets: Iterable[Packet[Any]]) -> Timed:
    """Packets that come when the pictures are past them: then it is known that the film lasts so long."""
    return ((_seconds(packet, (packet.dts or 0) + (packet.duration or 0)), packet) for packet in packets)


def _seconds(packet: Packet[Any], ticks: int) -> float:
    """Good enough to put packets in order, and many times faster than fractions."""
    base = packet.time_base
    return ticks * base.numerator / base.denominator


def _fit(packet: Packet[Any], end: Fraction) -> Fraction:
    """Cut a packet's duration at the end of the film, to 0 where it begins after; returns when it is over."""
    start = packet.pts or 0
    packet.duration = max(min(packet.duration or 0, int(end / packet.time_base) - start), 0)
    return (start + packet.duration) * packet.time_base


def _chapter(number: int, chapter: Chapter, fps: Fraction) -> MadeChapter:
    title = _text(chapter.title).encode()[:LONGEST_TITLE].decode("utf-8", "ignore")
    frame = 1 / fps
    return {
        "id": number,
        "start": chapter.start,
        "end": chapter.stop,
        "time_base": frame,
        "metadata": {"title": title},
    }


def _text(value: str) -> str:
    """What a C string in UTF-8 can hold of it."""
    return value.replace("\0", "").encode("utf-8", "replace").decode()


def _finish(film: Path, extras: Extras) -> None:
    """What libav does not write. Nothing that it wrote moves."""
    with film.open("r+b") as file:
        if extras.captions and not extras.captions_on:
            hide_captions(file)
        if extras.xmp:
            add_xmp(file, extras.xmp)
