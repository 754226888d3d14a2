"""One film: every segment in the cache, every piece encoded once, the film in place when it is complete."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from svi_story.cache.files import disk, make_folder
from svi_story.cut.tools import check_encoder
from svi_story.events import BoardStarted, ClipDone, FilmDone, Warned
from svi_story.render.captions import captions_beside
from svi_story.render.edit import encoding_of, ranges_of
from svi_story.render.legible import illegible
from svi_story.render.mix import mixed
from svi_story.render.provenance import extras_of
from svi_story.render.recipe import is_finished, recipe_of
from svi_story.render.record import write_record
from svi_story.render.reel import Reel, drop_preview
from svi_story.render.segment import ensure
from svi_story.render.sound import make_sound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svi_story.cache.entry import Entry
    from svi_story.plan.keys import Task
    from svi_story.render.jobs import Job
    from svi_story.render.sound import Sound
    from svi_story.render.stage import Studio


def render_film(job: Job, forced: Sequence[Task], studio: Studio) -> None:
    """Make what is missing of a film and put it in place; the forced segments are made again."""
    if not forced and is_finished(job, studio.store):
        _keep(job, None, studio)
        drop_preview(job.place.film)
        _report_film(job, studio, made=False)
        return
    check_encoder(encoding_of(job).codec.encoder)
    start(job, job.all_tasks, forced, studio)
    for note in illegible(job):
        studio.report(Warned(f"{job.place.board}: {note}"))
    with disk(job.place.film, "making room for the film"):
        make_folder(job.place.film.parent)
    sound = make_sound(job, studio)  # what cannot be read costs no GPU time
    reel = Reel(job, studio)
    for shot, tasks in zip(job.plan.shots, job.tasks, strict=True):
        fresh = [task for task in tasks if reel.add(task)]
        studio.report(ClipDone(job.place.board, shot.id))
        if fresh and shot is not job.plan.shots[-1]:
            reel.refresh_preview()
    _finish(reel, sound)
    mix = mixed((task.segment.clip, reel.entries[task.key].environment) for task in job.all_tasks)
    if mix:
        studio.report(Warned(f"{job.place.board}: {mix}"))
    _report_film(job, studio, made=True)


def _finish(reel: Reel, sound: Sound | None) -> None:
    """Put the complete film in place, then its record; the preview has served."""
    job, report = reel.job, reel.studio.report
    extras = extras_of(job, ranges_of(job))
    frames = reel.join(job.place.film, replace(extras, audio=sound.file if sound else None))
    assert frames == job.plan.frames, "the edit list holds every frame of the plan"
    captions = captions_beside(job, extras.captions)
    write_record(job, recipe_of(job), reel.entries, captions.ours)
    captions.put(report)
    _keep(job, [key for key, _ in (*reel.pieces, *([sound] if sound else []))], reel.studio)
    drop_preview(job.place.film)


def render_clips(job: Job, wanted: Sequence[Task], forced: Sequence[Task], studio: Studio) -> None:
    """Make these segments, which hold all that they continue from, and no film."""
    start(job, wanted, forced, studio)
    entries: dict[str, Entry] = {}
    for task in wanted:
        parent = entries[task.parent] if task.parent else None
        entries[task.key] = ensure(task, parent, job.place.board, studio).entry


def start(job: Job, wanted: Sequence[Task], forced: Sequence[Task], studio: Studio) -> None:
    """Set the forced entries aside, tell what is about to happen, and check all that it needs."""
    for task in forced:
        studio.stage.set_aside(task.key)
    _keep(job, None, studio)
    missing = [task for task in wanted if studio.store.state(task.key) != "cached"]
    studio.report(
        BoardStarted(job.place.board, job.place.film, len(job.plan.shots), len(wanted), len(missing))
    )
    notes = [note for task in missing for note in studio.stage.engine.notes(task.segment)]
    for note in dict.fromkeys(notes):
        studio.report(Warned(f"{job.place.board}: {note}"))
    if missing:
        studio.stage.entered().prepare([task.segment for task in missing])


def _keep(job: Job, pieces: Sequence[str] | None, studio: Studio) -> None:
    """Protect what the film is made of from `cache gc`; None for the pieces it had."""
    keys = [task.key for task in job.all_tasks]
    studio.store.remember_film(job.place.film, job.place.board, keys, pieces)


def _report_film(job: Job, studio: Studio, *, made: bool) -> None:
    plan = job.plan
    studio.report(FilmDone(job.place.board, job.place.film, plan.frames, round(plan.seconds, 3), made))
