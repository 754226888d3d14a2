"""From paths and options to jobs: what every command that takes boards does first, and how it ends."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import typer

from svi_story.cli.terminal import complain
from svi_story.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from svi_story.cache.store import Store
    from svi_story.cli.options import BoardOptions
    from svi_story.errors import StoryError
    from svi_story.events import Reporter
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.plan.model import Lint
    from svi_story.render.jobs import Job, Place, Rejected

WORTH_SAVING = 2**26
"""Bytes that were hashed: only then a command that else writes nothing keeps the hashes for the next one."""
MOST_OF_A_KIND = 5
"""Warnings of one kind; the others are counted."""


def prepare_jobs(paths: Sequence[Path], options: BoardOptions) -> tuple[list[Job], list[Rejected]]:
    """All boards, planned, with keys; what is wrong with any is reported."""
    from svi_story.cli.console import warn
    from svi_story.render.jobs import find_places, notices, prepare

    asked = options.engine_options()
    places = find_places(paths, options.settings(), warn)
    fingerprints = fingerprints_for(places, warn)
    jobs, rejected = prepare(places, fingerprints, asked)
    for event in notices(jobs):
        warn(event)
    report_problems(each.error for each in rejected)
    fingerprints.save(WORTH_SAVING)
    for job in jobs:
        for problem in job.missing.problems if job.missing else ():
            complain(f"{job.place.board}: cannot compute the cache keys: {problem}")
    return jobs, rejected


def prepare_job(board: Path, options: BoardOptions) -> tuple[Job, Fingerprints]:
    """The one board that a path names, planned, with keys. Raises InputError where there is not one."""
    from svi_story.cli.console import warn
    from svi_story.render.jobs import notices, prepare

    asked = options.engine_options()
    place = _only_place(board, options)
    fingerprints = fingerprints_for([place], warn)
    jobs, rejected = prepare((place,), fingerprints, asked)
    for each in rejected:
        raise each.error
    for event in notices(jobs):
        warn(event)
    fingerprints.save()
    return jobs[0], fingerprints


def _only_place(board: Path, options: BoardOptions) -> Place:
    """The one board that a path names; what was rejected beside it is reported. Raises InputError."""
    from svi_story.cli.console import warn
    from svi_story.errors import InputError, Problem
    from svi_story.render.jobs import Place, find_places

    found = find_places((board,), options.settings(), warn)
    places = [each for each in found if isinstance(each, Place)]
    problems = [problem for each in found if not isinstance(each, Place) for problem in each.error.problems]
    if len(places) > 1:
        problems = [Problem(f"holds {len(places)} boards; name one of them", file=str(board))]
    if len(places) != 1:
        raise InputError(*problems)
    for problem in problems:
        complain(str(problem))
    return places[0]


def fingerprints_for(places: Iterable[Place | Rejected], report: Reporter) -> Fingerprints:
    """Hashes of the files of these boards, memoised; computing one the first time is reported.

    Raises InputError for a cache whose path is too long for this system.
    """
    from svi_story.cache.layout import LONGEST_PATH, check_length
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.render.jobs import Place

    found = [place for place in places if isinstance(place, Place)]
    for cache in dict.fromkeys(place.settings.cache for place in found):
        check_length(cache, LONGEST_PATH)
    caches = (path for place in found for path in (*place.fallbacks, place.settings.cache))
    return Fingerprints.of_this_machine(report, dict.fromkeys(caches))


def store_of(job: Job) -> Store:
    """The store that a job's segments are kept in; what is wrong with it is reported on standard error."""
    from svi_story.cli.console import warn

    return job.place.store(warn)


def store_in(cache: Path) -> Store:
    """The store of a cache folder; what is wrong with it is reported on standard error."""
    from svi_story.cache.store import Store
    from svi_story.cli.console import warn

    return Store(cache, warn)


def report_problems(errors: Iterable[StoryError]) -> None:
    """Every problem of every error, a line each."""
    for error in errors:
        complain(*map(str, error.problems))


def report_lints(lints: Sequence[Lint]) -> None:
    """What is known to go wrong: of each kind the first few, the rest counted."""
    seen: Counter[str] = Counter()
    for lint in lints:
        seen[lint.name] += 1
        if seen[lint.name] <= MOST_OF_A_KIND:
            complain(f"warning: {lint.problem} [{lint.name}]")
    for name, count in seen.items():
        if count > MOST_OF_A_KIND:
            complain(f"warning: and {count - MOST_OF_A_KIND} more like these [{name}]")


def exit_for(done: Sequence[object], rejected: Sequence[object]) -> None:
    """End the command with the exit code for boards of which some were rejected."""
    if rejected:
        raise typer.Exit(ExitCode.FAILED if done else ExitCode.NOT_STARTED)
