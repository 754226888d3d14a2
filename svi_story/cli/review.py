"""The command that looks at what was made: review."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from svi_story.cli.jobs import prepare_job, store_of
from svi_story.cli.options import AsJson, Board, BoardOptions, with_board_options
from svi_story.cli.terminal import answer, answer_json, complain

if TYPE_CHECKING:
    from pathlib import Path

    import typer

    from svi_story.cache.outputs import Outputs
    from svi_story.cache.store import Store
    from svi_story.render.jobs import Job
    from svi_story.review.film import FilmReview
    from svi_story.review.report import Playback


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(review)


@with_board_options
def review(board: Board, options: BoardOptions, as_json: AsJson = False) -> None:
    """Measure what was made, and write a page about it.

    Colour drift, sharpness, motion, every join, and warnings with what helps.
    The page lies beside the film and needs nothing else. Warnings do not fail.

    \b
    svi-story review board.yaml
    svi-story review board.yaml --engine animatic --json
    """
    from svi_story.cache.outputs import Outputs
    from svi_story.cli.console import warn
    from svi_story.render.outputs import check_page

    job, _ = prepare_job(board, options)
    job.require_keys()
    command = options.render_command(board)
    store, outputs, page = (
        store_of(job),
        Outputs(job.place.settings.cache),
        job.place.film.with_suffix(".review.html"),
    )
    if not as_json:
        check_page(job, page, outputs, warn)
    found = _measure(job, store, command)
    if as_json:
        from svi_story.review.summary import summarize

        answer_json(summarize(found).model_dump())
    else:
        _write(page, found, replace(_playback(job, store), command=command), outputs)
        answer(str(page))
    if found.findings:
        count = len(found.findings)
        complain(f"{board}: {count} warning{'s' if count > 1 else ''}; the page says what helps")


def _measure(job: Job, store: Store, command: str) -> FilmReview:
    """Raises InputError where nothing was rendered yet."""
    from svi_story.cli.console import reporter
    from svi_story.errors import InputError, Problem

    if all(store.state(segment.key) != "cached" for segment in job.segments):
        what = f"nothing of it was rendered yet with engine {job.plan.engine}; run `{command}` first"
        raise InputError(Problem(what, file=str(job.place.board)))
    from svi_story.review.film import review_film

    with reporter(as_json=False, quiet=False, verbose=False) as report:
        return review_film(job.plan, store.entry, report)


def _write(page: Path, found: FilmReview, playback: Playback, outputs: Outputs) -> None:
    """Write the page beside the film."""
    from svi_story.files import disk, make_folder
    from svi_story.review.report import write_page

    with disk(page.parent, "making room for the review"):
        make_folder(page.parent)
    write_page(found, playback, page, outputs.file)


def _playback(job: Job, store: Store) -> Playback:
    """The film that can be watched, and what to know about it."""
    from svi_story.render.record import is_finished, partial_film
    from svi_story.review.report import Playback

    film = job.place.film
    if film.is_file():
        if is_finished(job, store):
            return Playback(film, "")
        return Playback(
            film, "This film is not the one that is planned now: times may differ; render it again."
        )
    if partial_film(film).is_file():
        return Playback(partial_film(film), "The film is not finished: this is what exists so far.")
    return Playback(None, "There is no film to play yet; its clips are measured where they lie.")
