"""What does it save to store and decode a segment while the next one is sampled?"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common import (
    HERE,
    QUEUEING,
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
    workplace,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from common import Cell

DATA = HERE.parent / "tests" / "data" / "svi"
VARIANTS = ("2.0-pro", "2.0")
ALONE = """
from concurrent.futures import wait
from svi_story.render.executor import LocalExecutor
start = LocalExecutor._start_decoding
def start_and_wait(self, *args):
    start(self, *args)
    wait([self._decoding[1]])
LocalExecutor._start_decoding = start_and_wait
"""
APART = """
from svi_story.engines.svi.engine import Svi
Svi.decodes_beside = property(lambda _: False)
"""
WAYS = {
    "one after the other": ALONE + APART,
    "storing beside sampling": APART,
    "decoding and storing beside sampling": "",
}
"""What is changed in the program first."""
PROGRAM = "from svi_story.cli import main; main()"
ABOUT = (
    "The checkpoint of the tests on the CPU, one chain of clips with 2.0 Pro and two with 2.0. There the VAE "
    "and the experts share the cores: decoding beside sampling can hide only what runs on one of them. On a "
    "GPU it has not been measured. The first way is what all versions before did."
)


@dataclass(frozen=True)
class Way:
    """What one way cost, as a whole process and from the first segment's start to the last one's end."""

    took: Took
    rendering: float
    storing: float
    """Seconds without the device, of all segments."""
    decoding: float
    film: str
    """Its hash."""


def write_board(folder: Path, variant: str, chosen: argparse.Namespace) -> Path:
    # two chains of 2.0, which take turns: within a chain, a segment needs the last frame of the one before
    cut = (0, chosen.clips // 2)[variant == "2.0"]
    clips = [
        f"  - {{prompt: The boat is drifting past {clip}.{', transition: cut' * (0 < clip == cut)}}}"
        for clip in range(chosen.clips)
    ]
    steps = f"steps: {chosen.steps}, guidance: 1, max_frames: {chosen.frames}"
    head = ["version: 1", f"reference: {DATA / 'anchor.png'}", f"resolution: {chosen.size}"]
    head += [f"engine: {{name: svi, variant: {variant}, {steps}}}", "clips:"]
    board = folder / f"{variant}.yaml"
    board.write_text("\n".join([*head, *clips]) + "\n", "utf-8")
    return board


def rendered(board: Path, way: str, folder: Path) -> Way:
    out, told = folder / "out", folder / "told.jsonl"
    command = [sys.executable, "-c", WAYS[way] + PROGRAM, "render", board, "--json", "--force", "all"]
    command += ["--models", DATA / "models", "--dtype", "float32", "-o", out, "--cache", out / "cache"]
    took = run_alone(("sh", "-c", f"exec {shlex.join(map(str, command))} > {shlex.quote(str(told))}"), folder)
    events = [json.loads(line) for line in told.read_text("utf-8").splitlines()]
    done = [each for each in events if each["event"] == "segment_done"]
    logs = (out / "cache" / "runs").glob("*/events.jsonl")
    log = max(logs, key=lambda path: path.stat().st_mtime)
    times = {"segment_started": list[float](), "segment_done": list[float]()}
    for line in log.read_text("utf-8").splitlines():
        event = json.loads(line)
        if event["event"] in times:
            times[event["event"]].append(event["time"])
    return Way(
        took,
        max(times["segment_done"]) - min(times["segment_started"]),
        sum(each["storing"] for each in done),
        sum(each["decoding"] - each["storing"] for each in done),
        hashlib.sha256((out / f"{board.stem}.mp4").read_bytes()).hexdigest(),
    )


def report(found: dict[tuple[str, str], list[Way]], chosen: argparse.Namespace) -> Result:
    def middle(name: str, ways: Sequence[Way]) -> float:
        values: list[float] = sorted(getattr(way, name) for way in ways)
        return values[len(values) // 2]

    rows: list[tuple[Cell, ...]] = []
    findings: list[Finding] = []
    for (variant, way), runs in found.items():
        took = median([each.took for each in runs])
        rendering = middle("rendering", runs)
        device, disk = middle("decoding", runs), middle("storing", runs)
        rows.append((variant, way, took.wall, took.queued, took.cpu, rendering, device, disk))
        before = middle("rendering", found[variant, next(iter(WAYS))])
        if way != next(iter(WAYS)):
            figure = f"{rendering / before:.3g} of the time ({shown(rendering)} and {shown(before)} s)"
            findings.append(Finding(f"{variant}, {way}", figure))
        same = {each.film for each in runs} == {found[variant, next(iter(WAYS))][0].film}
        findings.append(
            Finding(f"{variant}, {way}: film", "same bytes" if same else "other bytes", "same bytes",
                    "holds" if same else "missed")
        )  # fmt: skip
    columns = ("variant", "way", "wall s", "queued s", "CPU s", "first to last s", "decoding s", "storing s")
    return Result(
        name="overlap",
        question="what does it save to store and decode a segment while the next one is sampled?",
        settings={name: getattr(chosen, name) for name in ("clips", "steps", "size", "frames", "runs")},
        tables=(Table("Films", columns, tuple(rows)),),
        findings=tuple(findings),
        notes=(QUEUEING, ABOUT),
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args()
    found: dict[tuple[str, str], list[Way]] = {(each, way): [] for each in VARIANTS for way in WAYS}
    with workplace() as folder:
        boards = {variant: write_board(folder, variant, chosen) for variant in VARIANTS}
        for number in range(chosen.runs):
            for (variant, way), runs in found.items():
                progress(f"run {number + 1}: {variant}, {way}")
                runs.append(rendered(boards[variant], way, folder))
    finish(report(found, chosen), write=chosen.write)


if __name__ == "__main__":
    main()
