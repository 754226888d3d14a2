"""How long until the command line answers? Whole processes, with short boards and with a thousand clips."""

from __future__ import annotations

import shutil
import sys
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
    within,
    workplace,
)
from footage import footage
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLIPS = 1000
CHAINS = 10
START, PLAN = 0.5, 1.0
"""Seconds: the budgets of the command line's start and of a plan of a thousand clips."""

PROMPT = "The fox number {} is walking along the shore of a lake while thin mist is drifting over the water."


FIRST = (
    "*first*: no hash is known yet, so every reference image is opened, fitted and hashed; there is no "
    "budget for that. `plan` and `render` keep the hashes, `validate` only uses them."
)


def write_board(folder: Path) -> Path:
    """A board of a thousand clips in ten chains, each with a reference of its own, of full HD."""
    lines = ["version: 1", "reference: 0.png", "clips:"]
    for index in range(CLIPS):
        lines += [f"  - id: clip-{index:04}", f"    prompt: {PROMPT.format(index)}", "    duration: 5s"]
        chain, place = divmod(index, CLIPS // CHAINS)
        if chain and not place:
            lines += ["    transition: cut", f"    reference: {chain}.png"]
    for chain in range(CHAINS):
        Image.fromarray(next(footage(1, 1920, 1080, chain))).save(folder / f"{chain}.png", compress_level=1)
    board = folder / "thousand.yaml"
    board.write_text("\n".join(lines) + "\n", "utf-8")
    return board


def measure(folder: Path, runs: int) -> dict[str, Took]:
    """Every command once per round, so that whatever else the machine does meets all of them."""
    board = write_board(folder)
    plan = (PROGRAM, "plan", board, "--engine", "animatic")
    demo = STORYBOARDS / "demo.yaml"

    def forget() -> None:
        shutil.rmtree(folder / "renders", ignore_errors=True)

    def keep() -> None:
        pass

    steps: dict[str, tuple[Callable[[], None], tuple[str | Path, ...]]] = {
        "python -c pass": (keep, (sys.executable, "-c", "pass")),
        "--help": (keep, (PROGRAM, "--help")),
        "schema": (keep, (PROGRAM, "schema")),
        "validate, 4 clips": (keep, (PROGRAM, "validate", demo)),
        f"validate, {CLIPS} clips, first": (forget, (PROGRAM, "validate", board)),
        f"plan, {CLIPS} clips, first": (forget, plan),
        f"plan, {CLIPS} clips, hashes memoised": (keep, plan),
        f"validate, {CLIPS} clips, hashes memoised": (keep, (PROGRAM, "validate", board)),
    }
    took: dict[str, list[Took]] = {name: [] for name in steps}
    for number in range(runs):
        progress(f"round {number + 1} of {runs}")
        for name, (prepare, command) in steps.items():
            prepare()
            took[name].append(run_alone(command, folder))
    return {name: median(each) for name, each in took.items()}


def budget_of(name: str) -> float | None:
    if name.startswith("python") or name.endswith("first"):
        return None
    return PLAN if str(CLIPS) in name else START


def report(took: dict[str, Took], runs: int) -> Result:
    rows = tuple(
        (name, each.wall, each.queued, each.free, each.cpu, budget_of(name)) for name, each in took.items()
    )
    columns = ("command", "wall s", "queued s", "wall - queued s", "CPU s", "budget s")
    findings = tuple(
        Finding(name, f"{shown(each.free)} s (wall {shown(each.wall)})", f"< {most:g} s", within(each, most))
        for name, each in took.items()
        if (most := budget_of(name)) is not None
    )
    return Result(
        name="start",
        question="how long until the command line answers?",
        settings={"runs": runs, "clips": CLIPS, "references": CHAINS, "reference size": "1920x1080 PNG"},
        tables=(Table(f"Whole processes, median of {runs} runs", columns, rows),),
        findings=findings,
        notes=(
            QUEUEING,
            FIRST,
            "The 1 s is the budget of `plan`; `validate` does a part of the same work and is held to it too.",
        ),
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", type=int, default=9)
    chosen = parser.parse_args()
    with workplace() as folder:
        took = measure(folder, chosen.runs)
    finish(report(took, chosen.runs), write=chosen.write)


if __name__ == "__main__":
    main()
