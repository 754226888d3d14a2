"""The command that shows what the model will see: preview."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from svi_story.cli.options import CACHE, FILMS, Cache, Engine, Films, Paths, fingerprints_in, one_of
from svi_story.cli.terminal import answer, complain

if TYPE_CHECKING:
    from svi_story.errors import StoryError

NONE_DONE, SOME_FAILED = 2, 1


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(preview)


def preview(paths: Paths, output: Films = FILMS, cache: Cache = CACHE, engine: Engine = "") -> None:
    """Draw a contact sheet of every clip: its reference as the model sees it, prompt and timing.

    Needs no engine and no GPU. The pictures are put beside the films: renders/board.preview.png.

    \b
    svi-story preview board.yaml
    svi-story preview boards/ -o sheets
    """
    from svi_story.cache.outputs import Outputs
    from svi_story.cli.console import warn
    from svi_story.enginespec import engine_names
    from svi_story.errors import InputError, RenderError
    from svi_story.render.jobs import find_places, resolve
    from svi_story.render.outputs import check_sheets
    from svi_story.review.contact_sheet import write_preview

    name = one_of(engine, engine_names(), "--engine") if engine else None
    places, outputs = find_places(paths, output, cache), Outputs(cache)
    plans, rejected = resolve(places, fingerprints_in(cache, warn), name)
    plans, refused = check_sheets(plans, outputs, warn)
    rejected = [*rejected, *refused]
    failed: list[StoryError] = [refused.error for refused in rejected]
    drawn = 0
    for place, plan in plans:
        try:
            for path in write_preview(plan, place.film, outputs):
                answer(str(path))
            drawn += 1
        except (InputError, RenderError) as error:
            failed.append(error)
    for each in failed:
        for problem in each.problems:
            complain(str(problem))
    if failed:
        raise typer.Exit(SOME_FAILED if drawn or len(failed) > len(rejected) else NONE_DONE)
