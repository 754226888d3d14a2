"""The film's sound: mixed once for the same recordings, before any frame is made, and kept like a piece."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from svi_story.cut.audio import audio_inputs
from svi_story.cut.mixing import mix
from svi_story.events import SoundDone, Warned
from svi_story.plan.keys import key_of
from svi_story.render.edit import soundtrack_of

if TYPE_CHECKING:
    from pathlib import Path

    from svi_story.render.jobs import Job
    from svi_story.render.stage import Studio


class Sound(NamedTuple):
    """A mixed soundtrack in the cache."""

    key: str
    file: Path


def make_sound(job: Job, studio: Studio) -> Sound | None:
    """The film's sound, mixed now if it is not there; None for a silent film.

    Raises RenderError where a recording is not what was planned with, or cannot be read to its end.
    """
    soundtrack = soundtrack_of(job)
    if not soundtrack.tracks:
        return None
    board = job.place.board

    def build(target: Path) -> None:
        start = time.monotonic()
        over = mix(soundtrack, target)
        studio.report(SoundDone(board, round(job.plan.seconds, 3), round(time.monotonic() - start, 3)))
        if over:
            what = f"{over} samples of the sound were too loud and were turned down; use smaller volumes"
            studio.report(Warned(f"{board}: {what}"))

    inputs = audio_inputs(soundtrack)
    key = key_of(inputs)
    return Sound(key, studio.store.make_piece(key, build, inputs))
