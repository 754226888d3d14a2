"""The command that makes films: render."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from svi_story.cli.options import (
    MOST_TAKES,
    BoardOptions,
    Paths,
    RayAddress,
    WithAddress,
    Workers,
    with_board_options,
)
from svi_story.cli.terminal import (
    LEFT,
    Interrupted,
    Stopped,
    answer,
    complain,
    drop_output,
    give_up_output,
    log_bug,
    shorten,
    table,
)
from svi_story.commands import PROGRAM, command_to_resume
from svi_story.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from svi_story.render.runner import Outcome


Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="CLIP",
        help="Render this clip and what it continues from, and write a film of each of its takes: an id, "
        "a number, or a range such as 2-4.",
    ),
]
Takes = Annotated[
    int | None,
    typer.Option(
        "--takes",
        metavar="N",
        min=1,
        max=MOST_TAKES,
        help="Render N takes of the clips of --only, or of every clip, whatever the board says.",
        show_default=False,
    ),
]
PreviewEvery = Annotated[
    int,
    typer.Option(
        "--preview-every",
        metavar="N",
        min=0,
        help="Steps between two updates of the live preview; 0: no preview.",
    ),
]
OnDone = Annotated[
    str,
    typer.Option(
        "--on-done",
        metavar="CMD",
        help="Run this shell command at the end; SVI_STORY_RUN_OUTCOME says how the run ended.",
        show_default=False,
    ),
]

RETRIES = 2
OUTCOME = "SVI_STORY_RUN_OUTCOME"
"""For `--on-done`: `done`, `failed`, `stopped` or `interrupted`."""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(cls=WithAddress)(render)


@with_board_options
def render(
    paths: Paths,
    options: BoardOptions,
    only: Only = None,
    takes: Takes = None,
    draft: Annotated[
        bool,
        typer.Option("--draft", help="A quick draft beside the film: preset draft, at half the size."),
    ] = False,
    force: Annotated[
        list[str] | None,
        typer.Option("--force", metavar="CLIP|all", help="Render these clips again, although cached."),
    ] = None,
    retries: Annotated[
        int,
        typer.Option("--retries", min=0, max=10, metavar="N", help="Retries after transient failures."),
    ] = RETRIES,
    ray: RayAddress = "",
    workers: Workers = 0,
    preview_every: PreviewEvery = 5,
    on_done: OnDone = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON, one per line.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show more of the work.")] = False,
) -> None:
    """Render films.

    Finished segments are taken from the cache, and interrupted ones are resumed.

    \b
    svi-story render board.yaml
    svi-story render board.yaml --engine animatic
    svi-story render boards/ -o films
    svi-story render boards/ --ray             on all GPUs of this machine
    svi-story render board.yaml --only window --force window
    svi-story render board.yaml --only window --takes 3
    svi-story render board.yaml --draft        renders/board.draft.mp4
    """
    from svi_story import api
    from svi_story.cli.console import reporter
    from svi_story.render.runs import StopRequested

    given = options.given()
    if workers:
        given["workers"] = workers
    if workers and not ray:
        raise typer.BadParameter("is for --ray", param_hint="--workers")
    if takes and draft:
        raise typer.BadParameter("does not go with --draft, which makes one take", param_hint="--takes")
    command = [PROGRAM, *sys.argv[1:]]
    with _then_run(on_done) as about:
        try:
            with reporter(as_json=as_json, quiet=quiet, verbose=verbose) as report:
                outcomes = api.render(
                    *paths,
                    only=only or (),
                    takes=takes or 0,
                    draft=draft,
                    force=force or (),
                    retries=retries,
                    ray=ray,
                    preview_every=preview_every,
                    command=command,
                    report=report,
                    **given,
                )
        except KeyboardInterrupt as error:
            again = command_to_resume(command)
            raise (Stopped if isinstance(error, StopRequested) else Interrupted)(again) from None
        films = [film for outcome in outcomes for film in outcome.films]
        about.update(_environment_of(outcomes, films))
        raise typer.Exit(_finish(outcomes, [] if as_json else films, quiet=quiet))


@contextmanager
def _then_run(command: str) -> Iterator[dict[str, str]]:
    """Runs a shell command at the end, however it ends, with what is put into the mapping as environment."""
    about, start = {OUTCOME: "failed"}, time.monotonic()
    try:
        yield about
    except Interrupted as error:
        about[OUTCOME] = "stopped" if isinstance(error, Stopped) else "interrupted"
        raise
    finally:
        if command:
            sys.stdout.flush()
            environment = {**os.environ, **about, "SVI_STORY_RUN_SECONDS": f"{time.monotonic() - start:.0f}"}
            # its output is not our data, so it goes to standard error
            code = subprocess.run(command, shell=True, env=environment, stdout=2, check=False).returncode  # noqa: S602
            if code:
                complain(f"--on-done {command}: ended with exit code {code}")


def _environment_of(outcomes: Sequence[Outcome], films: Sequence[Path]) -> dict[str, str]:
    """What `--on-done` learns about the boards."""
    endings = [outcome.ending for outcome in outcomes]
    failed = endings.count("failed") + endings.count("bug")
    return {
        OUTCOME: "done" if set(endings) <= {"done"} else "failed",
        "SVI_STORY_RUN_DONE": str(endings.count("done")),
        "SVI_STORY_RUN_FAILED": str(failed),
        "SVI_STORY_RUN_REFUSED": str(endings.count("refused")),
        "SVI_STORY_RUN_FILMS": "\n".join(str(film.absolute()) for film in films),
    }


def _finish(outcomes: Sequence[Outcome], films: Sequence[Path], *, quiet: bool) -> ExitCode:
    """Print the films, and how every board ended; the exit code."""
    printed = _print_films(films)
    if len(outcomes) > 1 and not quiet:
        rows = (
            (str(each.board), each.ending, shorten(each.message.removeprefix(f"{each.board}: "), 100))
            for each in outcomes
        )
        complain(*table(("board", "ended", ""), rows))
    return _exit_code(outcomes) or (ExitCode.DONE if printed else ExitCode.FAILED)


def _print_films(films: Sequence[Path]) -> bool:
    """Print the films' paths; False if standard output fails, as on a full disk.

    A closed pipe is no failure: `render ... | head` has rendered its films.
    """
    try:
        for film in films:
            answer(str(film))
        sys.stdout.flush()
    except OSError as error:
        if error.errno in LEFT:
            drop_output()
            return True
        give_up_output(error)
        return False
    return True


def _exit_code(outcomes: Sequence[Outcome]) -> ExitCode:
    bugs = [outcome for outcome in outcomes if outcome.ending == "bug"]
    for bug in bugs:
        complain(f"{bug.board}: a bug in svi-story; please report it with this log: {log_bug(bug.message)}")
    if bugs:
        return ExitCode.BUG
    endings = {outcome.ending for outcome in outcomes}
    if endings == {"refused"}:
        return ExitCode.NOT_STARTED
    return ExitCode.DONE if endings == {"done"} else ExitCode.FAILED
