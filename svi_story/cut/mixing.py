"""The film's sound as a file: composed, held below full scale by a limiter, kept as AAC."""

from __future__ import annotations

from contextlib import closing
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from svi_story.cut.audio import BITRATE
from svi_story.cut.composing import compose
from svi_story.files import atomic_file, unwritable
from svi_story.media.audio import RATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from av import AudioFrame

    from svi_story.cut.audio import Soundtrack
    from svi_story.cut.composing import Block

_LIMITER = "limit=1:level=0:attack=5:release=50:latency=1"
"""libavfilter's alimiter turns down, within 5 ms before a peak and 50 ms after it, what would go over full
scale; everything else passes bit for bit and in its place."""


def mix(
    soundtrack: Soundtrack, target: Path, on_samples: Callable[[int, int], None] = lambda _done, _all: None
) -> int:
    """Mix a film's sound into an .m4a: AAC in stereo at 48 kHz, exactly as long as the film.

    It is under its name only when it is whole. Returns how many samples would have gone over full scale and
    were turned down. `on_samples` hears (done, in all) every second of sound. Raises RenderError where a
    recording is not any more what was planned with, or the disk refuses.
    """
    import av

    with atomic_file(target) as temporary, closing(compose(soundtrack)) as blocks:
        loud = _Loudness(blocks)
        try:
            _encode(limit(loud), temporary, lambda done: on_samples(done, soundtrack.samples))
            made = _length(temporary)
        except av.FFmpegError as error:
            raise unwritable(target, getattr(error, "strerror", None) or str(error)) from error
        if made != soundtrack.samples:
            raise unwritable(target, f"{made} of its {soundtrack.samples} samples arrived")
    return loud.over


def limit(blocks: Iterable[Block]) -> Iterator[Block]:
    """The same samples, none of them over full scale; those that are not near a peak are untouched."""
    import av
    from av.filter import Graph

    graph = Graph()
    nodes = (
        graph.add(
            "abuffer", sample_rate=str(RATE), sample_fmt="dbl", channel_layout="stereo", time_base=f"1/{RATE}"
        ),
        graph.add("alimiter", _LIMITER),
        graph.add("abuffersink"),
    )
    graph.link_nodes(*nodes).configure()

    def ready() -> Iterator[Block]:
        while True:
            try:
                yield np.asarray(graph.pull().to_ndarray(), np.float64).reshape(-1, 2)
            except (av.BlockingIOError, av.EOFError):
                return

    done = 0
    for block in blocks:
        graph.push(_frame(block, done))
        done += len(block)
        yield from ready()
    graph.push(None)
    yield from ready()


class _Loudness:
    """Counts the samples over full scale of what passes."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = blocks
        self.over = 0

    def __iter__(self) -> Iterator[Block]:
        for block in self._blocks:
            self.over += int(np.count_nonzero((np.abs(block) > 1).any(axis=1)))
            yield block


def _encode(blocks: Iterable[Block], path: Path, on_samples: Callable[[int], None]) -> None:
    import av

    # the movie's clock counts samples, so that the edit list can say where the sound begins and ends
    with av.open(str(path), "w", format="mp4", options={"movie_timescale": str(RATE)}) as file:
        stream = file.add_stream("aac", rate=RATE, layout="stereo", bit_rate=BITRATE)
        done = 0
        for block in blocks:
            file.mux(stream.encode(_frame(block, done)))
            done += len(block)
            on_samples(done)
        file.mux(stream.encode(None))


def _frame(block: Block, first: int) -> AudioFrame:
    import av

    samples = np.ascontiguousarray(block).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(samples, format="dbl", layout="stereo")
    frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), first
    return frame


def _length(path: Path) -> int:
    """How many samples a file of ours says it has, if every packet of it can be read; else 0."""
    import av

    with av.open(str(path), "r") as file:
        stream = file.streams.audio[0]
        if any(packet.is_corrupt for packet in file.demux(stream)):
            return 0
        return stream.duration or 0
