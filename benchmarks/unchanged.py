"""How long does a second render of an unchanged board take?"""

from __future__ import annotations

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
    within,
    workplace,
)

from svi_story.files import sha256_file

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from common import Cell

BUDGET = 2.0
"""Seconds, for 50 clips."""
MEGABYTES = 100
"""About what a film of 50 clips of 81 frames weighs; the animatic's is lighter."""
PROMPT = "The fox is walking along the shore of a lake while thin mist is drifting over the water."
FIRST, SECOND, START, HASH = "render, first", "render, unchanged", "--help", f"sha256 of {MEGABYTES} MB"
ABOUT = (
    "*render, unchanged* loads the board, keys it, asks ffmpeg its version, and compares the film's recipe, "
    "size and sha256 with its record; no entry is opened. The last two rows show how much of it is starting "
    "Python, and how much a heavier film would add. *render, first* ran once, the others take turns."
)


def write_board(folder: Path, size: str, chosen: argparse.Namespace) -> Path:
    """One chain over a picture that ships."""
    head = ["version: 1", f"reference: {STORYBOARDS / 'images' / 'fox.jpg'}", f"resolution: {size}", "clips:"]
    clips = [f"  - {{prompt: {PROMPT} {number}, frames: {chosen.frames}}}" for number in range(chosen.clips)]
    board = folder / f"{size}.yaml"
    board.write_text("\n".join([*head, *clips]) + "\n", "utf-8")
    return board


def measure(folder: Path, size: str, chosen: argparse.Namespace) -> tuple[dict[str, Took], float]:
    """What each took, and the film's MB."""
    board = write_board(folder, size, chosen)
    heavy = folder / "heavy.mp4"
    heavy.write_bytes(bytes(MEGABYTES * 1_000_000))
    command = (PROGRAM, "render", board, "--engine", "animatic")
    progress(f"{size}, first render of {chosen.clips} clips")
    first = run_alone(command, folder)
    runs: dict[str, list[Took]] = {SECOND: [], START: [], HASH: []}
    for _ in range(chosen.runs):
        runs[SECOND].append(run_alone(command, folder))
        runs[START].append(run_alone((PROGRAM, "--help"), folder))
        runs[HASH].append(timed(lambda: sha256_file(heavy)))
    film = folder / "renders" / f"{size}.mp4"
    return {FIRST: first, **{name: median(each) for name, each in runs.items()}}, film.stat().st_size / 1e6


def report(measured: dict[str, tuple[dict[str, Took], float]], chosen: argparse.Namespace) -> Result:
    rows: list[tuple[Cell, ...]] = []
    findings = []
    for size, (took, megabytes) in measured.items():
        for name, each in took.items():
            rows.append((size, megabytes, name, each.wall, each.queued, each.free, each.cpu))
        second = took[SECOND]
        figure = f"{shown(second.free)} s (wall {shown(second.wall)} s; first {shown(took[FIRST].wall)} s)"
        what = f"render of {chosen.clips} unchanged clips, {size}"
        findings.append(Finding(what, figure, f"< {BUDGET:g} s", within(second, BUDGET)))
    columns = ("size", "film MB", "what", "wall s", "queued s", "wall - queued s", "CPU s")
    return Result(
        name="unchanged",
        question="how long does a second render of an unchanged board take?",
        settings={"runs": chosen.runs, "clips": chosen.clips, "frames a clip": chosen.frames},
        tables=(Table(f"Median of {chosen.runs} runs", columns, tuple(rows)),),
        findings=tuple(findings),
        notes=(QUEUEING, ABOUT),
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--frames", type=int, default=21, help="of every clip")
    parser.add_argument("--sizes", nargs="+", default=["416x240", "832x480"])
    chosen = parser.parse_args()
    measured = {}
    for size in chosen.sizes:
        with workplace() as folder:
            measured[size] = measure(folder, size, chosen)
    finish(report(measured, chosen), write=chosen.write)


if __name__ == "__main__":
    main()
