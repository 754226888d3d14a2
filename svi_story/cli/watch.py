"""The commands that look after a running render: stop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svi_story.cli.options import Cache, settings_here
from svi_story.cli.terminal import answer
from svi_story.errors import InputError, Problem

if TYPE_CHECKING:
    from svi_story.render.runs import RunReport, Stop


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(stop)


def stop(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", help="Which run, as `status` names it. Default: the only one.")
    ] = "",
    now: Annotated[
        bool, typer.Option("--now", help="At once, as ^C does; without it after the current clip.")
    ] = False,
    cache: Cache = None,
) -> None:
    """Stop a running render. What is rendered is kept, and the same command continues it.

    \b
    svi-story stop             after the current clip
    svi-story stop --now       at once; sampling resumes from the last checkpoint
    """
    from svi_story.cache.layout import Layout
    from svi_story.render.runs import STOPS, request_stop

    folder = cache or settings_here().cache
    report = _running(run, folder)
    kind: Stop = "now" if now else "clip"
    request_stop(Layout(folder).runs / report.run, kind)
    answer(f"run {report.run} stops {STOPS[kind]}")


def _running(run: str, cache: Path) -> RunReport:
    """The run that is meant. Raises InputError where there is not exactly one."""
    from svi_story.render.runs import read_runs

    found = [each for each in read_runs(cache) if each.state in ("running", "hanging")]
    chosen = [each for each in found if each.run.startswith(run)]
    if len(chosen) == 1:
        return chosen[0]
    if not found:
        what = "no render is running that uses this cache; name its cache with --cache"
    elif not chosen:
        what = f"no running render is called {run}; running are {', '.join(each.run for each in found)}"
    else:
        what = (
            f"{len(chosen)} renders are running; name one of them: {', '.join(each.run for each in chosen)}"
        )
    raise InputError(Problem(what, file=str(cache)))
