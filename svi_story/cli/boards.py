"""Commands about boards: new, import, validate, preview, schema."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svi_story.cli.jobs import (
    exit_for,
    prepare_job,
    report_lints,
    report_problems,
    store_of,
)
from svi_story.cli.options import MOST_TAKES, BoardOptions, Paths, with_board_options
from svi_story.cli.terminal import answer, complain
from svi_story.commands import suggest
from svi_story.errors import ExitCode
from svi_story.units import counted

if TYPE_CHECKING:
    from svi_story.errors import StoryError


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("new")(new)
    app.command("import")(import_prompts)
    app.command()(validate)
    app.command()(preview)
    app.command()(pick)
    app.command()(schema)


def _list_templates(value: bool) -> None:  # noqa: FBT001 - the signature of a Typer callback
    from svi_story.storyboard import templates

    if value:
        for each in templates.names():
            answer(f"{each}: {templates.describe(each)}")
        raise typer.Exit


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A new folder, or a new board (*.yaml).")],
    template: Annotated[
        str, typer.Option("--template", "-t", metavar="T", help="The template to start from.")
    ] = "minimal",
    list_them: Annotated[  # noqa: ARG001 - the callback answers before the command runs
        bool,
        typer.Option("--list", callback=_list_templates, is_eager=True, help="List the templates."),
    ] = False,
) -> None:
    """Start a project, or a board, from a template.

    A project is a folder with a board, a picture, the schema for editors, settings and a folder for films.

    \b
    svi-story new my-film
    svi-story new my-film --template scenes
    svi-story new --list
    """
    from svi_story.enginespec import specs
    from svi_story.storyboard import templates

    board = templates.create(template, Path(name))
    answer(str(board))
    engine = next(spec.name for spec in specs() if spec.follows_board)
    preview = suggest("render", "--engine", engine, path=name)
    complain(f"next: {suggest('validate', path=name)}", f"      {preview}")


def import_prompts(
    prompts: Annotated[Path, typer.Argument(metavar="PROMPTS", help="The file with the prompts.")],
    reference: Annotated[
        Path, typer.Option("--reference", "-r", metavar="IMAGE", help="The film's reference image.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="BOARD", help="The board to write."),
    ] = None,
    clips: Annotated[
        int | None, typer.Option("--clips", min=1, metavar="N", help="Use only the first N prompts.")
    ] = None,
) -> None:
    """Create a board from a file of prompts.

    It has one prompt per line, or is a numbered or Markdown list, a CSV file with a column `prompt`, JSON, or
    upstream's `prompts = [...]`; it is read as data, never run. Lines that start with # are comments. The
    image stays where it is. CSV and JSON may also have a clip's `duration`, `negative_prompt`, `steps` and
    other fields, by these names.

    \b
    svi-story import prompt.txt --reference frame.jpg
    svi-story import prompt.txt --reference frame.jpg --clips 10 -o boards/sea.yaml
    """
    from svi_story.cli.console import warn
    from svi_story.files import relative_path
    from svi_story.media.guard import check_picture
    from svi_story.storyboard.importers import read_clips, title_for
    from svi_story.storyboard.templates import board_from_clips, write_board

    found = read_clips(prompts, warn)
    if clips and clips > len(found):
        count = counted(len(found), "prompt")
        complain(f"warning: {prompts} has {count}, fewer than --clips {clips}")
    check_picture(reference)
    board = output or Path(f"{prompts.stem}.yaml")
    relative = relative_path(reference.absolute(), board.absolute().parent)
    write_board(board, board_from_clips(found[:clips], relative, title_for(prompts)))
    answer(str(board))


@with_board_options
def validate(paths: Paths, options: BoardOptions) -> None:
    """Check boards, images and timing.

    Needs no engine. Writes nothing, but unpacks bundles into the cache. Every mistake is reported at once;
    what the model is known to do badly is a warning, which a board can ignore by its name.

    \b
    svi-story validate board.yaml
    svi-story validate boards/
    """
    from svi_story import api
    from svi_story.cli.console import warn

    checked = api.validate(*paths, report=warn, **options.given())
    for each in checked:
        complain(*map(str, each.problems))
    valid = [(each.board, each.plan) for each in checked if each.plan]
    for board, film in valid:
        report_lints(film.lints)
        clips = counted(len(film.shots), "clip")
        answer(f"{board}: valid: {clips}, {film.frames} frames, {film.seconds:.2f} s")
    exit_for(valid, [each for each in checked if not each.plan])


@with_board_options
def preview(paths: Paths, options: BoardOptions) -> None:
    """Draw a contact sheet of what the model will see.

    It has every clip's reference, cropped as for the model, its prompt and its timing. Needs no engine and no
    GPU. The pictures are put beside the films: renders/board.preview.png.

    \b
    svi-story preview board.yaml
    svi-story preview boards/ -o sheets
    """
    from svi_story import api
    from svi_story.cache.outputs import Outputs
    from svi_story.cli.console import warn
    from svi_story.errors import InputError, RenderError
    from svi_story.render.jobs import Rejected
    from svi_story.render.outputs import check_sheets
    from svi_story.review.contact_sheet import write_preview

    checked, outputs_of = api.validate(*paths, report=warn, **options.given()), cache(Outputs)
    plans = [(each.place, each.plan) for each in checked if each.place and each.plan]
    rejected = [Rejected(each.board, InputError(*each.problems)) for each in checked if each.problems]
    plans, refused = check_sheets(plans, outputs_of, warn)
    failed: list[StoryError] = []
    drawn = 0
    for place, plan in plans:
        try:
            for path in write_preview(plan, place.film, outputs_of(place.settings.cache)):
                answer(str(path))
            drawn += 1
        except (InputError, RenderError) as error:
            failed.append(error)
    report_problems([*(each.error for each in (*rejected, *refused)), *failed])
    if failed:
        raise typer.Exit(ExitCode.FAILED)
    exit_for(range(drawn), [*rejected, *refused])


@with_board_options
def pick(
    board: Annotated[Path, typer.Argument(metavar="BOARD", help="The board that is changed.")],
    clip: Annotated[str, typer.Argument(metavar="CLIP", help="A clip's id, else its number.")],
    take: Annotated[
        int, typer.Argument(metavar="TAKE", min=1, max=MOST_TAKES, help="The number of the take, from 1.")
    ],
    options: BoardOptions,
) -> None:
    """Choose the take of a clip that the film uses.

    Writes `pick`, and `takes` where the clip has fewer, into the board; no other byte of it changes. Other
    takes stay in the cache: to go back to one renders nothing.

    \b
    svi-story pick board.yaml roof 2
    """
    from svi_story.render.takes import edit_pick

    job, fingerprints = prepare_job(board, options)
    place, edit = edit_pick(job, clip, take, fingerprints)
    if edit is not None:
        edit.write()
        answer(*edit.written)
        job, _ = prepare_job(board, options)
    what = f"clip {place + 1} ({job.plan.shots[place].id}): take {take} is "
    if edit is None:
        complain(f"{what}picked already; nothing was written")
        return
    what += "picked"
    if not job.missing:
        store = store_of(job)
        film, others = (
            sum(store.state(segment.key) != "cached" for segment in segments)
            for segments in (job.segments, job.plan.other_segments)
        )
        count = "1 segment" if film == 1 else f"{film} segments"
        what += f"; {count} to render" if film else "; every segment of the film is rendered already"
        what += f", and after the film {others} of other takes" if others else ""
    complain(what, "next: " + suggest("render"))


def schema() -> None:
    """Print the JSON Schema of boards.

    Editors complete and check boards with it.

    \b
    svi-story schema > storyboard.schema.json
    """
    import json

    from svi_story.storyboard.schema import json_schema

    answer(*json.dumps(json_schema(), indent=2, ensure_ascii=False).split("\n"))
