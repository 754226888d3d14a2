"""The commands that show what would be rendered, and how far it is: plan, status and takes."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svi_story.cli.jobs import MOST_OF_A_KIND, exit_for, report_jobs, report_lints
from svi_story.cli.options import AsJson, Board, BoardOptions, Paths, with_board_options
from svi_story.cli.terminal import answer, answer_json, complain, shorten, table
from svi_story.units import counted, gib

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from svi_story.engines import MemoryNeed
    from svi_story.plan.model import Shot
    from svi_story.render.cost import Cost
    from svi_story.render.jobs import Job
    from svi_story.render.summary import BoardSummary, ClipSummary, RunSummary, SegmentSummary

TITLES = ("#", "clip", "seconds", "frames", "asked", "by pass", "seed", "state", "prompt")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(plan)
    app.command()(status)
    app.command()(takes)


@with_board_options
def plan(
    paths: Paths,
    options: BoardOptions,
    why: Annotated[bool, typer.Option("--why", help="Show what changed since the last film.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what would be rendered, and what is cached.

    Needs no engine and no GPU.

    \b
    svi-story plan board.yaml
    svi-story plan board.yaml --why --engine animatic
    svi-story plan boards/ --json
    """
    from svi_story import api
    from svi_story.cli.console import warn

    found = api.plan(*paths, why=why, report=warn, **options.given())
    report_jobs(found.jobs, found.rejected)
    for job in found.jobs:
        report_lints(job.plan.lints)
    if as_json:
        summary = found.summary.model_dump()
        if not why:
            for board in summary["boards"]:
                del board["why"]
        answer_json(summary)
    else:
        for job, about in zip(found.jobs, found.summary.boards, strict=True):
            answer(*_board(job, about))
        if found.costs:
            answer(*(line for cost in found.costs for line in _cost(cost)))
    exit_for(found.jobs, found.rejected)


@with_board_options
def status(paths: Paths, options: BoardOptions, as_json: AsJson = False) -> None:
    """Show the state of every film, and the renders that are running.

    \b
    svi-story status boards/
    """
    from svi_story import api
    from svi_story.cli.console import warn

    found = api.status(*paths, report=warn, **options.given())
    report_jobs(found.jobs, found.rejected)
    summary = found.summary.model_dump()
    if as_json:
        answer_json(summary)
    elif found.jobs:
        titles = ("board", "state", "cached", "partial", "to_render", "film")
        rows = [
            ["-" if row[name] is None else str(row[name]) for name in titles] for row in summary["boards"]
        ]
        answer(*table(titles, rows))
        answer(*(f"run {run.run}{_boards_of(run)}: {run.message}" for run in found.summary.runs))
    exit_for(found.jobs, found.rejected)


def _boards_of(run: RunSummary) -> str:
    """What a run renders, as far as its log tells: ` (film.yaml and 3 more)`."""
    from svi_story.files import short_path

    if not run.boards:
        return ""
    first, more = str(short_path(Path(run.boards[0]))), len(run.boards) - 1
    if run.message.startswith((f"{first}: ", f"{run.boards[0]}: ")):  # it says which one it is at
        return ""
    return f" ({first}{f' and {more} more' if more else ''})"


@with_board_options
def takes(
    board: Board,
    clip: Annotated[
        str, typer.Argument(metavar="CLIP", help="A clip by id or number, or several as 2-4.")
    ] = "",
    *,
    options: BoardOptions,
    as_json: AsJson = False,
) -> None:
    """List the takes of a board's clips, and how to pick one.

    They are those of the board, and those that were ever made with `render --takes`.

    \b
    svi-story takes board.yaml
    svi-story takes board.yaml window
    """
    from svi_story import api
    from svi_story.cli.console import warn
    from svi_story.commands import suggest

    found = api.takes(board, *([clip] if clip else []), report=warn, **options.given())
    if as_json:
        answer_json(found.model_dump())
        return
    titles = ("#", "clip", "take", "seed", "state", "took", "film", "pick it with")
    rows = [
        (
            str(each.number),
            each.id,
            str(take.number),
            str(take.seed),
            take.state or "-",
            "" if take.seconds is None else f"{take.seconds:.1f} s",
            take.file or "",
            "(picked)" if take.picked else take.command,
        )
        for each in found.clips
        for take in each.takes
    ]
    answer(*table(titles, rows, optional=("seed", "took")))
    unseen = [
        each for each in found.clips if len(each.takes) > 1 and not all(take.file for take in each.takes)
    ]
    for each in unseen[:MOST_OF_A_KIND]:
        words = ("--only", each.id, "--takes", str(len(each.takes)))
        complain(f"to watch them, write a film of each: {suggest('render', *words, path=board)}")
    if len(unseen) > MOST_OF_A_KIND:
        complain(f"and in the same way for {len(unseen) - MOST_OF_A_KIND} more clips")


def _board(job: Job, summary: BoardSummary) -> list[str]:
    """A board as text."""
    from svi_story.enginespec import spec_of

    shown = spec_of(job.plan.engine).describe(job.segments[0].options)
    settings = ", ".join(f"{name} {value}" for name, value in shown.items())
    engine = f"engine {job.plan.engine}: {settings}" if settings else f"engine {job.plan.engine}"
    rows = [
        row
        for number, (shot, clip) in enumerate(zip(job.plan.shots, summary.clips, strict=True), 1)
        for row in (_row(number, shot, clip, job), *_take_rows(clip))
    ]
    return [
        f"{summary.board} -> {summary.film}",
        f"{summary.frames} frames, {summary.seconds:.2f} s at {summary.fps} fps, {job.plan.size}, {engine}",
        *(_memory(mode, need) for mode, need in summary.memory.items()),
        "" if job.plan.fps == job.plan.cut.fps else f"clips at the board's rate, {job.plan.fps} fps:",
        *table(TITLES, rows, optional=("asked", "seed", "by pass", "seconds")),
        *(() if summary.why is None else ("", *summary.why)),
        "",
    ]


def _memory(mode: str, need: MemoryNeed) -> str:
    """A memory mode's needs in a line; computed, as no GPU was asked."""
    least, kept = gib(need.ram_bytes), gib(need.ram_kept_bytes)
    ram = least if least == kept else f"{least} (better {kept})"
    return (
        f"--memory {mode}: about {gib(need.gpu_bytes)} on the GPU (sampling {gib(need.gpu_sampling_bytes)}, "
        f"decoding {gib(need.gpu_decoding_bytes)}), {ram} of RAM"
    )


def _row(number: int, shot: Shot, clip: ClipSummary, job: Job) -> tuple[str, ...]:
    take = f"(take {shot.pick} of {len(shot.takes)})" if shot.other_takes else ""
    return (
        str(number),
        " ".join(part for part in (shot.id, take, _mark(number, shot)) if part),
        f"{float(shot.frames / job.plan.fps):.2f}",
        str(shot.frames),
        str(shot.asked_frames),
        "+".join(str(segment.frames) for segment in shot.segments),
        str(shot.seed),
        _state(clip.segments),
        shorten(shot.prompt, 100),
    )


def _take_rows(clip: ClipSummary) -> Iterator[tuple[str, ...]]:
    """The takes that the film does not use: what differs from the picked one."""
    for take in clip.other_takes:
        passes = "+".join(str(segment.frames) for segment in take.segments)
        yield "", f"  take {take.number}", "", "", "", passes, str(take.seed), _state(take.segments), ""


def _state(segments: Sequence[SegmentSummary]) -> str:
    """How far a clip is; `-` where the keys are not known."""
    states = Counter(segment.state for segment in segments if segment.state)
    if len(states) < 2:
        return next(iter(states), None) or "-"
    return f"{states['cached']}/{len(segments)} cached"


def _mark(number: int, shot: Shot) -> str:
    """How a clip that does not continue from the previous one is joined to it."""
    if number == 1 or not shot.starts_chain:
        return ""
    if shot.dip:
        return f"(dip {shot.dip})"
    return f"(fade {shot.fade})" if shot.fade else "(cut)"


def _cost(cost: Cost) -> list[str]:
    if not cost.segments:
        return [f"{cost.engine}: every segment is cached"]
    head = f"{cost.engine}: {counted(cost.segments, 'segment')} to render"
    if cost.segments > 1:
        head += f", {cost.waves} of them one after another at most"
    if cost.takes:
        head += f", {cost.takes} for other takes after the films"
    passes = ", ".join(f"{count} forward passes {expert}" for expert, count in cost.forwards.items())
    moves = [
        f"moved with --memory {mode}: {gib(moves.bytes)}, experts come to the device {moves.loads} times"
        for mode, moves in cost.moves.items()
    ]
    return [f"{head}; {passes}" if passes else head, *moves, _time(cost)]


def _time(cost: Cost) -> str:
    if cost.setting is None or cost.seconds is None:
        what = ", ".join(cost.unknown)
        return f"time: unknown until something similar has been rendered on this machine ({what})"
    about = timedelta(seconds=max(1, round(cost.seconds)))
    setting = cost.setting
    held = "" if setting.weights == "bf16" else f"{setting.weights} weights"
    parts = (setting.device, setting.dtype, held, setting.attention, setting.memory)
    where = ", ".join(part for part in parts if part)
    return f"time: about {about}, as measured on this machine" + (f" ({where})" if where else "")
