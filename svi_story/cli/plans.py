"""A plan, and how far it is, for people and for scripts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from svi_story.cli.terminal import shorten, table
from svi_story.engines import memory_of
from svi_story.engines.svi.memory import as_numbers, gib
from svi_story.plan.why import what_changed
from svi_story.render.recipe import is_finished, recipe_of
from svi_story.render.record import is_up_to_date, planned_film, read_record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svi_story.cache.store import Store
    from svi_story.engines.svi.memory import Need
    from svi_story.plan.keys import Task
    from svi_story.plan.model import Lint, Segment, Shot
    from svi_story.render.jobs import Job
    from svi_story.render.record import Record

TITLES = ("#", "clip", "seconds", "frames", "asked", "passes", "seed", "state", "prompt")


def as_json(job: Job, store: Store, *, why: bool) -> dict[str, Any]:
    """One board of `plan --json`."""
    plan = job.plan
    board = {
        "board": str(job.place.board),
        "film": str(job.place.film),
        "frames": plan.frames,
        "seconds": plan.seconds,
        "fps": str(plan.cut.fps),
        "width": plan.size.width,
        "height": plan.size.height,
        "memory": {rung: dict(as_numbers(need)) for rung, need in _needs(job).items()},
        "warnings": [_warning(lint) for lint in plan.lints],
        "clips": [_clip(shot, tasks, store) for shot, tasks in _with_tasks(job)],
    }
    return {**board, "why": list(reasons(job))} if why else board


def _warning(lint: Lint) -> dict[str, Any]:
    problem = lint.problem
    return {"name": lint.name, "message": problem.what, "line": problem.line, "path": problem.path}


def _clip(shot: Shot, tasks: tuple[Task, ...], store: Store) -> dict[str, Any]:
    if tasks:
        segments = [
            {
                "key": task.key,
                **_counts(task.segment),
                "state": store.state(task.key),
                "path": str(store.folder(task.key)),
            }
            for task in tasks
        ]
    else:
        segments = [{"key": None, **_counts(part), "state": None, "path": None} for part in shot.segments]
    return {
        "id": shot.id,
        "prompt": shot.prompt,
        "seed": shot.seed,
        "asked_frames": shot.asked_frames,
        "fade": shot.fade,
        "segments": segments,
    }


def _counts(segment: Segment) -> dict[str, int]:
    return {"frames": segment.frames, "contributes": segment.contributes, "seed": segment.seed}


def _with_tasks(job: Job) -> list[tuple[Shot, tuple[Task, ...]]]:
    return list(zip(job.plan.shots, job.tasks or ((),) * len(job.plan.shots), strict=True))


def as_text(job: Job, store: Store, *, why: bool) -> str:
    """One board of `plan`, for a person."""
    plan = job.plan
    head = (
        f"{job.place.board} -> {job.place.film}\n{plan.frames} frames, {plan.seconds:.2f} s "
        f"at {plan.cut.fps} fps, {plan.size}, {_settings(job)}"
    )
    rows = (_row(number, *pair, job, store) for number, pair in enumerate(_with_tasks(job), 1))
    told = ["", *reasons(job)] if why else []
    memory = [_memory(rung, need) for rung, need in _needs(job).items()]
    return "\n".join([head, *memory, "", table(TITLES, rows), *told, ""])


def _needs(job: Job) -> Mapping[str, Need]:
    """What each memory rung needs for the largest segment; empty where there are no weights to count."""
    segments = [segment for shot in job.plan.shots for segment in shot.segments]
    return memory_of(job.plan.engine, job.options, segments)


def _memory(rung: str, need: Need) -> str:
    """A rung's needs in a line; computed, as no GPU was asked."""
    return (
        f"--memory {rung}: about {gib(need.gpu)} on the GPU (sampling {gib(need.sampling.total)}, decoding "
        f"{gib(need.decoding.total)}), {_ram(need)} of RAM"
    )


def _ram(need: Need) -> str:
    least, kept = gib(need.ram), gib(need.ram_kept)
    return least if least == kept else f"{least} (better {kept})"


def _settings(job: Job) -> str:
    sampler = job.plan.shots[0].segments[0].sampler
    guidance = f"{sampler.guidance.high:g}"
    if sampler.guidance.high != sampler.guidance.low:
        guidance = f"{sampler.guidance.high:g}/{sampler.guidance.low:g}"
    if job.plan.engine != "svi":
        return f"engine {job.plan.engine}"
    return (
        f"engine svi {sampler.variant}: {sampler.steps} steps, guidance {guidance}, shift {sampler.shift:g}, "
        f"boundary {sampler.boundary:g}"
    )


def _row(number: int, shot: Shot, tasks: tuple[Task, ...], job: Job, store: Store) -> tuple[str, ...]:
    states = Counter(store.state(task.key) for task in tasks)
    state = next(iter(states), "") if len(states) < 2 else f"{states['cached']}/{len(tasks)} cached"
    return (
        str(number),
        f"{shot.id} {_mark(number, shot)}".rstrip(),
        f"{float(shot.frames / job.plan.fps):.2f}",
        str(shot.frames),
        str(shot.asked_frames),
        "+".join(str(segment.frames) for segment in shot.segments),
        str(shot.seed),
        state or "-",
        shorten(shot.prompt, 100),
    )


def _mark(number: int, shot: Shot) -> str:
    """How a clip that does not go on from the one before is joined to it."""
    if number == 1 or not shot.starts_chain:
        return ""
    if shot.dip:
        return f"(dip {shot.dip})"
    return f"(fade {shot.fade})" if shot.fade else "(cut)"


def reasons(job: Job) -> tuple[str, ...]:
    """What changed since the last film, in words."""
    if job.lacks:
        return (f"cannot tell: {job.lacks}",)
    record = read_record(job.place.film)
    if record is None and job.place.film.exists():
        return ("there is a film, but what made it is not recorded: everything is compared as new",)
    if record is None:
        return ("no film has been made yet: everything is new",)
    if record.bundle != job.place.origin:
        return (*what_changed(record.made, planned_film(job)), _other_origin(job, record))
    return what_changed(record.made, planned_film(job)) or (_beside_the_board(job, record),)


def _other_origin(job: Job, record: Record) -> str:
    """What is to be said of a film whose segments came from elsewhere than this one's would."""
    made = "segments that a bundle brought" if record.bundle else "segments that this bundle did not bring"
    own = "those that this bundle brings" if job.place.origin else "this cache's own"
    return f"the film that is there is made of {made}; it is cut again from {own}"


def _beside_the_board(job: Job, record: Record) -> str:
    """What is to be said of a film whose board is what it was."""
    recipe = recipe_of(job)
    if is_up_to_date(job.place.film, recipe):
        return "nothing changed since the last film"
    if record.recipe == recipe:
        if job.place.film.exists():
            return "the film's file is not as it was made; move it away, to have it cut again"
        return "the film's file is missing; it is cut again, no frame is made"
    return "no frame changed since the last film; it is cut again"


def status_of(job: Job, store: Store) -> dict[str, Any]:
    """How far a board's film is: `up to date`, `outdated` or `missing`, and its segments by state."""
    states = Counter(store.state(task.key) for tasks in job.tasks for task in tasks)
    if job.tasks and is_finished(job, store):
        film = "up to date"
    else:
        film = "outdated" if job.place.film.exists() else "missing"
    return {
        "board": str(job.place.board),
        "film": str(job.place.film),
        "state": film,
        "cached": states["cached"] if job.tasks else None,
        "partial": states["partial"] if job.tasks else None,
        "to_render": states["to-render"] if job.tasks else None,
    }
