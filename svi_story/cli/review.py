"""The command `review`: of a board, or of any film file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svi_story.cli.jobs import prepare_job, store_of
from svi_story.cli.options import AsJson, BoardOptions, with_board_options
from svi_story.cli.terminal import answer, answer_json, complain
from svi_story.commands import suggest
from svi_story.units import counted

if TYPE_CHECKING:
    from svi_story.cache.outputs import Outputs
    from svi_story.cache.store import Store
    from svi_story.render.jobs import Job
    from svi_story.review.report import Playback
    from svi_story.review.results import FilmReview


Reviewed = Annotated[Path, typer.Argument(metavar="BOARD|FILM", help="A board, a bundle, or any film file.")]
Reference = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        metavar="IMAGE",
        help="What a film file should look like, for the plot of the distance.",
    ),
]
ClipFrames = Annotated[
    int | None,
    typer.Option(
        "--clip-frames", metavar="N", min=2, help="Length of a film file's clips, before any re-timing."
    ),
]

CACHE = ".cache"
REFERENCE_SIZE = (416, 240)
"""Pixels: only its colours count."""
PLAYABLE = (".mp4", ".m4v", ".mov", ".webm", ".ogv")
PLAYABLE_CODECS = ("h264", "vp8", "vp9", "libdav1d", "av1", "theora")


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(review)


@with_board_options
def review(
    board: Reviewed,
    options: BoardOptions,
    reference: Reference = None,
    clip_frames: ClipFrames = None,
    as_json: AsJson = False,
) -> None:
    """Review the quality of a film, and write a page about it.

    Of a board: every finished clip, every join, and what helps. Of any film file:
    whether errors accumulate, re-timing, frozen and repeated frames.
    The page is written beside the film. Warnings do not change the exit code.

    \b
    svi-story review board.yaml
    svi-story review board.yaml --engine animatic --json
    svi-story review film.mp4 --clip-frames 77 -o reviews
    """
    from svi_story.bundle.format import is_bundle

    if board.suffix.lower() not in (".yaml", ".yml") and not board.is_dir() and not is_bundle(board):
        _review_video(board, options, reference, clip_frames, as_json=as_json)
        return
    for value, name in ((reference, "--reference"), (clip_frames, "--clip-frames")):
        if value is not None:
            raise typer.BadParameter("is for film files; a board says it itself", param_hint=name)
    _review_board(board, options, as_json=as_json)


def _review_board(board: Path, options: BoardOptions, *, as_json: bool) -> None:
    from svi_story.cache.outputs import Outputs
    from svi_story.cli.console import warn
    from svi_story.render.outputs import check_page

    job, _ = prepare_job(board, options, every_take=True)
    job.require_keys()
    command = suggest("render", path=board)
    store, outputs = store_of(job), Outputs(job.place.settings.cache)
    page = job.place.film.with_suffix(".review.html")
    if not as_json:
        check_page(job, page, outputs, warn)
    found = _measure(job, store, command)
    _answer(board, found, page, replace(_playback(job, store), command=command), outputs, as_json=as_json)


def _review_video(
    film: Path, options: BoardOptions, reference: Path | None, clip_frames: int | None, *, as_json: bool
) -> None:
    from svi_story.cache.outputs import Outputs
    from svi_story.cli.console import reporter
    from svi_story.media.guard import fitted_picture
    from svi_story.render.outputs import check_video_page
    from svi_story.review.report import Playback, facts_of
    from svi_story.review.video import review_video

    page = (options.output or film.parent) / f"{film.stem}.review.html"
    outputs = Outputs(options.cache or _cache_above(page))
    if not as_json:
        check_video_page(film, page, outputs)
    picture = fitted_picture(reference, *REFERENCE_SIZE, "stretch") if reference else None
    with reporter(as_json=False, quiet=False, verbose=False) as report:
        found = review_video(film, picture, clip_frames, report)
    complain(*(f"{film}: {fact}" for fact in facts_of(found)))
    codec = found.facts.info.codec if found.facts else ""
    playable = film.suffix.lower() in PLAYABLE and codec in PLAYABLE_CODECS
    note = "" if playable else "Not every browser plays films of this kind."
    _answer(film, found, page, Playback(film, note), outputs, as_json=as_json)


def _cache_above(page: Path) -> Path | None:
    """The cache beside or above a page, whose ledger may list it: there it is a board's review."""
    from svi_story.cache.layout import Layout

    caches = (folder / CACHE for folder in page.absolute().parents)
    return next((cache for cache in caches if Layout(cache).is_tagged()), None)


def _answer(
    name: Path, found: FilmReview, page: Path, playback: Playback, outputs: Outputs, *, as_json: bool
) -> None:
    """Print the result as JSON, or write the page."""
    if as_json:
        from svi_story.review.summary import summarize

        answer_json(summarize(found).model_dump())
    else:
        _write(page, found, playback, outputs)
        answer(str(page))
    if found.findings:
        count = len(found.findings)
        complain(f"{name}: {counted(count, 'warning')}; the page says what helps")


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
    return Playback(None, "There is no film to play yet; its clips were measured in the cache.")
