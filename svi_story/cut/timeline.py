"""The edit list: which frames make the film, in which order. Integers only.

Film = cards + sum of contributions - fades. Every frame once and in order; only a fade merges two
frames, and only a film at a higher rate than its board shows a frame more than once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import zip_longest
from math import ceil, floor, prod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


@dataclass(frozen=True)
class Span:
    """Frames [start, stop) of one entry of the cache."""

    key: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a span needs 0 <= start < stop, got [{self.start}, {self.stop})")

    @property
    def frames(self) -> int:
        """How many frames it holds."""
        return self.stop - self.start


@dataclass(frozen=True)
class Strip:
    """What one clip contributes, in order."""

    clip: str
    spans: tuple[Span, ...]
    fade: int = 0
    """Frames shared with the strip before it; 0 is a hard join."""
    dip: int = 0
    """Frames around the join with the strip before it that go through black."""
    caption: str = ""
    """The caption on its frames, its fade-in included; empty for none."""
    caption_frames: tuple[int, int] | None = None
    """Those that show it, [first, stop); None for all of them."""

    @property
    def frames(self) -> int:
        """How many frames it contributes, before fades overlap them."""
        return _count(self.spans)


class FrameRef(NamedTuple):
    """One frame of one entry."""

    key: str
    frame: int


class FilmFrame(NamedTuple):
    """What one frame of the film shows."""

    over: FrameRef
    under: FrameRef | None = None
    """The outgoing frame, inside a fade only."""
    weight: Fraction = Fraction(1)
    """Share of `over`; `under` has the rest."""
    level: Fraction = Fraction(1)
    """The fraction of its brightness that remains."""


@dataclass(frozen=True)
class Ramp:
    """Frames that come out of black one after another, or go into it.

    The first of a rising ramp and the last of a falling one are black.
    """

    start: int
    """Its first frame, in whatever the ramp belongs to; may lie before that."""
    frames: int
    rising: bool

    def level(self, frame: int) -> Fraction:
        """The fraction of a frame's brightness that remains; 1 outside the ramp."""
        place = frame - self.start
        if not 0 <= place < self.frames:
            return Fraction(1)
        return Fraction(place if self.rising else self.frames - 1 - place, self.frames)

    def seen_from(self, first: int, frames: int) -> Ramp | None:
        """The same ramp in a run of frames that starts at `first`; None where it does not touch the run."""
        if self.start + self.frames <= first or first + frames <= self.start:
            return None
        return replace(self, start=self.start - first)


@dataclass(frozen=True)
class Pace:
    """How frames are repeated to reach a higher rate: frame i of a run is seen at i * rate - offset."""

    rate: Fraction = Fraction(1)
    """Frames of the film for one of the board, 1 or more."""
    offset: Fraction = Fraction(0)
    """How much of its first frame's time a run leaves to the run before it, in frames of the film."""

    def frames(self, count: int) -> int:
        """How many frames of the film a run of `count` becomes."""
        return ceil(count * self.rate - self.offset)

    def source(self, index: int) -> int:
        """Which frame of the run the film's frame `index` of it repeats."""
        return floor((index + self.offset) / self.rate)

    def after(self, count: int) -> Pace:
        """The pace of the run that follows one of `count` frames."""
        end = count * self.rate - self.offset
        return replace(self, offset=ceil(end) - end)


@dataclass(frozen=True)
class Piece:
    """A run of film frames that is encoded together.

    Plain: one span, the part of a segment that no fade touches. Fade: `spans` come in over `under`, with as
    many frames each; it belongs to the later clip. Frame i of an n-frame fade shows (i+1)/(n+1) of the
    incoming picture, so neither its first nor its last frame repeats a neighbour.
    """

    spans: tuple[Span, ...]
    under: tuple[Span, ...] = ()
    clip: str = ""
    """The clip it belongs to; not part of what it shows."""
    caption: str = ""
    """Drawn on every frame, or on some of them."""
    caption_frames: tuple[int, int] | None = None
    """Those that show the caption, [first, stop), counted before any is repeated; None for all of them."""
    ramps: tuple[Ramp, ...] = ()
    """What darkens its frames, counted before any is repeated."""
    pace: Pace = Pace()

    def __post_init__(self) -> None:
        if not self.spans:
            raise ValueError("a piece needs a span")
        if self.under and _count(self.under) != _count(self.spans):
            raise ValueError("both sides of a fade need as many frames")

    @property
    def frames(self) -> int:
        """Its frames in the film."""
        return self.pace.frames(self.source_frames)

    @property
    def source_frames(self) -> int:
        """How many frames it has before any is repeated."""
        return _count(self.spans)

    @property
    def keys(self) -> frozenset[str]:
        """The entries it reads."""
        return frozenset(span.key for span in self.spans + self.under)

    def frame(self, index: int) -> FilmFrame:
        """What its 0-based frame `index` shows. Raises IndexError past either end."""
        place = self.pace.source(index)
        over, level = _source(self.spans, place), prod(ramp.level(place) for ramp in self.ramps)
        if not self.under:
            return FilmFrame(over, level=Fraction(level))
        weight = Fraction(place + 1, self.source_frames + 1)
        return FilmFrame(over, _source(self.under, place), weight, Fraction(level))


def edit_list(strips: Sequence[Strip]) -> tuple[Piece, ...]:
    """The pieces of a film, in film order, none of them empty.

    Raises ValueError where fades do not fit: on the first strip, longer than a neighbour, or two that
    overlap in one strip.
    """
    if strips and strips[0].fade:
        raise ValueError(f"clip {strips[0].clip}: the first clip has nothing to fade from")
    pieces: list[Piece] = []
    tail: tuple[Span, ...] = ()
    for strip, after in zip_longest(strips, strips[1:]):
        fade_out = after.fade if after else 0
        _check(strip, fade_out)
        first = 0
        if strip.fade:
            pieces.append(_captioned(Piece(_cut(strip.spans, 0, strip.fade), tail), strip, first))
            first = strip.fade
        end = strip.frames - fade_out
        for span in _cut(strip.spans, strip.fade, end):
            pieces.append(_captioned(Piece((span,)), strip, first))
            first += span.frames
        tail = _cut(strip.spans, end, strip.frames)
    return tuple(pieces)


def _captioned(piece: Piece, strip: Strip, first: int) -> Piece:
    """A piece of a strip that begins at its frame `first`, with the part of the caption that it shows."""
    piece, frames = replace(piece, clip=strip.clip), piece.source_frames
    if strip.caption_frames is None:
        return replace(piece, caption=strip.caption)
    start, stop = (min(max(frame - first, 0), frames) for frame in strip.caption_frames)
    if start == stop:
        return piece
    shown = None if (start, stop) == (0, frames) else (start, stop)
    return replace(piece, caption=strip.caption, caption_frames=shown)


def darkened(pieces: Sequence[Piece], ramps: Sequence[Ramp]) -> tuple[Piece, ...]:
    """The pieces with these ramps, whose frames are the film's before any is repeated."""
    dark: list[Piece] = []
    first = 0
    for piece in pieces:
        seen = (ramp.seen_from(first, piece.source_frames) for ramp in ramps)
        dark.append(replace(piece, ramps=tuple(ramp for ramp in seen if ramp)))
        first += piece.source_frames
    return tuple(dark)


def dips(strips: Sequence[Strip]) -> Iterator[Ramp]:
    """The ramps of every dip: half of it, rounded down, falls before the join; the rest rises after it."""
    join = 0
    for strip in strips:
        join -= strip.fade
        if strip.dip:
            falling = strip.dip // 2
            yield Ramp(join - falling, falling, rising=False)
            yield Ramp(join, strip.dip - falling, rising=True)
        join += strip.frames


def paced(pieces: Iterable[Piece], rate: Fraction) -> tuple[Piece, ...]:
    """The pieces at `rate` times the board's rate, by repeating frames. Raises ValueError below 1."""
    if rate < 1:
        raise ValueError(f"a film at {rate} of its board's rate would lose frames")
    pace, run = Pace(rate), []
    for piece in pieces:
        run.append(replace(piece, pace=pace))
        pace = pace.after(piece.source_frames)
    return tuple(run)


def ranges(strips: Sequence[Strip], rate: Fraction) -> dict[str, tuple[int, int]]:
    """Every clip's frames of the film [first, stop), in film order; a fade belongs to the later clip.

    A clip that is completely inside the fade into the next one has an empty range.
    """
    found: dict[str, tuple[int, int]] = {}
    first = 0
    for strip, after in zip_longest(strips, strips[1:]):
        stop = first + strip.frames - (after.fade if after else 0)
        found[strip.clip] = (ceil(first * rate), ceil(stop * rate))
        first = stop
    return found


def film_frames(pieces: Iterable[Piece]) -> Iterator[FilmFrame]:
    """What every frame of the film shows, in order."""
    return (piece.frame(index) for piece in pieces for index in range(piece.frames))


def _count(spans: Iterable[Span]) -> int:
    return sum(span.frames for span in spans)


def _check(strip: Strip, fade_out: int) -> None:
    if strip.fade < 0:
        raise ValueError(f"clip {strip.clip}: a fade cannot be negative, got {strip.fade}")
    if strip.fade + fade_out > strip.frames:
        raise ValueError(
            f"clip {strip.clip}: fades of {strip.fade} and {fade_out} frames do not fit in {strip.frames}"
        )


def _cut(spans: Iterable[Span], start: int, stop: int) -> tuple[Span, ...]:
    """The part of a run of spans between two of its frames: [start, stop), both counted along the run."""
    parts: list[Span] = []
    for span in spans:
        first, last = max(start, 0), min(stop, span.frames)
        if first < last:
            parts.append(Span(span.key, span.start + first, span.start + last))
        start, stop = start - span.frames, stop - span.frames
    return tuple(parts)


def _source(spans: Iterable[Span], index: int) -> FrameRef:
    left = index
    for span in spans:
        if 0 <= left < span.frames:
            return FrameRef(span.key, span.start + left)
        left -= span.frames
    raise IndexError(f"no frame {index}")
