"""What is written on the picture and cannot be read whole, told before anything is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.cut.words import CAPTION, CARD, has_room
from svi_story.media.text import unseen
from svi_story.render.edit import END_CARD, TITLE_CARD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.cut.words import Type
    from svi_story.render.jobs import Job


def illegible(job: Job) -> Iterator[str]:
    """A sentence for every text that no font shows whole, or that there is no room for."""
    size = job.plan.size
    for name, text, kind in _words(job):
        missing = unseen(text)
        if missing:
            yield f"{name}: {missing}"
        if not has_room(text, kind, size.width, size.height):
            what = f"{len(text)} characters have no room in {size}, and end in an ellipsis; shorten the text"
            yield f"{name}: {what}"


def _words(job: Job) -> Iterator[tuple[str, str, Type]]:
    """What is drawn into the film: where it comes from, the text, and how it is set."""
    cut = job.plan.cut
    for name, card in ((TITLE_CARD, cut.title_card), (END_CARD, cut.end_card)):
        if card:
            yield name, card.text, CARD
    for shot in job.plan.shots:
        if cut.burnt and shot.caption:
            yield f"caption of {shot.id}", shot.caption, CAPTION
