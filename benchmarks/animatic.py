"""How fast is the animatic, beside the film's own playback?"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from common import (
    PROGRAM,
    QUEUEING,
    STORYBOARDS,
    Finding,
    Result,
    Table,
    Took,
    finish,
    median,
    options,
    progress,
    run_alone,
    shown,
    timed,
    workplace,
)

from svi_story.engines.animatic import Animatic
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.resolve import plan_film
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from pathlib import Path

    from common import Cell

    from svi_story.plan.model import FilmPlan

SIZES = ("832x480", "1280x720")
CLIPS = 4
RATES = (15, 24, 30)
PROMPT = "The cat is sitting by the window, its tail flicking, watching the rain run down the glass."

WHAT = (
    "*decode only* draws one clip in this process; *whole render* is `svi-story render` of a board without "
    "a cache: start, frames, lossless files, hashes, pieces, a preview after every clip, the film."
)
CPU = (
    "The budget is the animatic's: as fast as the film plays, at 832x480 on 2 cores. *frames/CPU s*, of all "
    "processes together, is what a single idle core would make; two make more."
)
DECODE, WHOLE = "decode only", "whole render"


def write_board(folder: Path, size: str) -> Path:
    """Clips of 81 frames over a picture that ships."""
    image = STORYBOARDS / "images" / "cat.jpg"
    clips = [f"  - prompt: {PROMPT} Clip {number}." for number in range(CLIPS)]
    board = folder / f"{size}.yaml"
    board.write_text(
        "\n".join(["version: 1", f"reference: {image}", f"resolution: {size}", "clips:", *clips])
    )
    return board


def decode(plan: FilmPlan) -> None:
    """Every frame of the film's first clip, drawn and thrown away."""
    segment = plan.shots[0].segments[0]
    with Animatic() as engine:
        latents = engine.sample(segment, None, NoCheckpoint(), lambda _step, _steps: None)
        assert sum(1 for _ in engine.decode(segment, latents)) == segment.frames


class NoCheckpoint:
    """The animatic keeps nothing."""

    def load(self) -> None:
        return None

    def save(self, state: object) -> None:
        raise AssertionError(state)


def measure(folder: Path, rounds: int) -> dict[tuple[str, str], tuple[int, Took]]:
    """Frames, and what they took, by size and by how much is done."""
    runs: dict[tuple[str, str], list[Took]] = {(size, what): [] for size in SIZES for what in (DECODE, WHOLE)}
    frames: dict[tuple[str, str], int] = {}
    for number in range(rounds):
        for size in SIZES:
            progress(f"round {number + 1} of {rounds}, {size}")
            board = write_board(folder, size)
            plan = plan_film(load(board), Fingerprints(folder / "memo.json"), "animatic")
            runs[size, DECODE].append(timed(partial(decode, plan)))
            runs[size, WHOLE].append(render(board, folder / f"{number}-{size}"))
            frames |= {(size, DECODE): plan.shots[0].segments[0].frames, (size, WHOLE): plan.frames}
    return {key: (frames[key], median(each)) for key, each in runs.items()}


def render(board: Path, place: Path) -> Took:
    """The whole program, with nothing made yet."""
    places = ("-o", place / "films", "--cache", place / "cache")
    return run_alone((PROGRAM, "render", board, "--engine", "animatic", *places), board.parent)


def report(measured: dict[tuple[str, str], tuple[int, Took]], rounds: int) -> Result:
    rows: list[tuple[Cell, ...]] = []
    for (size, what), (frames, took) in measured.items():
        speed = frames / took.wall
        times = (took.wall, took.queued, took.cpu, speed, frames / took.cpu)
        rows.append((size, what, frames, *times, *(speed / rate for rate in RATES)))
    speeds = ("frames/s", "frames/CPU s", *(f"x {rate} fps" for rate in RATES))
    columns = ("size", "what", "frames", "wall s", "queued s", "CPU s", *speeds)
    return Result(
        name="animatic",
        question="how fast is the animatic, beside the film's own playback?",
        settings={"rounds": rounds, "clips": CLIPS, "frames a clip": 81, "crf": 18},
        tables=(Table(f"Frames a second, median of {rounds} rounds", columns, tuple(rows)),),
        findings=tuple(_finding(*key, *figures) for key, figures in measured.items()),
        notes=(QUEUEING, WHAT, CPU),
    )


def _finding(size: str, what: str, frames: int, took: Took) -> Finding:
    speed, free = frames / took.wall, frames / took.cpu
    figure = f"{shown(speed)} frames/s, {shown(free)} a CPU second"
    if size != SIZES[0]:
        return Finding(f"{what}, {size}", figure)
    verdict = "holds" if speed > RATES[0] else "holds on a free CPU" if free > RATES[0] else "missed"
    return Finding(f"{what}, {size}", figure, f"> {RATES[0]} frames/s", verdict)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with workplace() as folder:
        measured = measure(folder, chosen.rounds)
    finish(report(measured, chosen.rounds), write=chosen.write)


if __name__ == "__main__":
    main()
