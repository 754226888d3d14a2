"""The command that writes a film for editors, or a board as a bundle: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svi_story.cli.jobs import prepare_job, store_of
from svi_story.cli.options import Board, BoardOptions, one_of, with_board_options
from svi_story.cli.terminal import answer
from svi_story.commands import suggest

SUFFIXES = {"otio": ".otio", "srt": ".srt", "bundle": ".zip"}
MEDIA = ("prores", "dnxhr")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(export)


@with_board_options
def export(
    board: Board,
    to: Annotated[str, typer.Option("--to", metavar="|".join(SUFFIXES), help="The format to export to.")],
    media: Annotated[
        str,
        typer.Option("--media", metavar="|".join(MEDIA), help="With otio: also write a video file per clip."),
    ] = "",
    entries: Annotated[
        bool, typer.Option("--entries", help="With bundle: include the finished segments.")
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option("--as", metavar="FILE", help="The file to write. Default: next to the film."),
    ] = None,
    *,
    options: BoardOptions,
) -> None:
    """Export a film for an editor, or a board for another machine.

    Renders nothing: for a timeline, what is not in the cache yet is an error.

    \b
    svi-story export board.yaml --to otio
    svi-story export board.yaml --to otio --media prores
    svi-story export board.yaml --to srt --as subtitles/board.srt
    svi-story export board.yaml --to bundle --entries
    """
    from svi_story.bundle.pack import pack
    from svi_story.cache.outputs import Outputs
    from svi_story.cli.console import show, warn
    from svi_story.export.media import CODECS
    from svi_story.export.write import (
        check_subtitles,
        check_timeline,
        export_otio,
        export_srt,
        subtitles,
    )
    from svi_story.render.outputs import check_bundle

    suffix = SUFFIXES[one_of(to, tuple(SUFFIXES), "--to")]
    if media:
        one_of(media, MEDIA, "--media")
        if to != "otio":
            raise typer.BadParameter("goes with --to otio only", param_hint="--media")
    if entries and to != "bundle":
        raise typer.BadParameter("goes with --to bundle only", param_hint="--entries")
    if file and file.suffix != suffix:
        raise typer.BadParameter(f"{str(file)!r} does not end in {suffix}", param_hint="--as")
    job, fingerprints = prepare_job(board, options)
    target = file or job.place.film.with_suffix(suffix)
    outputs = Outputs(job.place.settings.cache)
    if to == "otio":
        codec = CODECS[media] if media else None
        check_timeline(job, target, codec, outputs, warn)
        export_otio(
            *(job, store_of(job), target, codec, show, outputs), command=suggest("render", path=board)
        )
    elif to == "bundle":
        check_bundle(job, target, outputs, warn)
        pack(
            *(job.plan, job.options, target, fingerprints),
            missing=job.missing,
            store=store_of(job) if entries else None,
            publish=outputs.file,
        )
    else:
        check_subtitles(job, target, subtitles(job), outputs, warn)
        export_srt(job, target, outputs)
    answer(str(target))
