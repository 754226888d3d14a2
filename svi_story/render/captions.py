"""The captions beside the film, as .srt: written with it, gone with them, never over an editor's work."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.cache.outputs import is_plain
from svi_story.cut.subtitles import srt
from svi_story.events import Warned
from svi_story.files import UnfitError, disk, sha256_file
from svi_story.render.record import read_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from svi_story.cache.outputs import Outputs
    from svi_story.cut.extras import Cue
    from svi_story.events import Reporter
    from svi_story.render.jobs import Job

LARGEST = 16 * 2**20
"""Bytes of captions; all the texts of a board take 2 MB."""
HASH = 64
"""Characters of a sha256."""


@dataclass(frozen=True)
class Captions:
    """What is to lie beside a film, and what may lie there that is ours.

    The record is written first and names both: killed between the two, the next run knows what it finds.
    """

    path: Path
    data: bytes
    """Empty where there are to be none."""
    ours: tuple[str, ...]
    """sha256 of what is to lie there, and of what we put there before."""

    def put(self, outputs: Outputs, report: Reporter) -> None:
        """Make it so. What somebody changed by hand is kept, with a warning. RenderError from the disk."""
        if outputs.keeps(self.path):
            return
        there = _hash(self.path)
        ours = there in self.ours or outputs.is_ours(self.path)
        if self.data and os.path.lexists(self.path) and not (ours and is_plain(self.path)):
            how = "was changed by hand" if len(there) in (0, HASH) else there
            what = f"{how} and is kept; remove it to get the board's captions"
            report(Warned(f"{self.path}: {what}"))
        elif self.data and there != self.ours[0]:
            with disk(self.path, "writing the captions"):
                outputs.allow(self.path)
                outputs.write(self.path, self.data)
        elif not self.data and there in self.ours and is_plain(self.path):
            with suppress(OSError):
                self.path.unlink()

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        there = _hash(self.path)
        if self.data:
            return there == self.ours[0] or (there != "" and there not in self.ours)
        return there not in self.ours


def captions_beside(job: Job, cues: Sequence[Cue]) -> Captions:
    """The captions of a film that is about to be recorded."""
    path = job.place.film.with_suffix(".srt")
    record = read_record(job.place.film)
    data = srt(cues, job.plan.cut.fps).encode() if cues else b""
    new = [hashlib.sha256(data).hexdigest()] if data else []
    before = record.captions[:2] if record else ()
    return Captions(path, data, tuple(dict.fromkeys([*new, *before])))


def _hash(path: Path) -> str:
    """A file's sha256; why it can be none of ours, as `is a folder`; empty where there is none."""
    try:
        return sha256_file(path, LARGEST)
    except UnfitError as error:
        return error.strerror or ""
    except OSError:
        return ""
