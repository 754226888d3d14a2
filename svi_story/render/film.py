"""One film: every segment in the cache, every piece encoded once, the film in place when it is complete."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from svi_story.cut.tools import check_encoder, import_moviepy
from svi_story.events import BoardStarted, ClipDone, FilmDone, Warned
from svi_story.files import disk, make_folder
from svi_story.render.captions import captions_beside
from svi_story.render.edit import encoding_of, ranges_of
from svi_story.render.legible import illegible
from svi_story.render.mix import mixed
from svi_story.render.provenance import extras_of
from svi_story.render.recipe import is_finished, recipe_of
from svi_story.render.record import write_record
from svi_story.render.reel import Reel, drop_preview
from svi_story.render.sound import make_sound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svi_story.plan.model import Segment
    from svi_story.render.jobs import Job
    from svi_story.render.segments import Made
    from svi_story.render.sound import Sound
    from svi_story.render.stage import Studio


class Film:
    """One board's way from its first finished segment to its film in place."""

    def __init__(self, job: Job, studio: Studio) -> None:
        self.job = job
        self._studio = studio
        self._reel = Reel(job, studio)
        self._waiting = {segment.key for segment in job.segments}
        self._fresh: set[str] = set()
        self._sound: Sound | None = None

    def start(self, forced: Sequence[Segment]) -> None:
        """Check all that it needs, and tell what is about to happen."""
        job, studio = self.job, self._studio
        check_encoder(encoding_of(job).codec.encoder)
        import_moviepy()  # where there is no ffmpeg, no GPU time is spent
        start(job, job.segments, forced, studio)
        for note in illegible(job):
            studio.report(Warned(f"{job.place.board}: {note}"))
        with disk(job.place.film, "making room for the film"):
            make_folder(job.place.film.parent)
        self._sound = make_sound(job, studio)  # what cannot be read costs no GPU time

    def take(self, made: Made) -> bool:
        """Take a finished segment; whether the film is complete and in place with it."""
        self._reel.add(made.entry)
        self._waiting.discard(made.segment.key)
        if made.fresh:
            self._fresh.add(made.segment.key)
        for shot in self.job.plan.shots:
            keys = {segment.key for segment in shot.segments}
            if made.segment.key in keys and not keys & self._waiting:
                self._studio.report(ClipDone(self.job.place.board, shot.id))
                if keys & self._fresh and self._waiting:
                    self._reel.refresh_preview()
        if not self._waiting:
            self._finish()
        return not self._waiting

    def drop(self) -> None:
        """Do no more for it."""
        self._reel.drop()

    def _finish(self) -> None:
        """Put the complete film in place, then its record; the preview has served."""
        job, studio, entries = self.job, self._studio, self._reel.entries
        extras, sound = extras_of(job, ranges_of(job)), self._sound
        pieces = self._reel.join(job.place.film, replace(extras, audio=sound.file if sound else None))
        captions = captions_beside(job, extras.captions)
        write_record(job, recipe_of(job), entries, captions.ours, studio.outputs)
        captions.put(studio.outputs, studio.report)
        _keep(job, [*pieces, *([sound.key] if sound else [])], studio)
        drop_preview(job.place.film, studio.outputs)
        mix = mixed((segment.clip, entries[segment.key].environment) for segment in job.segments)
        if mix:
            studio.report(Warned(f"{job.place.board}: {mix}"))
        _report_film(job, studio, made=True)


class Clips:
    """Some clips of a board, and no film."""

    def __init__(self, job: Job, wanted: Sequence[Segment], studio: Studio) -> None:
        self.job = job
        self._wanted = wanted
        self._studio = studio
        self._waiting = {segment.key for segment in wanted}

    def start(self, forced: Sequence[Segment]) -> None:
        """Check all that they need, and tell what is about to happen."""
        start(self.job, self._wanted, forced, self._studio)

    def take(self, made: Made) -> bool:
        """Take a finished segment; whether it was the last."""
        self._waiting.discard(made.segment.key)
        return not self._waiting

    def drop(self) -> None:
        """Nothing is under way."""


def still_good(job: Job, studio: Studio) -> bool:
    """Whether the film is there as it would be made; then all that is left to do is done."""
    if not is_finished(job, studio.store):
        return False
    _keep(job, None, studio)
    drop_preview(job.place.film, studio.outputs)
    _report_film(job, studio, made=False)
    return True


def start(job: Job, wanted: Sequence[Segment], forced: Sequence[Segment], studio: Studio) -> None:
    """Set the forced entries aside, tell what is about to happen, and check all that it needs."""
    for segment in forced:
        studio.stage.set_aside(segment.key)
    _keep(job, None, studio)
    missing = [segment for segment in wanted if studio.store.state(segment.key) != "cached"]
    studio.report(
        BoardStarted(job.place.board, job.place.film, len(job.plan.shots), len(wanted), len(missing))
    )
    notes = [note for segment in missing for note in studio.stage.engine.notes(segment)]
    for note in dict.fromkeys(notes):
        studio.report(Warned(f"{job.place.board}: {note}"))
    if missing:
        studio.stage.check(missing)


def _keep(job: Job, pieces: Sequence[str] | None, studio: Studio) -> None:
    """Protect what the film is made of from `cache gc`; None for the pieces it had."""
    keys = [segment.key for segment in job.segments]
    studio.store.remember_film(job.place.film, job.place.board, keys, pieces)


def _report_film(job: Job, studio: Studio, *, made: bool) -> None:
    plan = job.plan
    studio.report(FilmDone(job.place.board, job.place.film, plan.frames, round(plan.seconds, 3), made))
