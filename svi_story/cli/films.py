"""The command that makes films: render."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from svi_story.cli.options import (
    CACHE,
    FILMS,
    MODELS,
    Cache,
    Dtype,
    Engine,
    Films,
    Memory,
    Models,
    Paths,
    chosen,
    fingerprints_in,
)
from svi_story.cli.terminal import BUG, answer, complain, log_bug, shorten, table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from svi_story.errors import InputError
    from svi_story.render.batch import Order, Outcome, Wish
    from svi_story.render.jobs import Job


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(render)


def render(
    paths: Paths,
    output: Films = FILMS,
    cache: Cache = CACHE,
    engine: Engine = "",
    models: Models = MODELS,
    dtype: Dtype = "bfloat16",
    memory: Memory = "auto",
    only: Annotated[
        str,
        typer.Option("--only", metavar="CLIP", help="Make this clip and what it continues from, no film."),
    ] = "",
    force: Annotated[
        str, typer.Option("--force", metavar="CLIP|all", help="Set these entries aside and make them again.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one event per line while it works.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="One line for everything done.")] = False,
) -> None:
    """Make the films of boards.

    What is made already is used, and what was interrupted goes on.

    \b
    svi-story render board.yaml
    svi-story render board.yaml --engine animatic
    svi-story render boards/ -o films
    svi-story render board.yaml --only window --force window
    """
    from svi_story.cache.store import Store
    from svi_story.cli.console import reporter
    from svi_story.engines import create
    from svi_story.render.batch import Wish, render_orders
    from svi_story.render.jobs import find_places, prepare

    fingerprints = fingerprints_in(cache)
    choice = chosen(engine, models, dtype, memory)
    jobs, rejected = prepare(find_places(paths, output, cache), fingerprints, choice)
    orders, refused = _orders(jobs, Wish(only, force))
    errors = [(each.board, each.error) for each in rejected] + refused
    for problem in [problem for _, error in errors for problem in error.problems]:
        complain(str(problem))
    if not orders:
        raise typer.Exit(2)
    fingerprints.save()
    outcomes: list[Outcome] = []
    try:
        with reporter(as_json=as_json, quiet=quiet, verbose=verbose) as report:
            store = Store(cache, report)
            make = partial(create, options=choice.options, digest=fingerprints.file, keep=store.embedding)
            engines = {name: make(name, report=report) for name in {each.job.plan.engine for each in orders}}
            outcomes.extend(render_orders(orders, engines, store, report))
    except KeyboardInterrupt:
        complain(f"to go on: {shlex.join(['svi-story', *sys.argv[1:]])}")
        raise
    if not as_json and not only:
        _answer_films(orders, outcomes)
    if len(orders) + len(errors) > 1 and not quiet:
        complain(_summary(outcomes, errors))
    raise typer.Exit(_exit_code(outcomes, errors))


def _orders(jobs: Sequence[Job], wish: Wish) -> tuple[list[Order], list[tuple[Path, InputError]]]:
    """The boards that can be rendered, and why the others cannot."""
    from svi_story.errors import InputError
    from svi_story.render.batch import order

    orders: list[Order] = []
    refused: list[tuple[Path, InputError]] = []
    for job in jobs:
        try:
            orders.append(order(job, wish))
        except InputError as error:
            refused.append((job.place.board, error))
    return orders, refused


def _answer_films(orders: Sequence[Order], outcomes: Sequence[Outcome]) -> None:
    done = {outcome.board for outcome in outcomes if outcome.ending == "done"}
    for item in orders:
        if item.job.place.board in done:
            answer(str(item.job.place.film))


def _summary(outcomes: Sequence[Outcome], errors: Sequence[tuple[Path, InputError]]) -> str:
    """A line for every board: how it ended, and why."""
    rows = [
        *((str(each.board), each.ending, shorten(each.message, 100)) for each in outcomes),
        *((str(board), "invalid", shorten(str(error), 100)) for board, error in errors),
    ]
    return table(("board", "ended", ""), rows)


def _exit_code(outcomes: Sequence[Outcome], errors: Sequence[tuple[Path, InputError]]) -> int:
    bugs = [outcome for outcome in outcomes if outcome.ending == "bug"]
    for bug in bugs:
        complain(f"{bug.board}: a bug in svi-story; please report it with this log: {log_bug(bug.message)}")
    if bugs:
        return BUG
    return 1 if errors or any(outcome.ending == "failed" for outcome in outcomes) else 0
