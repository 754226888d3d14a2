"""Frames that say who they are, in blocks large enough to survive h264, and a decoder that reads them."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import av
import numpy as np

from svi_story.cut.encode import Encoding, encode_piece
from svi_story.cut.timeline import Piece, Span, TimelineClip, edit_list

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

WIDTH, HEIGHT, BLOCK = 128, 64, 16
BITS = (WIDTH // BLOCK) * (HEIGHT // BLOCK)
DARK, BRIGHT = 30, 225
NINE = Piece((Span("7", 3, 12),))


def encoding(fps: Fraction | int = 15, crf: int = 18) -> Encoding:
    return Encoding(WIDTH, HEIGHT, Fraction(fps), crf)


def levels(key: str, index: int) -> NDArray[np.int64]:
    """The grey level of every block of a frame: 16 bits of the entry's number, 16 of the frame's."""
    bits = np.array([(int(key) << 16 | index) >> bit & 1 for bit in range(BITS)])
    return np.where(bits, BRIGHT, DARK)


def picture(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    grid = values.astype(np.uint8).reshape(HEIGHT // BLOCK, WIDTH // BLOCK)
    return np.repeat(np.repeat(np.repeat(grid, BLOCK, 0), BLOCK, 1)[:, :, None], 3, 2)


class Coded:
    """An entry whose frames hold its key and their index."""

    def __init__(self, key: str, frames: int) -> None:
        self.key, self.frames = key, frames
        self.closed = 0

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        assert not self.closed, "read after close"
        return picture(levels(self.key, index))

    def close(self) -> None:
        self.closed += 1


class Library:
    """Opens entries and remembers which."""

    def __init__(self, frames: int = 100) -> None:
        self.frames = frames
        self.opened: list[Coded] = []
        self.most_open = 0

    def __call__(self, key: str) -> Coded:
        self.opened.append(Coded(key, self.frames))
        self.most_open = max(self.most_open, sum(not entry.closed for entry in self.opened))
        return self.opened[-1]


def quiet(done: int, frames: int) -> None:
    """Nobody watches."""


def encode_all(pieces: Sequence[Piece], how: Encoding, folder: Path) -> list[Path]:
    paths = [folder / f"piece-{number}.mp4" for number in range(len(pieces))]
    for piece, path in zip(pieces, paths, strict=True):
        encode_piece(piece, Library(), how, path, quiet)
    return paths


def expected(pieces: Sequence[Piece]) -> list[NDArray[np.int64]]:
    """What the blocks of every film frame show, reckoned apart from the code under test."""
    film = []
    for piece in pieces:
        over = [levels(span.key, index) for span in piece.spans for index in range(span.start, span.stop)]
        under = [levels(span.key, index) for span in piece.under for index in range(span.start, span.stop)]
        for number, incoming in enumerate(over):
            share = Fraction(number + 1, len(over) + 1) if under else Fraction(1)
            outgoing = under[number] if under else incoming
            film.append(np.round(incoming * float(share) + outgoing * float(1 - share)).astype(np.int64))
    return film


class Decoded(NamedTuple):
    seconds: Fraction
    levels: NDArray[np.float64]


def decode(path: Path) -> Iterator[Decoded]:
    """Every frame of a film: when it shows and the grey level of its blocks."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            plane = frame.planes[0]
            luma = np.frombuffer(bytes(plane), np.uint8).reshape(-1, plane.line_size)[:HEIGHT, :WIDTH]
            blocks = luma.reshape(HEIGHT // BLOCK, BLOCK, WIDTH // BLOCK, BLOCK).mean((1, 3)).ravel()
            assert frame.pts is not None
            assert frame.time_base is not None
            yield Decoded(frame.pts * frame.time_base, (blocks - 16) * 255 / 219)


def assert_shows(path: Path, pieces: Sequence[Piece], fps: Fraction) -> None:
    """Identity, order, count and time of every frame."""
    frames, due = list(decode(path)), expected(pieces)
    assert len(frames) == len(due)
    for number, (frame, levels_due) in enumerate(zip(frames, due, strict=True)):
        assert frame.seconds == number / fps
        assert np.abs(frame.levels - levels_due).max() < 8, f"film frame {number} shows something else"


def faded_clips() -> list[TimelineClip]:
    """Several segments, a fade over a segment's end, single frames, a clip eaten by its fades."""
    return [
        TimelineClip("one", (Span("1", 0, 9), Span("2", 1, 5), Span("3", 1, 4))),
        TimelineClip("two", (Span("4", 0, 3), Span("5", 1, 13)), fade=5),
        TimelineClip("three", (Span("6", 0, 1),)),
        TimelineClip("four", (Span("7", 0, 5),), fade=1),
        TimelineClip("five", (Span("8", 2, 8),), fade=4),
    ]


def faded_pieces() -> tuple[Piece, ...]:
    return edit_list(faded_clips())
