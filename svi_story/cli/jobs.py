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

MOST_OF_A_KIND = 5
"""Warnings of one kind; the others are counted."""


def prepare_jobs(paths: Sequence[Path], options: BoardOptions) -> tuple[list[Job], list[Rejected]]:
    """All boards, planned, with keys; what is wrong with any is reported."""
    from svi_story.cli.console import warn
    from svi_story.render.jobs import find_places, notices, prepare

    choice = options.choice()
    fingerprints = fingerprints_in(options.cache, warn)
    jobs, rejected = prepare(find_places(paths, options.output, options.cache), fingerprints, choice)
    for event in (event for job in jobs for event in notices(job)):
        warn(event)
    report_problems(each.error for each in rejected)
    fingerprints.save()
    for job in jobs:
        for problem in job.missing.problems if job.missing else ():
            complain(f"{job.place.board}: cannot compute the cache keys: {problem}")
    return jobs, rejected


def prepare_job(board: Path, options: BoardOptions, fingerprints: Fingerprints) -> Job:
    """The one board that a path names, planned, with keys. Raises InputError where there is not one."""
    from svi_story.render.jobs import prepare

    choice = options.choice()
    place = _only_place(board, options.output, options.cache)
    jobs, rejected = prepare((place,), fingerprints, choice)
    for each in rejected:
        raise each.error
    fingerprints.save()
    return jobs[0]


def _only_place(board: Path, films: Path, cache: Path) -> Place:
    """The one board that a path names; what was rejected beside it is reported. Raises InputError."""
    from svi_story.errors import InputError, Problem
    from svi_story.render.jobs import Place, find_places

    found = find_places((board,), films, cache)
    places = [each for each in found if isinstance(each, Place)]
    problems = [problem for each in found if not isinstance(each, Place) for problem in each.error.problems]
    if len(places) > 1:
        problems = [Problem(f"holds {len(places)} boards; name one of them", file=str(board))]
    if len(places) != 1:
        raise InputError(*problems)
    for problem in problems:
        complain(str(problem))
    return places[0]


def fingerprints_in(cache: Path, report: Reporter) -> Fingerprints:
    """Hashes of files, memoised in the cache's folder; computing one the first time is reported.

    Raises InputError for a folder that holds other files in the cache's places.
    """
    from svi_story.cache.layout import check_root
    from svi_story.plan.fingerprints import Fingerprints

    check_root(cache)
    return Fingerprints.load(cache / "memo.json", report)


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
