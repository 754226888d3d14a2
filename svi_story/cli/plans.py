"""A plan, and how far it is, for people and for scripts."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from svi_story.cache.layout import Layout
from svi_story.cli.terminal import shorten, table
from svi_story.engines import implementation_of
from svi_story.enginespec import spec_of
from svi_story.plan.description import describe_film
from svi_story.plan.diff import what_changed
from svi_story.render.record import is_finished, is_up_to_date, read_record, recipe_of
from svi_story.units import gib

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from svi_story.cache.store import Store
    from svi_story.engines import MemoryNeed
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
        "memory": {rung: asdict(need) for rung, need in _needs(job).items()},
        "warnings": [_warning(lint) for lint in plan.lints],
        "clips": [_clip(shot, store) for shot in plan.shots],
    }
    return {**board, "why": list(reasons(job))} if why else board


def _warning(lint: Lint) -> dict[str, Any]:
    problem = lint.problem
    return {"name": lint.name, "message": problem.what, "line": problem.line, "path": problem.path}


def _clip(shot: Shot, store: Store) -> dict[str, Any]:
    return {
        "id": shot.id,
        "prompt": shot.prompt,
        "seed": shot.seed,
        "asked_frames": shot.asked_frames,
        "fade": shot.fade,
        "segments": [_segment(segment, store) for segment in shot.segments],
    }


def _segment(segment: Segment, store: Store) -> dict[str, Any]:
    return {
        "key": segment.key or None,
        "frames": segment.frames,
        "contributes": segment.contributes,
        "seed": segment.seed,
        "state": store.state(segment.key) if segment.key else None,
        "path": str(store.folder(segment.key)) if segment.key else None,
    }


def as_lines(job: Job, store: Store, *, why: bool) -> list[str]:
    """One board of `plan`, for a person."""
    plan = job.plan
    head = (
        f"{job.place.board} -> {job.place.film}",
        f"{plan.frames} frames, {plan.seconds:.2f} s at {plan.cut.fps} fps, {plan.size}, {_settings(job)}",
    )
    rows = (_row(number, shot, job, store) for number, shot in enumerate(plan.shots, 1))
    told = ["", *reasons(job)] if why else []
    memory = [_memory(rung, need) for rung, need in _needs(job).items()]
    return [*head, *memory, "", *table(TITLES, rows), *told, ""]


def _needs(job: Job) -> Mapping[str, MemoryNeed]:
    """What each memory rung needs for the largest segment; empty where there are no weights to count."""
    return implementation_of(job.plan.engine).memory_needs(job.options, job.segments)


def _memory(rung: str, need: MemoryNeed) -> str:
    """A rung's needs in a line; computed, as no GPU was asked."""
    return (
        f"--memory {rung}: about {gib(need.gpu_bytes)} on the GPU (sampling {gib(need.gpu_sampling_bytes)}, "
        f"decoding {gib(need.gpu_decoding_bytes)}), {_ram(need)} of RAM"
    )


def _ram(need: MemoryNeed) -> str:
    least, kept = gib(need.ram_bytes), gib(need.ram_kept_bytes)
    return least if least == kept else f"{least} (better {kept})"


def _settings(job: Job) -> str:
    """The engine and what steers it."""
    shown = spec_of(job.plan.engine).describe(job.segments[0].options)
    told = ", ".join(f"{name} {value}" for name, value in shown.items())
    return f"engine {job.plan.engine}: {told}" if told else f"engine {job.plan.engine}"


def _row(number: int, shot: Shot, job: Job, store: Store) -> tuple[str, ...]:
    states = Counter(store.state(segment.key) for segment in shot.segments if segment.key)
    state = next(iter(states), "") if len(states) < 2 else f"{states['cached']}/{len(shot.segments)} cached"
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
    if job.missing:
        return (f"cannot tell: {job.missing}",)
    record = read_record(job.place.film)
    if record is None and _is_there(job.place.film):
        return ("there is a film, but what made it is not recorded: everything is compared as new",)
    if record is None:
        return ("no film has been made yet: everything is new",)
    origin = Layout(job.place.cache).origin
    if record.bundle != origin:
        return (*what_changed(record.made, describe_film(job.plan)), _other_origin(origin, record))
    return what_changed(record.made, describe_film(job.plan)) or (_beside_the_board(job, record),)


def _other_origin(origin: str | None, record: Record) -> str:
    """What is to be said of a film whose segments came from elsewhere than this one's would."""
    made = "segments that a bundle brought" if record.bundle else "segments that this bundle did not bring"
    own = "those that this bundle brings" if origin else "this cache's own"
    return f"the film that is there is made of {made}; it is cut again from {own}"


def _beside_the_board(job: Job, record: Record) -> str:
    """What is to be said of a film whose board is what it was."""
    recipe = recipe_of(job)
    if is_up_to_date(job.place.film, recipe):
        return "nothing changed since the last film"
    if record.recipe == recipe:
        if job.place.film.exists():
            return "the film's file is not as it was made; move it away, to have it cut again"
        return "the film's file is missing; it is cut again, no frame is rendered"
    return "no frame changed since the last film; it is cut again"


def _is_there(film: Path) -> bool:
    return os.path.exists(film)  # noqa: PTH110 - Path.exists raises where a folder above is closed


def status_of(job: Job, store: Store) -> dict[str, Any]:
    """How far a board's film is: `up to date`, `outdated` or `missing`, and its segments by state."""
    states = None if job.missing else Counter(store.state(segment.key) for segment in job.segments)
    if states and is_finished(job, store):
        film = "up to date"
    else:
        film = "outdated" if _is_there(job.place.film) else "missing"
    return {
        "board": str(job.place.board),
        "film": str(job.place.film),
        "state": film,
        "cached": states["cached"] if states else None,
        "partial": states["partial"] if states else None,
        "to_render": states["to-render"] if states else None,
    }
