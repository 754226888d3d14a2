"""The edit list: which frames make the film, in which order. Integers only.

Film = sum of contributions - fades. Every frame once and in order; only a fade makes one frame of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile, zip_longest
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


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

    @property
    def frames(self) -> int:
        """How many frames it contributes, before fades overlap them."""
        return _count(self.spans)


class Source(NamedTuple):
    """One frame of one entry."""

    key: str
    frame: int


class FilmFrame(NamedTuple):
    """What one frame of the film shows."""

    over: Source
    under: Source | None = None
    """The outgoing frame, inside a fade only."""
    weight: Fraction = Fraction(1)
    """Share of `over`; `under` has the rest."""


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

    def __post_init__(self) -> None:
        if not self.spans:
            raise ValueError("a piece needs a span")
        if self.under and _count(self.under) != _count(self.spans):
            raise ValueError("both sides of a fade need as many frames")

    @property
    def frames(self) -> int:
        """How many frames of the film it makes."""
        return _count(self.spans)

    @property
    def keys(self) -> frozenset[str]:
        """The entries it is made from."""
        return frozenset(span.key for span in self.spans + self.under)

    def frame(self, index: int) -> FilmFrame:
        """What its 0-based frame `index` shows. Raises IndexError past either end."""
        over = _source(self.spans, index)
        if not self.under:
            return FilmFrame(over)
        return FilmFrame(over, _source(self.under, index), Fraction(index + 1, self.frames + 1))


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
        if strip.fade:
            pieces.append(Piece(_cut(strip.spans, 0, strip.fade), tail, strip.clip))
        end = strip.frames - fade_out
        pieces += [Piece((span,), clip=strip.clip) for span in _cut(strip.spans, strip.fade, end)]
        tail = _cut(strip.spans, end, strip.frames)
    return tuple(pieces)


def film_frames(pieces: Iterable[Piece]) -> Iterator[FilmFrame]:
    """What every frame of the film shows, in order."""
    return (piece.frame(index) for piece in pieces for index in range(piece.frames))


def shown(pieces: Iterable[Piece], available: Callable[[str], bool]) -> tuple[Piece, ...]:
    """The leading pieces whose entries all exist: what a preview can show by now."""
    return tuple(takewhile(lambda piece: all(map(available, piece.keys)), pieces))


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


def _source(spans: Iterable[Span], index: int) -> Source:
    left = index
    for span in spans:
        if 0 <= left < span.frames:
            return Source(span.key, span.start + left)
        left -= span.frames
    raise IndexError(f"no frame {index}")
