"""The Python interface: what `validate`, `plan`, `status` and `render` do, as functions that return values.

    from svi_story.api import render

    for board in render("storyboards", engine="animatic"):
        print(*board.films or [board.message])

Paths are boards, bundles or folders of boards. Where one board cannot be used the others go on; InputError is
raised for what concerns all of them, such as settings. `report` is called with every event
(`svi_story.events`). Nothing is printed.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from svi_story.errors import InputError, Problem, StoryError
from svi_story.render.cost import Cost, costs_of
from svi_story.render.jobs import (
    Job,
    Place,
    Rejected,
    find_places,
    fingerprints_for,
    notices,
    prepare,
    resolve,
    select,
)
from svi_story.render.runner import PREVIEW_EVERY, Outcome, RenderRequest, render_boards
from svi_story.render.runs import run_log
from svi_story.render.summary import (
    PlanSummary,
    StatesSummary,
    runs_of,
    schedule_of,
    status_of,
    summarise,
)
from svi_story.render.takes import TakesSummary, requested_takes, takes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from svi_story.events import Event, Reporter
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.plan.model import FilmPlan
    from svi_story.render.jobs import NumbersOfTakes
    from svi_story.storyboard.source import BoardFile

__all__ = [
    "CheckedBoard",
    "InputError",
    "Options",
    "Outcome",
    "Plan",
    "Status",
    "StoryError",
    "plan",
    "prepare_jobs",
    "render",
    "status",
    "takes",
    "validate",
]

WORTH_SAVING = 2**26
"""Bytes that were hashed: only then a function that else writes nothing keeps the hashes for the next one."""


class Options(TypedDict, total=False):
    """Keyword arguments of every function; README describes them. What is missing comes from settings."""

    output: str | Path
    cache: str | Path
    engine: str
    models: Sequence[str | Path]
    memory: str
    attention: str
    compile: bool
    workers: int
    weights: str
    dtype: str
    vae: str


@dataclass(frozen=True)
class CheckedBoard:
    """A board that was validated."""

    board: Path
    problems: tuple[Problem, ...]
    """Empty where it can be rendered."""
    place: Place | None = None
    plan: FilmPlan | None = None
    """What would be rendered, with warnings (`lints`); None where there are problems."""


@dataclass(frozen=True)
class Plan:
    """What would be rendered."""

    summary: PlanSummary
    """What `plan --json` prints."""
    jobs: tuple[Job, ...]
    """Of the same boards."""
    costs: tuple[Cost, ...]
    """By engine."""
    rejected: tuple[Rejected, ...]
    """Boards that cannot be planned, and why."""


@dataclass(frozen=True)
class Status:
    """How far every film is."""

    summary: StatesSummary
    """What `status --json` prints."""
    jobs: tuple[Job, ...]
    rejected: tuple[Rejected, ...]


def _ignore(_event: Event) -> None:
    pass


def validate(
    *paths: str | Path, report: Reporter = _ignore, **options: Unpack[Options]
) -> tuple[CheckedBoard, ...]:
    """Check boards, their images, sounds and timing. Needs no engine and no weights."""
    settings, _ = _split(options)
    places = find_places([Path(path) for path in paths], settings, report)
    plans, rejected = resolve(places, fingerprints_for(places, report))
    checked = [CheckedBoard(each.board, each.error.problems) for each in rejected]
    return (*checked, *(CheckedBoard(place.board, (), place, plan) for place, plan in plans))


def plan(
    *paths: str | Path, why: bool = False, report: Reporter = _ignore, **options: Unpack[Options]
) -> Plan:
    """What would be rendered, what is cached, and with `why` what changed since the last film."""
    jobs, rejected, _ = prepare_jobs([Path(path) for path in paths], options, report)
    costs = costs_of(jobs, lambda job: job.place.store(report))
    boards = tuple(summarise(job, job.place.store(report), why=why) for job in jobs)
    summary = PlanSummary(boards=boards, schedule=schedule_of(costs))
    return Plan(summary, tuple(jobs), tuple(costs), tuple(rejected))


def status(*paths: str | Path, report: Reporter = _ignore, **options: Unpack[Options]) -> Status:
    """How far every film is, and which renders are running that use its cache."""
    jobs, rejected, _ = prepare_jobs([Path(path) for path in paths], options, report)
    states = tuple(status_of(job, job.place.store(report)) for job in jobs)
    caches = dict.fromkeys(job.place.settings.cache for job in jobs)
    return Status(StatesSummary(boards=states, runs=runs_of(caches)), tuple(jobs), tuple(rejected))


def takes(
    board: str | Path, *clips: str, report: Reporter = _ignore, **options: Unpack[Options]
) -> TakesSummary:
    """The takes of one board's clips, or of some: those of the board, and those that were ever requested.

    Raises InputError where the board cannot be planned, or has no such clip.
    """
    paths = [Path(board)]
    jobs, rejected, _ = prepare_jobs(paths, options, report)
    problems = [problem for each in rejected for problem in each.error.problems]
    if len(jobs) > 1:
        problems = [Problem(f"holds {len(jobs)} boards; name one of them", file=str(board))]
    if len(jobs) != 1:
        raise InputError(*problems)
    (job,) = jobs
    store = job.place.store(report)
    if numbers := requested_takes(job, store):
        (job,), _, _ = prepare_jobs(paths, options, _ignore, lambda _board: numbers)
    return takes_of(job, store, clips)


def render(  # noqa: PLR0913 - every one is an option of the command
    *paths: str | Path,
    only: Sequence[str] = (),
    takes: int = 0,
    draft: bool = False,
    force: Sequence[str] = (),
    retries: int = 2,
    ray: str = "",
    preview_every: int = PREVIEW_EVERY,
    command: Sequence[str] = (),
    report: Reporter = _ignore,
    **options: Unpack[Options],
) -> list[Outcome]:
    """Render films; how each board ended.

    `only` are clips to render, with those that they continue from, as films of their own instead of the whole
    film; `takes` is how many takes to make of them, or of all clips, 0 for as many as the board says; `draft`
    renders one take of a quick draft beside the film; `force` are clips to render again, or `all`. `ray` is
    the address of a Ray cluster, or `local` for all GPUs of this machine. `preview_every` is the number of
    steps between two live previews, 0 for none. `command` is noted in the run log.
    """
    request = RenderRequest(tuple(only), tuple(force), retries, preview_every)
    settings, engine_options = _split(options)
    places = find_places([Path(path) for path in paths], settings, report)
    settings_of = [place.settings for place in places if isinstance(place, Place)]
    caches = dict.fromkeys(each.cache for each in settings_of)
    workers = settings_of[0].workers if settings_of else 0
    with run_log(caches, report, command) as log, _cluster(ray, workers) as cluster:
        fingerprints = fingerprints_for(places, log)
        numbers = partial(_numbers_of_takes, only=only, takes=takes) if takes else None
        jobs, rejected = prepare(places, fingerprints, engine_options, draft=draft, takes=numbers)
        for event in notices(jobs):
            log(event)
        return render_boards(jobs, rejected, request, fingerprints, log, cluster)


def _numbers_of_takes(board: BoardFile, only: Sequence[str], takes: int) -> dict[int, int]:
    return dict.fromkeys(select(board.ids, only or board.ids, board.path), takes)


def prepare_jobs(
    paths: Sequence[Path], options: Options, report: Reporter, takes: NumbersOfTakes | None = None
) -> tuple[list[Job], list[Rejected], Fingerprints]:
    """Every board, planned, with its cache keys; those that cannot be; and the hashes of their files."""
    settings, engine_options = _split(options)
    places = find_places(paths, settings, report)
    fingerprints = fingerprints_for(places, report)
    jobs, rejected = prepare(places, fingerprints, engine_options, takes=takes)
    for event in notices(jobs):
        report(event)
    fingerprints.save(WORTH_SAVING)
    return jobs, rejected, fingerprints


ENGINE_OPTIONS = {"dtype": ("bfloat16", "float32"), "vae": ("whole", "strips", "tiles")}
"""Options that are no settings, because frames depend on them, with their values."""


def _split(options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of the options that are settings, and those of the engine. Raises InputError."""
    paths = ("output", "cache")
    given = {name: value for name, value in options.items() if value or value is False}
    for name, values in ENGINE_OPTIONS.items():
        if given.get(name, values[0]) not in values:
            raise InputError(Problem(f"{given[name]!r} is none of {', '.join(values)}", path=name))
    settings = {
        name: Path(str(value)) if name in paths else value
        for name, value in given.items()
        if name not in ENGINE_OPTIONS
    }
    return settings, {name: given[name] for name in ENGINE_OPTIONS if name in given}


@contextmanager
def _cluster(address: str, workers: int) -> Iterator[Any]:
    """The Ray cluster at an address; None without one: then this process renders."""
    if not address:
        yield None
        return
    from svi_story.render.distributed.executor import Cluster

    with Cluster(address, workers) as cluster:
        yield cluster
