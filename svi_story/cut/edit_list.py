"""From a plan to its edit list: cards, clips, fades, captions, soundtrack; and how it is encoded."""

from __future__ import annotations

from itertools import zip_longest
from math import ceil
from typing import TYPE_CHECKING

from svi_story.cut.audio import tracks_of
from svi_story.cut.encode import Encoding
from svi_story.cut.timeline import Ramp, Span, Strip, darkened, dips, edit_list, paced, ranges
from svi_story.plan.keys import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from svi_story.cut.audio import Soundtrack
    from svi_story.cut.timeline import Piece
    from svi_story.plan.model import Card, FilmPlan

TITLE_CARD, END_CARD = "(title card)", "(end card)"
"""The names of cards where clips have ids; no clip's id starts like that."""


def pieces_of(plan: FilmPlan) -> tuple[Piece, ...]:
    """The film, piece by piece."""
    strips = strips_of(plan)
    pieces = edit_list(strips)
    ramps = (*dips(strips), *_fades_at_ends(plan))
    return paced(darkened(pieces, ramps), plan.cut.fps / plan.fps)


def strips_of(plan: FilmPlan) -> tuple[Strip, ...]:
    """The cards, and between them every clip's frames after the drop."""
    clips = (
        Strip(
            clip=shot.id,
            spans=tuple(Span(segment.key, segment.overlap, segment.frames) for segment in shot.segments),
            fade=shot.fade,
            dip=shot.dip,
            caption=shot.caption if plan.cut.burnt else "",
            caption_frames=shot.caption_frames,
        )
        for shot in plan.shots
    )
    return (*_card(TITLE_CARD, plan.cut.title_card), *clips, *_card(END_CARD, plan.cut.end_card))


def _card(name: str, card: Card | None) -> Sequence[Strip]:
    return () if card is None else (Strip(name, (Span(card_key(card), 0, card.frames),)),)


def card_key(card: Card) -> str:
    """The key of a card's picture, as entries have theirs."""
    return key_of({"card": card.text})


def ranges_of(plan: FilmPlan) -> Mapping[str, tuple[int, int]]:
    """Where every clip and card lies in the film: its first frame, and the first one after it."""
    return ranges(strips_of(plan), plan.cut.fps / plan.fps)


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


def soundtrack_of(plan: FilmPlan) -> Soundtrack:
    """The film's sound."""
    starts = {clip: first for clip, (first, _) in ranges_of(plan).items()}
    return tracks_of(plan, starts, plan.frames)


def cards_of(plan: FilmPlan) -> Mapping[str, Card]:
    """The film's cards by their keys; two with the same text are as long as the longer one."""
    cards = [card for card in (plan.cut.title_card, plan.cut.end_card) if card]
    return {card_key(card): card for card in sorted(cards, key=lambda card: card.frames)}


def _fades_at_ends(plan: FilmPlan) -> Iterator[Ramp]:
    """How the clips come out of black and go back into it; cards are black themselves."""
    cut = plan.cut
    first = cut.title_card.frames if cut.title_card else 0
    stop = first + sum(shot.frames - shot.fade for shot in plan.shots)
    if cut.fade_in:
        yield Ramp(first, cut.fade_in, rising=True)
    if cut.fade_out:
        yield Ramp(stop - cut.fade_out, cut.fade_out, rising=False)


def encoding_of(plan: FilmPlan) -> Encoding:
    """How the film's pieces are encoded."""
    size, cut = plan.size, plan.cut
    return Encoding(size.width, size.height, cut.fps, cut.crf, cut.codec, cut.preset)
