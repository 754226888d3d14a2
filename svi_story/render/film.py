"""One film: every segment in the cache, every piece encoded once, the film in place when it is complete."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from svi_story import __version__
from svi_story.cache.files import disk, make_folder
from svi_story.cut.encode import encode_piece
from svi_story.cut.encoding import Encoding, piece_inputs
from svi_story.cut.join import join
from svi_story.cut.timeline import Piece, Span, Strip, edit_list
from svi_story.errors import RenderError
from svi_story.events import BoardStarted, ClipDone, FilmDone, PreviewDone, Warned
from svi_story.plan.keys import key_of
from svi_story.render.mix import mixed
from svi_story.render.record import is_up_to_date, write_record
from svi_story.render.segment import ensure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from svi_story.cache.entry import Entry
    from svi_story.cache.frames import Frames
    from svi_story.cache.store import Store
    from svi_story.plan.keys import Json, Task
    from svi_story.render.jobs import Job
    from svi_story.render.stage import Studio


def render_film(job: Job, forced: Sequence[Task], studio: Studio) -> None:
    """Make what is missing of a film and put it in place; the forced segments are made again."""
    if not forced and is_finished(job, studio.store):
        _keep(job, None, studio)
        drop_preview(job.place.film)
        _report_film(job, studio, made=False)
        return
    start(job, job.all_tasks, forced, studio)
    with disk(job.place.film, "making room for the film"):
        make_folder(job.place.film.parent)
    reel = Reel(job, studio)
    for shot, tasks in zip(job.plan.shots, job.tasks, strict=True):
        fresh = [task for task in tasks if reel.add(task)]
        studio.report(ClipDone(job.place.board, shot.id))
        if fresh and shot is not job.plan.shots[-1]:
            reel.refresh_preview()
    reel.finish()
    mix = mixed((task.segment.clip, reel.entries[task.key].environment) for task in job.all_tasks)
    if mix:
        studio.report(Warned(f"{job.place.board}: {mix}"))
    _report_film(job, studio, made=True)


def render_clips(job: Job, wanted: Sequence[Task], forced: Sequence[Task], studio: Studio) -> None:
    """Make these segments, which hold all that they continue from, and no film."""
    start(job, wanted, forced, studio)
    entries: dict[str, Entry] = {}
    for task in wanted:
        parent = entries[task.parent] if task.parent else None
        entries[task.key] = ensure(task, parent, job.place.board, studio).entry


def is_finished(job: Job, store: Store) -> bool:
    """Whether the film is there as it would be made, and no segment waits for being made again by force."""
    keys = [task.key for task in job.all_tasks]
    return not store.owed(keys) and is_up_to_date(job.place.film, recipe_of(job))


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


def preview_of(film: Path) -> Path:
    """Where what exists so far of a film can be watched."""
    return film.with_suffix(".partial.mp4")


def drop_preview(film: Path) -> None:
    """Remove what served until the film was complete; whatever else lies there stays."""
    with suppress(OSError):
        preview_of(film).unlink()


@dataclass
class Reel:
    """The film as far as it goes: the finished segments, and the pieces encoded from them so far."""

    job: Job
    studio: Studio
    entries: dict[str, Entry] = field(default_factory=dict)
    pieces: list[tuple[str, Path]] = field(default_factory=list)
    """Content addresses and files, in film order."""

    def __post_init__(self) -> None:
        self.waiting = list(reversed(edit_list(strips_of(self.job))))
        self.encoding = encoding_of(self.job)

    def add(self, task: Task) -> bool:
        """Make sure of one segment, then encode every piece that it completes; whether it was made now."""
        parent = self.entries[task.parent] if task.parent else None
        ensured = ensure(task, parent, self.job.place.board, self.studio)
        self.entries[task.key] = ensured.entry
        while self.waiting and self.waiting[-1].keys <= self.entries.keys():
            self._encode(self.waiting.pop())
        return ensured.fresh

    def refresh_preview(self) -> None:
        """Put what exists so far beside the film's place, watchable, under another name.

        It is a courtesy: where it cannot be written, the work goes on.
        """
        board, preview = self.job.place.board, preview_of(self.job.place.film)
        if not self.pieces:
            return
        try:
            frames = self._join(preview)
        except RenderError as error:
            self.studio.report(Warned(f"{board}: nothing to watch yet: {error}"))
        else:
            self.studio.report(PreviewDone(board, preview, frames))

    def finish(self) -> None:
        """Put the complete film in place, then its record; the preview has served."""
        film = self.job.place.film
        frames = self._join(film)
        assert frames == self.job.plan.frames, "the edit list holds every frame of the plan"
        write_record(self.job, recipe_of(self.job))
        _keep(self.job, [key for key, _ in self.pieces], self.studio)
        drop_preview(film)

    def _encode(self, piece: Piece) -> None:
        """Add the piece's file, encoded once for the same frames: it is addressed by their content."""

        def content(spans: tuple[Span, ...]) -> tuple[Span, ...]:
            return tuple(replace(span, key=self.entries[span.key].frames_sha256) for span in spans)

        by_content = Piece(content(piece.spans), content(piece.under))
        inputs = piece_inputs(by_content, self.encoding)

        def build(target: Path) -> None:
            encode_piece(piece, self._open, self.encoding, target, lambda _done, _all: None)

        key = key_of(inputs)
        self.pieces.append((key, self.studio.store.make_piece(key, build, inputs)))

    def _join(self, target: Path) -> int:
        files = [file for _, file in self.pieces]
        return join(files, self.encoding, target, metadata_of(self.job))

    def _open(self, key: str) -> Frames:
        return self.entries[key].frames()


def strips_of(job: Job) -> tuple[Strip, ...]:
    """Every clip's frames after the drop, and the fade that joins it to the one before."""
    return tuple(
        Strip(
            clip=shot.id,
            spans=tuple(Span(task.key, task.segment.overlap, task.segment.frames) for task in tasks),
            fade=shot.fade,
        )
        for shot, tasks in zip(job.plan.shots, job.tasks, strict=True)
    )


def encoding_of(job: Job) -> Encoding:
    """How the film's pieces are encoded."""
    plan = job.plan
    return Encoding(plan.size.width, plan.size.height, plan.cut.fps, plan.cut.crf)


def metadata_of(job: Job) -> dict[str, str]:
    """What the film's file tells about itself."""
    about = {
        "tool": f"svi-story {__version__}",
        "storyboard": job.place.board.name,
        "storyboard_sha256": job.plan.digest,
        "engine": job.plan.engine,
    }
    return {"title": job.plan.title, "comment": json.dumps(about, ensure_ascii=False)}


def recipe_of(job: Job) -> str:
    """One hash of everything that decides the film's bytes."""
    encoding = encoding_of(job)
    pieces: list[Json] = [dict(piece_inputs(piece, encoding)) for piece in edit_list(strips_of(job))]
    return key_of({"pieces": pieces, "metadata": {**metadata_of(job)}})


def _report_film(job: Job, studio: Studio, *, made: bool) -> None:
    plan = job.plan
    studio.report(FilmDone(job.place.board, job.place.film, plan.frames, round(plan.seconds, 3), made))
