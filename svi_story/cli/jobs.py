"""Shared by all commands that take boards: from paths to jobs, reporting problems, the exit code."""

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
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.plan.model import Lint
    from svi_story.render.jobs import Job, Rejected

MOST_OF_A_KIND = 5
"""Warnings of one kind; the others are counted."""


def prepare_job(board: Path, options: BoardOptions, *, every_take: bool = False) -> tuple[Job, Fingerprints]:
    """The one board that a path names, planned, with keys; what was rejected beside it is reported.

    With `every_take` it has the takes that were ever requested, besides its own. Raises InputError where
    there is not exactly one board.
    """
    from svi_story.api import prepare_jobs
    from svi_story.cli.console import warn
    from svi_story.errors import InputError, Problem
    from svi_story.render.takes import requested_takes

    jobs, rejected, fingerprints = prepare_jobs([board], options.given(), warn)
    problems = [problem for each in rejected for problem in each.error.problems]
    if len(jobs) > 1:
        names = [str(job.place.board) for job in jobs]
        listed = ", ".join(names if len(names) <= MOST_OF_A_KIND else [*names[: MOST_OF_A_KIND - 1], "..."])
        problems = [Problem(f"holds {len(jobs)} boards; name one of them: {listed}", file=str(board))]
    if len(jobs) != 1:
        raise InputError(*problems)
    complain(*map(str, problems))
    if every_take and (numbers := requested_takes(jobs[0], store_of(jobs[0]))):
        jobs, *_ = prepare_jobs([board], options.given(), lambda _event: None, lambda _board: numbers)
    return jobs[0], fingerprints


def report_jobs(jobs: Sequence[Job], rejected: Sequence[Rejected]) -> None:
    """Print why boards cannot be planned, and why cache keys cannot be computed."""
    report_problems(each.error for each in rejected)
    for job in jobs:
        for problem in job.missing.problems if job.missing else ():
            complain(f"{job.place.board}: cannot compute the cache keys: {problem}")


def store_of(job: Job) -> Store:
    """The store that a job's segments are kept in; its warnings go to standard error."""
    from svi_story.cli.console import warn

    return job.place.store(warn)


def report_problems(errors: Iterable[StoryError]) -> None:
    """Print every problem of every error, a line each."""
    for error in errors:
        complain(*map(str, error.problems))


def report_lints(lints: Sequence[Lint]) -> None:
    """Print warnings: the first few of each kind, and the number of the others."""
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
