"""Commands about boards: new, import, validate, plan, status, schema."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svi_story.cli.options import (
    CACHE,
    FILMS,
    MODELS,
    AsJson,
    Cache,
    Dtype,
    Engine,
    Films,
    Memory,
    Models,
    Paths,
    Vae,
    chosen,
    fingerprints_in,
    store_of,
)
from svi_story.cli.terminal import answer, answer_json, complain, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svi_story.plan.model import Lint
    from svi_story.render.jobs import Choice, Job, Rejected

NONE_VALID, SOME_INVALID = 2, 1
MOST_OF_A_KIND = 5


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("new")(new)
    app.command("import")(import_prompts)
    app.command()(validate)
    app.command()(plan)
    app.command()(status)
    app.command()(schema)


def _list_templates(value: bool) -> None:  # noqa: FBT001 - the signature of a Typer callback
    from svi_story.storyboard import templates

    if value:
        for each in templates.names():
            answer(f"{each}: {templates.describe(each)}")
        raise typer.Exit


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A folder to make, or a board (*.yaml).")],
    template: Annotated[
        str, typer.Option("--template", "-t", metavar="T", help="What to start from.")
    ] = "minimal",
    list_them: Annotated[  # noqa: ARG001 - the callback answers before the command runs
        bool,
        typer.Option("--list", callback=_list_templates, is_eager=True, help="List the templates."),
    ] = False,
) -> None:
    """Start a board from a template.

    \b
    svi-story new my-film
    svi-story new my-film --template scenes
    svi-story new --list
    """
    from svi_story.storyboard import templates

    answer(str(templates.create(template, Path(name))))


def import_prompts(
    prompts: Annotated[Path, typer.Argument(metavar="PROMPTS", help="Upstream's prompt.txt: a Python list.")],
    reference: Annotated[
        Path, typer.Option("--reference", "-r", metavar="IMAGE", help="The film's reference image.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="BOARD", help="The board to write."),
    ] = None,
    clips: Annotated[
        int | None, typer.Option("--clips", min=1, metavar="N", help="Take only the first N prompts.")
    ] = None,
) -> None:
    """Turn an upstream prompt file into a board.

    The file is read as data, never run; the image stays where it is.

    \b
    svi-story import prompt.txt --reference frame.jpg
    svi-story import prompt.txt --reference frame.jpg --clips 10 -o boards/sea.yaml
    """
    from svi_story.cli.console import warn
    from svi_story.media.guard import check_picture
    from svi_story.storyboard.importers import board_from_prompts, read_prompts, title_for, write_board

    texts = read_prompts(prompts, warn)
    check_picture(reference)
    board = output or Path(f"{prompts.stem}.yaml")
    relative = os.path.relpath(reference.absolute(), board.absolute().parent)
    write_board(board, board_from_prompts(texts[:clips], Path(relative).as_posix(), title_for(prompts)))
    answer(str(board))


def validate(paths: Paths, cache: Cache = CACHE) -> None:
    """Check boards, images and timing.

    Needs no engine. Writes nothing, but unpacks bundles into the cache. Every mistake is told at once; what
    the model is known to do badly is a warning, which a board can ignore by its name.

    \b
    svi-story validate board.yaml
    svi-story validate boards/
    """
    from svi_story.cli.console import warn
    from svi_story.render.jobs import find_places, resolve

    plans, rejected = resolve(find_places(paths, FILMS, cache), fingerprints_in(cache, warn), None)
    _complain_about(rejected)
    for place, film in plans:
        _warn_of(film.lints)
        clips = "1 clip" if len(film.shots) == 1 else f"{len(film.shots)} clips"
        answer(f"{place.board}: valid: {clips}, {film.frames} frames, {film.seconds:.2f} s")
    _exit_for(plans, rejected)


def plan(
    paths: Paths,
    output: Films = FILMS,
    cache: Cache = CACHE,
    engine: Engine = "",
    models: Models = MODELS,
    dtype: Dtype = "",
    vae: Vae = "",
    memory: Memory = "auto",
    why: Annotated[bool, typer.Option("--why", help="Tell what changed since the last film.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what would be made, and what is there.

    Needs no engine and no GPU.

    \b
    svi-story plan board.yaml
    svi-story plan board.yaml --why --engine animatic
    svi-story plan boards/ --json
    """
    from svi_story.cli import costs, plans
    from svi_story.enginespec import EngineOptions

    choice = chosen(engine, EngineOptions(models, dtype, memory=memory, vae=vae))
    jobs, rejected = _prepare(paths, output, cache, choice)
    _complain_about_missing(jobs)
    for job in jobs:
        _warn_of(job.plan.lints)
    found = costs.costs_of(jobs, cache)
    if as_json:
        boards = [plans.as_json(job, store_of(job), why=why) for job in jobs]
        answer_json({"boards": boards, "schedule": costs.as_json(found)})
    else:
        for job in jobs:
            answer(*plans.as_lines(job, store_of(job), why=why))
        if found:
            answer(*costs.as_lines(found))
    _exit_for(jobs, rejected)


def status(
    paths: Paths,
    output: Films = FILMS,
    cache: Cache = CACHE,
    engine: Engine = "",
    models: Models = MODELS,
    dtype: Dtype = "",
    vae: Vae = "",
    as_json: AsJson = False,
) -> None:
    """Show how far every film is.

    \b
    svi-story status boards/
    """
    from svi_story.cli import plans
    from svi_story.enginespec import EngineOptions

    jobs, rejected = _prepare(paths, output, cache, chosen(engine, EngineOptions(models, dtype, vae=vae)))
    _complain_about_missing(jobs)
    states: list[dict[str, Any]] = [plans.status_of(job, store_of(job)) for job in jobs]
    if as_json:
        answer_json({"boards": states})
    elif states:
        titles = ("board", "state", "cached", "partial", "to_render", "film")
        rows = [["-" if state[title] is None else str(state[title]) for title in titles] for state in states]
        answer(*table(titles, rows))
    _exit_for(jobs, rejected)


def schema() -> None:
    """Print the JSON Schema of boards.

    Editors complete and check boards with it.

    \b
    svi-story schema > storyboard.schema.json
    """
    import json

    from svi_story.storyboard.schema import json_schema

    answer(*json.dumps(json_schema(), indent=2, ensure_ascii=False).split("\n"))


def _prepare(
    paths: Sequence[Path], films: Path, cache: Path, choice: Choice
) -> tuple[list[Job], list[Rejected]]:
    from svi_story.cli.console import warn
    from svi_story.render.jobs import find_places, notices, prepare

    fingerprints = fingerprints_in(cache, warn)
    jobs, rejected = prepare(find_places(paths, films, cache), fingerprints, choice)
    for event in (event for job in jobs for event in notices(job)):
        warn(event)
    _complain_about(rejected)
    fingerprints.save()
    return jobs, rejected


def _complain_about(rejected: Sequence[Rejected]) -> None:
    for each in rejected:
        for problem in each.error.problems:
            complain(str(problem))


def _warn_of(lints: Sequence[Lint]) -> None:
    """Tell what the field knows to go wrong: of each kind the first few, the rest counted."""
    told: Counter[str] = Counter(lint.name for lint in lints)
    seen: Counter[str] = Counter()
    for lint in lints:
        seen[lint.name] += 1
        if seen[lint.name] <= MOST_OF_A_KIND:
            complain(f"warning: {lint.problem} [{lint.name}]")
    for name, count in told.items():
        if count > MOST_OF_A_KIND:
            complain(f"warning: and {count - MOST_OF_A_KIND} more like these [{name}]")


def _complain_about_missing(jobs: Sequence[Job]) -> None:
    for job in jobs:
        for problem in job.missing.problems if job.missing else ():
            complain(f"{job.place.board}: cannot compute the cache keys: {problem}")


def _exit_for(jobs: Sequence[object], rejected: Sequence[object]) -> None:
    if rejected:
        raise typer.Exit(SOME_INVALID if jobs else NONE_VALID)
