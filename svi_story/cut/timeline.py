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

from svi_story.plan.keys import key_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from svi_story.plan.model import Card, FilmPlan


TITLE_CARD, END_CARD = "(title card)", "(end card)"
"""Names of cards, used like ids of clips; no clip's id starts with a bracket."""


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
class TimelineClip:
    """What one clip contributes, in order."""

    id: str
    """The clip's, or the name of a card."""
    spans: tuple[Span, ...]
    fade: int = 0
    """Frames shared with the clip before it; 0 is a hard join."""
    dip: int = 0
    """Frames around the join with the clip before it that go through black."""
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


class BlendedFrame(NamedTuple):
    """What one frame of the film shows."""

    over: FrameRef
    under: FrameRef | None = None
    """The outgoing frame, inside a fade only."""
    weight: Fraction = Fraction(1)
    """Share of `over`; `under` has the rest."""
    level: Fraction = Fraction(1)
    """The fraction of its brightness that remains."""


@dataclass(frozen=True)
class BlackFade:
    """A fade from black or to black.

    The first of a rising one and the last of a falling one are black.
    """

    start: int
    """Its first frame, relative to the film or piece; negative if the fade starts before it."""
    frames: int
    rising: bool

    def level(self, frame: int) -> Fraction:
        """The fraction of a frame's brightness that remains; 1 outside the fade."""
        place = frame - self.start
        if not 0 <= place < self.frames:
            return Fraction(1)
        return Fraction(place if self.rising else self.frames - 1 - place, self.frames)

    def relative_to(self, first: int, frames: int) -> BlackFade | None:
        """The same fade in a run of frames that starts at `first`; None where it does not touch the run."""
        if self.start + self.frames <= first or first + frames <= self.start:
            return None
        return replace(self, start=self.start - first)


@dataclass(frozen=True)
class RateConversion:
    """Repeats frames to reach a higher rate: frame i of a run starts at i * rate - offset."""

    rate: Fraction = Fraction(1)
    """Frames of the film for one of the board, 1 or more."""
    offset: Fraction = Fraction(0)
    """The part of its first frame's time that belongs to the run before it, in frames of the film."""

    def frames(self, count: int) -> int:
        """How many frames of the film a run of `count` becomes."""
        return ceil(count * self.rate - self.offset)

    def source(self, index: int) -> int:
        """Which frame of the run the film's frame `index` of it repeats."""
        return floor((index + self.offset) / self.rate)

    def after(self, count: int) -> RateConversion:
        """The conversion of the run that follows one of `count` frames."""
        end = count * self.rate - self.offset
        return replace(self, offset=ceil(end) - end)


@dataclass(frozen=True)
class Piece:
    """A run of film frames that is encoded together.

    Without a fade: one span, the part of a segment outside fades. With a fade: `spans` fade in over `under`,
    which has as many frames; the piece belongs to the later clip. Frame i of an n-frame fade has (i+1)/(n+1)
    of the incoming picture, so neither its first nor its last frame repeats a neighbour.
    """

    spans: tuple[Span, ...]
    under: tuple[Span, ...] = ()
    clip: str = ""
    """The clip it belongs to; not part of what it shows."""
    caption: str = ""
    """Drawn on every frame, or on some of them."""
    caption_frames: tuple[int, int] | None = None
    """Those that show the caption, [first, stop), counted before any is repeated; None for all of them."""
    black_fades: tuple[BlackFade, ...] = ()
    """Fades that darken its frames, counted before any is repeated."""
    conversion: RateConversion = RateConversion()

    def __post_init__(self) -> None:
        if not self.spans:
            raise ValueError("a piece needs a span")
        if self.under and _count(self.under) != _count(self.spans):
            raise ValueError("both sides of a fade need as many frames")

    @property
    def frames(self) -> int:
        """Its frames in the film."""
        return self.conversion.frames(self.source_frames)

    @property
    def source_frames(self) -> int:
        """How many frames it has before any is repeated."""
        return _count(self.spans)

    @property
    def keys(self) -> frozenset[str]:
        """The entries it reads."""
        return frozenset(span.key for span in self.spans + self.under)

    def frame(self, index: int) -> BlendedFrame:
        """What its 0-based frame `index` shows. Raises IndexError past either end."""
        place = self.conversion.source(index)
        over, level = _source(self.spans, place), prod(fade.level(place) for fade in self.black_fades)
        if not self.under:
            return BlendedFrame(over, level=Fraction(level))
        weight = Fraction(place + 1, self.source_frames + 1)
        return BlendedFrame(over, _source(self.under, place), weight, Fraction(level))


def pieces_of(plan: FilmPlan) -> tuple[Piece, ...]:
    """The film, piece by piece."""
    clips = timeline_clips(plan)
    pieces = edit_list(clips)
    black_fades = list(dips(clips))
    cut = plan.cut  # fades at the ends of the clips: cards are black themselves
    first = cut.title_card.frames if cut.title_card else 0
    stop = first + sum(shot.frames - shot.fade for shot in plan.shots)
    if cut.fade_in:
        black_fades.append(BlackFade(first, cut.fade_in, rising=True))
    if cut.fade_out:
        black_fades.append(BlackFade(stop - cut.fade_out, cut.fade_out, rising=False))
    return at_rate(with_black_fades(pieces, black_fades), cut.fps / plan.fps)


def timeline_clips(plan: FilmPlan) -> tuple[TimelineClip, ...]:
    """The cards, and between them every clip's frames after the drop."""
    clips = (
        TimelineClip(
            id=shot.id,
            spans=tuple(Span(segment.key, segment.overlap, segment.frames) for segment in shot.segments),
            fade=shot.fade,
            dip=shot.dip,
            caption=shot.caption if plan.cut.burnt else "",
            caption_frames=shot.caption_frames,
        )
        for shot in plan.shots
    )
    return (*_card(TITLE_CARD, plan.cut.title_card), *clips, *_card(END_CARD, plan.cut.end_card))


def _card(name: str, card: Card | None) -> Sequence[TimelineClip]:
    return () if card is None else (TimelineClip(name, (Span(card_key(card), 0, card.frames),)),)


def card_key(card: Card) -> str:
    """The key of a card's picture, in the form of an entry's key."""
    return key_of({"card": card.text})


def ranges_of(plan: FilmPlan) -> Mapping[str, tuple[int, int]]:
    """The position of every clip and card in the film: its first frame, and the first one after it."""
    return ranges(timeline_clips(plan), plan.cut.fps / plan.fps)


def caption_ranges_of(plan: FilmPlan) -> Mapping[str, tuple[int, int]]:
    """The frames of the film [first, stop) that show each clip's caption; empty where a fade hides it."""
    rate = plan.cut.fps / plan.fps
    found: dict[str, tuple[int, int]] = {}
    first = plan.cut.title_card.frames if plan.cut.title_card else 0
    for shot, after in zip_longest(plan.shots, plan.shots[1:]):
        first -= shot.fade
        start, stop = shot.caption_frames or (0, shot.frames)
        stop = min(stop, shot.frames - (after.fade if after else 0))
        found[shot.id] = ceil((first + start) * rate), ceil((first + max(stop, start)) * rate)
        first += shot.frames
    return found


def cards_of(plan: FilmPlan) -> Mapping[str, Card]:
    """The film's cards by their keys; two with the same text are as long as the longer one."""
    cards = [card for card in (plan.cut.title_card, plan.cut.end_card) if card]
    return {card_key(card): card for card in sorted(cards, key=lambda card: card.frames)}


def edit_list(clips: Sequence[TimelineClip]) -> tuple[Piece, ...]:
    """The pieces of a film, in film order, none of them empty.

    Raises ValueError where fades do not fit: on the first clip, longer than a neighbour, or two that
    overlap in one clip.
    """
    if clips and clips[0].fade:
        raise ValueError(f"clip {clips[0].id}: the first clip has nothing to fade from")
    pieces: list[Piece] = []
    tail: tuple[Span, ...] = ()
    for clip, after in zip_longest(clips, clips[1:]):
        fade_out = after.fade if after else 0
        _check(clip, fade_out)
        first = 0
        if clip.fade:
            pieces.append(_captioned(Piece(_cut(clip.spans, 0, clip.fade), tail), clip, first))
            first = clip.fade
        end = clip.frames - fade_out
        for span in _cut(clip.spans, clip.fade, end):
            pieces.append(_captioned(Piece((span,)), clip, first))
            first += span.frames
        tail = _cut(clip.spans, end, clip.frames)
    return tuple(pieces)


def _captioned(piece: Piece, clip: TimelineClip, first: int) -> Piece:
    """A piece of a clip that begins at its frame `first`, with the part of the caption that it shows."""
    piece, frames = replace(piece, clip=clip.id), piece.source_frames
    if clip.caption_frames is None:
        return replace(piece, caption=clip.caption)
    start, stop = (min(max(frame - first, 0), frames) for frame in clip.caption_frames)
    if start == stop:
        return piece
    shown = None if (start, stop) == (0, frames) else (start, stop)
    return replace(piece, caption=clip.caption, caption_frames=shown)


def with_black_fades(pieces: Sequence[Piece], black_fades: Sequence[BlackFade]) -> tuple[Piece, ...]:
    """The pieces with these fades, whose frames are the film's before any is repeated."""
    dark: list[Piece] = []
    first = 0
    for piece in pieces:
        own = (fade.relative_to(first, piece.source_frames) for fade in black_fades)
        dark.append(replace(piece, black_fades=tuple(fade for fade in own if fade)))
        first += piece.source_frames
    return tuple(dark)


def dips(clips: Sequence[TimelineClip]) -> Iterator[BlackFade]:
    """The fades of every dip: half of it, rounded down, falls before the join; the rest rises after it."""
    join = 0
    for clip in clips:
        join -= clip.fade
        if clip.dip:
            falling = clip.dip // 2
            yield BlackFade(join - falling, falling, rising=False)
            yield BlackFade(join, clip.dip - falling, rising=True)
        join += clip.frames


def at_rate(pieces: Iterable[Piece], rate: Fraction) -> tuple[Piece, ...]:
    """The pieces at `rate` times the board's rate, by repeating frames. Raises ValueError below 1."""
    if rate < 1:
        raise ValueError(f"a film at {rate} of its board's rate would lose frames")
    conversion, run = RateConversion(rate), []
    for piece in pieces:
        run.append(replace(piece, conversion=conversion))
        conversion = conversion.after(piece.source_frames)
    return tuple(run)


def ranges(clips: Sequence[TimelineClip], rate: Fraction) -> dict[str, tuple[int, int]]:
    """Every clip's frames of the film [first, stop), in film order; a fade belongs to the later clip.

    A clip that is completely inside the fade into the next one has an empty range.
    """
    found: dict[str, tuple[int, int]] = {}
    first = 0
    for clip, after in zip_longest(clips, clips[1:]):
        stop = first + clip.frames - (after.fade if after else 0)
        found[clip.id] = (ceil(first * rate), ceil(stop * rate))
        first = stop
    return found


def _count(spans: Iterable[Span]) -> int:
    return sum(span.frames for span in spans)


def _check(clip: TimelineClip, fade_out: int) -> None:
    if clip.fade < 0:
        raise ValueError(f"clip {clip.id}: a fade cannot be negative, got {clip.fade}")
    if clip.fade + fade_out > clip.frames:
        raise ValueError(
            f"clip {clip.id}: fades of {clip.fade} and {fade_out} frames do not fit in {clip.frames}"
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
