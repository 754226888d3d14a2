"""The captions beside the film, as .srt: written with it, gone with them, never over an editor's work."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING

from svi_story.cache.files import disk, sha256_file, write_atomic
from svi_story.cut.subtitles import srt
from svi_story.events import Warned
from svi_story.render.record import read_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from svi_story.cut.extras import Cue
    from svi_story.events import Reporter
    from svi_story.render.jobs import Job


def captions_path(film: Path) -> Path:
    """Where players look for a film's captions."""
    return film.with_suffix(".srt")


def put_captions(job: Job, cues: Sequence[Cue], report: Reporter) -> str:
    """Make the file beside the film hold these captions; the sha256 of what was written, or empty.

    Call it before the film's record is replaced: that tells whether the file that is there is ours.
    """
    path = captions_path(job.place.film)
    record = read_record(job.place.film)
    ours = record.captions if record else ""
    there = _hash(path)
    if not cues:
        if there and there == ours:
            with suppress(OSError):
                path.unlink()
        return ""
    data = srt(cues, job.plan.cut.fps).encode()
    new = hashlib.sha256(data).hexdigest()
    if there and there not in (ours, new):
        report(Warned(f"{path}: was changed by hand and is kept; remove it to get the board's captions"))
        return ""
    if there != new:
        with disk(path, "writing the captions"):
            write_atomic(path, data)
    return new


def _hash(path: Path) -> str:
    """A file's sha256; empty where there is none."""
    try:
        return sha256_file(path)
    except OSError:
        return ""
