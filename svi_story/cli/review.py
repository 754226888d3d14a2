"""The command that looks at what was made: review."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    Models,
    Vae,
    chosen,
    fingerprints_in,
    only_place,
    store_of,
)
from svi_story.cli.terminal import answer, answer_json, complain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svi_story.cache.outputs import Outputs
    from svi_story.cache.store import Store
    from svi_story.render.jobs import Choice, Job
    from svi_story.review.film import FilmReview
    from svi_story.review.report import Shown

Board = Annotated[Path, typer.Argument(metavar="BOARD", help="A board, or a bundle.")]


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(review)


def review(
    board: Board,
    output: Films = FILMS,
    cache: Cache = CACHE,
    engine: Engine = "",
    models: Models = MODELS,
    dtype: Dtype = "",
    vae: Vae = "",
    as_json: AsJson = False,
) -> None:
    """Measure what was made, and write a page about it.

    Colour drift, sharpness, motion, every join, and warnings with what helps.
    The page lies beside the film and needs nothing else. Warnings do not fail.

    \b
    svi-story review board.yaml
    svi-story review board.yaml --engine animatic --json
    """
    from svi_story.cache.outputs import Outputs
    from svi_story.cli.console import warn
    from svi_story.enginespec import EngineOptions
    from svi_story.render.outputs import check_page

    job = _job(board, output, cache, chosen(engine, EngineOptions(models, dtype, vae=vae)))
    words: dict[str, Path | str] = {
        "-o": output,
        "--cache": cache,
        "--engine": engine,
        "--models": models,
        "--dtype": dtype,
        "--vae": vae,
    }
    store, outputs, page = store_of(job), Outputs(cache), job.place.film.with_suffix(".review.html")
    if not as_json:
        check_page(job, page, outputs, warn)
    found = _measure(job, store)
    if as_json:
        from svi_story.review.film import as_json as in_json

        answer_json(in_json(found))
    else:
        _write(page, found, replace(_shown(job, store), again=_again(board, words)), outputs)
        answer(str(page))
    if found.findings:
        count = len(found.findings)
        complain(f"{board}: {count} warning{'s' if count > 1 else ''}; the page says what helps")


def _job(board: Path, films: Path, cache: Path, choice: Choice) -> Job:
    """The board, planned and keyed. Raises InputError where it cannot be."""
    from svi_story.render.jobs import prepare

    place = only_place(board, films, cache)
    fingerprints = fingerprints_in(cache)
    jobs, rejected = prepare((place,), fingerprints, choice)
    for each in rejected:
        raise each.error
    fingerprints.save()
    jobs[0].require_keys()
    return jobs[0]


def _measure(job: Job, store: Store) -> FilmReview:
    """Raises InputError where nothing was rendered yet."""
    from svi_story.cli.console import reporter
    from svi_story.errors import InputError, Problem

    if all(store.state(segment.key) != "cached" for segment in job.segments):
        what = (
            f"nothing of it was rendered yet with engine {job.plan.engine}; run `svi-story render` with the "
            "same options first"
        )
        raise InputError(Problem(what, file=str(job.place.board)))
    from svi_story.review.film import review_film

    with reporter(as_json=False, quiet=False, verbose=False) as report:
        return review_film(job.plan, store.entry, report)


def _again(board: Path, words: Mapping[str, Path | str]) -> str:
    """The command that renders a board with the same options; those that say nothing new are left out."""
    plain = {"-o": FILMS, "--cache": CACHE, "--models": MODELS}
    given = [
        f"{name} {shlex.quote(str(word))}"
        for name, word in words.items()
        if word not in ("", plain.get(name))
    ]
    return " ".join(["svi-story render", shlex.quote(str(board)), *given])


def _write(page: Path, found: FilmReview, shown: Shown, outputs: Outputs) -> None:
    """Write the page beside the film."""
    from svi_story.files import disk, make_folder
    from svi_story.review.report import write_page

    with disk(page.parent, "making room for the review"):
        make_folder(page.parent)
    write_page(found, shown, page, outputs.file)


def _shown(job: Job, store: Store) -> Shown:
    """The film that can be watched, and what to know about it."""
    from svi_story.render.record import is_finished, partial_film
    from svi_story.review.report import Shown

    film = job.place.film
    if film.is_file():
        if is_finished(job, store):
            return Shown(film, "")
        return Shown(film, "This film is not the one that is planned now: times may differ. Render it again.")
    if partial_film(film).is_file():
        return Shown(partial_film(film), "The film is not finished: this is what exists so far.")
    return Shown(None, "There is no film to play yet; its clips are measured where they lie.")
