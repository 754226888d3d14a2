"""Boards as `plan` and `status` report them: what would be rendered, what is cached, and what changed."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from svi_story.cache.layout import Layout
from svi_story.engines import MemoryNeed, implementation_of
from svi_story.fields import JsonModel
from svi_story.plan.diff import describe_film, what_changed
from svi_story.render.record import is_finished, is_up_to_date, read_record, recipe_of
from svi_story.render.runs import RunState, read_runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from svi_story.cache.store import Store
    from svi_story.plan.model import Lint, Segment, Shot
    from svi_story.render.cost import Cost
    from svi_story.render.jobs import Job
    from svi_story.render.record import Record


class WarningSummary(JsonModel):
    """A warning."""

    name: str = Field(description="what a board ignores it by")
    message: str
    line: int = Field(description="from 1; 0 where nothing is written")
    path: str = Field(description="as `clips[3].prompt`")


class SegmentSummary(JsonModel):
    """A segment. `key`, `state` and `path` are null where the key cannot be computed."""

    key: str | None
    frames: int = Field(description="what the model renders")
    contributes: int = Field(description="what reaches the film")
    seed: int
    state: Literal["cached", "partial", "to-render"] | None
    path: str | None = Field(description="the entry's folder")


class TakeSummary(JsonModel):
    """A take of a clip that the film does not use; it is rendered after the film."""

    number: int = Field(description="from 1")
    seed: int
    segments: tuple[SegmentSummary, ...] = Field(description="with the same fields as the clip's")


class ClipSummary(JsonModel):
    """A clip."""

    id: str
    prompt: str = Field(description="joined with the style")
    seed: int
    asked_frames: int = Field(description="what the author asked for")
    fade: int = Field(description="frames shared with the clip before")
    segments: tuple[SegmentSummary, ...]
    pick: int = Field(description="the number of the take that the film uses; `seed` and `segments` are its")
    other_takes: tuple[TakeSummary, ...] = Field(description="the takes that the film does not use")


class BoardSummary(JsonModel):
    """A board of `plan --json`."""

    board: str
    film: str = Field(description="the film's path")
    frames: int = Field(description="of the film")
    seconds: float = Field(description="of the film")
    fps: str = Field(description='text: `"15"`, `"24000/1001"`')
    width: int
    height: int
    memory: dict[str, MemoryNeed] = Field(
        description="by memory mode, in bytes, for the largest segment: `gpu_bytes` (the most of any phase), "
        "`gpu_sampling_bytes`, `gpu_decoding_bytes`, `gpu_text_bytes`, `ram_bytes` (at least), "
        "`ram_kept_bytes` (better); empty where there are no weights"
    )
    warnings: tuple[WarningSummary, ...]
    clips: tuple[ClipSummary, ...]
    why: tuple[str, ...] | None = Field(None, description="sentences; only with `--why`")


class StatusSummary(JsonModel):
    """A board of `status --json`. The numbers of segments (of all takes) are null where keys are unknown."""

    board: str
    film: str = Field(description="the film's path")
    state: Literal["up to date", "outdated", "missing"]
    cached: int | None
    partial: int | None
    to_render: int | None


class MovesSummary(JsonModel):
    """What a memory mode costs."""

    expert_loads: int = Field(description="times an expert comes to the device")
    bytes_moved: int = Field(description="to the device")


class EngineSummary(JsonModel):
    """What rendering everything that is missing costs one engine."""

    engine: str
    segments: int = Field(description="to render")
    takes: int = Field(description="those of them that belong to takes which no film uses")
    waves: int = Field(description="missing segments in the longest chain")
    forwards: dict[str, int] = Field(description="forward passes, by expert")
    memory: dict[str, MovesSummary] = Field(description="by memory mode")
    seconds: int | float | None = Field(description="null as long as something is `unknown`")
    unknown: tuple[str, ...] = Field(description="what was never timed here")


class ScheduleSummary(JsonModel):
    """What rendering everything that is missing costs; shared segments are counted once."""

    segments: int
    seconds: int | float | None = Field(
        description="an estimate from what was rendered on this machine before; "
        "null as long as something is `unknown`"
    )
    unknown: tuple[str, ...] = Field(description="what was never timed here")
    engines: tuple[EngineSummary, ...]


class PlanSummary(JsonModel):
    """What `plan --json` prints."""

    boards: tuple[BoardSummary, ...] = Field(description="invalid ones are left out")
    schedule: ScheduleSummary


class RunSummary(JsonModel):
    """A run, read from its log."""

    run: str
    state: RunState = Field(
        description="`died`: its process is gone; `hanging`: it is silent for much longer than usual"
    )
    message: str = Field(description="what it is doing, or was doing when it died, and what to do about it")
    host: str
    process: int = Field(description="its process id")
    boards: tuple[str, ...] = Field(description="paths")
    silent: float = Field(description="seconds since its last event")


class StatesSummary(JsonModel):
    """What `status --json` prints."""

    boards: tuple[StatusSummary, ...] = Field(description="invalid ones are left out")
    runs: tuple[RunSummary, ...] = Field(
        description="renders that are running with the same cache, and the last one if it did not end well"
    )


def summarise(job: Job, store: Store, *, why: bool) -> BoardSummary:
    """A board's plan and the state of its segments; `why` also compares it with the last film."""
    plan = job.plan
    return BoardSummary(
        board=str(job.place.board),
        film=str(job.place.film),
        frames=plan.frames,
        seconds=plan.seconds,
        fps=str(plan.cut.fps),
        width=plan.size.width,
        height=plan.size.height,
        memory=dict(implementation_of(plan.engine).memory_needs(job.options, job.segments)),
        warnings=tuple(map(_warning, plan.lints)),
        clips=tuple(_clip(shot, store) for shot in plan.shots),
        why=reasons(job) if why else None,
    )


def _warning(lint: Lint) -> WarningSummary:
    problem = lint.problem
    return WarningSummary(name=lint.name, message=problem.what, line=problem.line, path=problem.path)


def _clip(shot: Shot, store: Store) -> ClipSummary:
    return ClipSummary(
        id=shot.id,
        prompt=shot.prompt,
        seed=shot.seed,
        asked_frames=shot.asked_frames,
        fade=shot.fade,
        segments=tuple(_segment(segment, store) for segment in shot.segments),
        pick=shot.pick,
        other_takes=tuple(
            TakeSummary(
                number=take.number,
                seed=take.seed,
                segments=tuple(_segment(segment, store) for segment in take.segments),
            )
            for take in shot.other_takes
        ),
    )


def _segment(segment: Segment, store: Store) -> SegmentSummary:
    return SegmentSummary(
        key=segment.key or None,
        frames=segment.frames,
        contributes=segment.contributes,
        seed=segment.seed,
        state=store.state(segment.key) if segment.key else None,
        path=str(store.folder(segment.key)) if segment.key else None,
    )


def schedule_of(costs: Sequence[Cost]) -> ScheduleSummary:
    """What all engines together cost."""
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    return ScheduleSummary(
        segments=sum(cost.segments for cost in costs),
        seconds=sum(known) if len(known) == len(costs) else None,
        unknown=tuple(what for cost in costs for what in cost.unknown),
        engines=tuple(
            EngineSummary(
                engine=cost.engine,
                segments=cost.segments,
                takes=cost.takes,
                waves=cost.waves,
                forwards=dict(cost.forwards),
                memory={
                    mode: MovesSummary(expert_loads=moves.loads, bytes_moved=moves.bytes)
                    for mode, moves in cost.moves.items()
                },
                seconds=cost.seconds,
                unknown=cost.unknown,
            )
            for cost in costs
        ),
    )


def runs_of(caches: Iterable[Path]) -> tuple[RunSummary, ...]:
    """The runs that are running, and the newest one of each cache if it did not end well."""
    found = {
        report.run: report  # one that renders several projects has a log in each of their caches
        for cache in caches
        for number, report in enumerate(read_runs(cache))
        if report.state in ("running", "hanging") or (number == 0 and report.state != "done")
    }
    return tuple(
        RunSummary(
            run=report.run,
            state=report.state,
            message=report.message,
            host=opened.host,
            process=opened.process,
            boards=tuple(str(opened.folder / board) for board in report.progress.boards),
            silent=round(report.silent, 1),
        )
        for report in found.values()
        if (opened := report.progress.opened)
    )


def reasons(job: Job) -> tuple[str, ...]:
    """What changed since the last film, in words."""
    if job.missing:
        return (f"cannot tell: {job.missing}",)
    record = read_record(job.place.film)
    if record is None and _is_there(job.place.film):
        return ("there is a film, but no record of what it was made from: everything counts as new",)
    if record is None:
        return ("no film has been made yet: everything is new",)
    origin = Layout(job.place.cache).origin
    if record.bundle != origin:
        return (*what_changed(record.made, describe_film(job.plan)), _other_origin(origin, record))
    return what_changed(record.made, describe_film(job.plan)) or (_beside_the_board(job, record),)


def _other_origin(origin: str | None, record: Record) -> str:
    """The explanation for a film whose segments came from another cache than this one's would."""
    made = "segments that a bundle brought" if record.bundle else "segments that this bundle did not bring"
    own = "those that this bundle brings" if origin else "this cache's own"
    return f"the existing film is made of {made}; it is assembled again from {own}"


def _beside_the_board(job: Job, record: Record) -> str:
    """The explanation for a film whose board has not changed."""
    recipe = recipe_of(job)
    if is_up_to_date(job.place.film, recipe):
        return "nothing changed since the last film"
    if record.recipe == recipe:
        if job.place.film.exists():
            return "the film's file was changed; move it away to have it assembled again"
        return "the film's file is missing; it is assembled again, no frame is rendered"
    return "no frame changed since the last film; it is assembled again"


def _is_there(film: Path) -> bool:
    return os.path.exists(film)  # noqa: PTH110 - Path.exists raises where a folder above is closed


def status_of(job: Job, store: Store) -> StatusSummary:
    """How far a board's film is."""
    states = None if job.missing else Counter(store.state(segment.key) for segment in job.every_segment)
    state: Literal["up to date", "outdated", "missing"]
    if states and is_finished(job, store):
        state = "up to date"
    else:
        state = "outdated" if _is_there(job.place.film) else "missing"
    return StatusSummary(
        board=str(job.place.board),
        film=str(job.place.film),
        state=state,
        cached=states["cached"] if states else None,
        partial=states["partial"] if states else None,
        to_render=states["to-render"] if states else None,
    )
