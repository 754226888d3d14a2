"""What decides a film's bytes, and whether the film that is there is made so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.cut.audio import audio_inputs
from svi_story.cut.encoding import piece_inputs
from svi_story.plan.keys import key_of
from svi_story.render.captions import captions_beside
from svi_story.render.edit import encoding_of, pieces_of, ranges_of, soundtrack_of
from svi_story.render.provenance import extras_of
from svi_story.render.record import is_up_to_date

if TYPE_CHECKING:
    from svi_story.cache.store import Store
    from svi_story.plan.keys import Json
    from svi_story.render.jobs import Job


def is_finished(job: Job, store: Store) -> bool:
    """Whether the film is there as it would be made, and no segment waits for being made again by force."""
    if store.owed([segment.key for segment in job.segments]) or not is_up_to_date(
        job.place.film, recipe_of(job)
    ):
        return False
    return captions_beside(job, extras_of(job, ranges_of(job)).captions).settled


def recipe_of(job: Job) -> str:
    """One hash of everything that decides the film's bytes.

    Segments that a bundle brought may be forged under honest keys: whose they are counts too.
    """
    encoding, pieces = encoding_of(job), pieces_of(job)
    inputs: dict[str, Json] = {
        "pieces": [dict(piece_inputs(piece, encoding)) for piece in pieces],
        "sound": audio_inputs(soundtrack_of(job)),
        "extras": extras_of(job, ranges_of(job)).identity(),
    }
    if job.place.origin:
        inputs["bundle"] = job.place.origin
    return key_of(inputs)
