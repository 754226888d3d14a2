"""From a plan to its edit list: cards, clips, fades, captions, black; and how it is encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.cut.audio import tracks_of
from svi_story.cut.encoding import Encoding
from svi_story.cut.timeline import Ramp, Span, Strip, darkened, dips, edit_list, paced, ranges
from svi_story.plan.keys import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from svi_story.cut.audio import Soundtrack
    from svi_story.cut.timeline import Piece
    from svi_story.plan.model import Card, Cut
    from svi_story.render.jobs import Job

TITLE_CARD, END_CARD = "(title card)", "(end card)"
"""What cards are called where clips have their ids; no clip's id starts like that."""


def pieces_of(job: Job) -> tuple[Piece, ...]:
    """The film, piece by piece."""
    plan, strips = job.plan, strips_of(job)
    pieces = edit_list(strips)
    ramps = (*dips(strips), *_ends(plan.cut, sum(piece.made_of for piece in pieces)))
    return paced(darkened(pieces, ramps), plan.cut.fps / plan.fps)


def strips_of(job: Job) -> tuple[Strip, ...]:
    """The cards, and between them every clip's frames after the drop."""
    plan = job.plan
    clips = (
        Strip(
            clip=shot.id,
            spans=tuple(Span(task.key, task.segment.overlap, task.segment.frames) for task in tasks),
            fade=shot.fade,
            dip=shot.dip,
            caption=shot.caption if plan.cut.burnt else "",
        )
        for shot, tasks in zip(plan.shots, job.tasks, strict=True)
    )
    return (*_card(TITLE_CARD, plan.cut.title_card), *clips, *_card(END_CARD, plan.cut.end_card))


def _card(name: str, card: Card | None) -> Sequence[Strip]:
    return () if card is None else (Strip(name, (Span(card_key(card), 0, card.frames),)),)


def card_key(card: Card) -> str:
    """What stands for a card's picture where entries have their keys."""
    return key_of({"card": card.text})


def soundtrack_of(job: Job) -> Soundtrack:
    """What is heard, and where."""
    starts = {clip: first for clip, (first, _) in ranges(pieces_of(job)).items()}
    return tracks_of(job.plan, starts, job.plan.frames)


def cards_of(job: Job) -> Mapping[str, Card]:
    """The film's cards by their keys; two that say the same are as long as the longer one."""
    cards = [card for card in (job.plan.cut.title_card, job.plan.cut.end_card) if card]
    return {card_key(card): card for card in sorted(cards, key=lambda card: card.frames)}


def words_of(job: Job) -> Iterator[tuple[str, str]]:
    """What is drawn into the film, and where it comes from."""
    cut = job.plan.cut
    for name, card in ((TITLE_CARD, cut.title_card), (END_CARD, cut.end_card)):
        if card:
            yield name, card.text
    for shot in job.plan.shots:
        if cut.burnt and shot.caption:
            yield f"caption of {shot.id}", shot.caption


def _ends(cut: Cut, frames: int) -> Iterator[Ramp]:
    """How the film comes out of black and goes back into it."""
    if cut.fade_in:
        yield Ramp(0, cut.fade_in, rising=True)
    if cut.fade_out:
        yield Ramp(frames - cut.fade_out, cut.fade_out, rising=False)


def encoding_of(job: Job) -> Encoding:
    """How the film's pieces are encoded."""
    size, cut = job.plan.size, job.plan.cut
    return Encoding(size.width, size.height, cut.fps, cut.crf, cut.codec, cut.preset)
