"""What does rendering boards together save, beside one run for each, and beside upstream's way?"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common import (
    HERE,
    PROGRAM,
    QUEUEING,
    Finding,
    Result,
    Table,
    Took,
    finish,
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
EXPERTS = ("high", "low")
ABOUT = (
    "The checkpoint of the tests (two experts of 1.2 MiB), one chain a board, `--memory offload`. An expert "
    "*comes* when it is loaded from its files or moved to the device; times the size of real experts (28.6 "
    "GB each in bfloat16), that is what a GPU waits for. The seconds here are mostly starting Python and "
    "torch."
)
UPSTREAM = (
    "*upstream's way* is computed from the separate runs: a fresh process for each board and both experts "
    "for each clip, as they have, and the film so far encoded anew after every clip: for n clips n(n+1)/2 "
    "pieces instead of n, at the seconds that our pieces took."
)


@dataclass(frozen=True)
class Way:
    """What one way of rendering all boards cost."""

    name: str
    wall: float
    cpu: float
    processes: int
    came: int
    """Times that an expert came to the device."""
    moved: int
    """Bytes."""
    encoded: int
    """Pieces of film."""
    encoding: float
    """Seconds."""

    @property
    def row(self) -> tuple[Cell, ...]:
        """As it stands in the table."""
        megabytes = self.moved / 1e6
        return (self.name, self.wall, self.cpu, self.processes, self.came, megabytes, self.encoded)


def write_boards(folder: Path, chosen: argparse.Namespace) -> list[Path]:
    """Boards of one chain each, which share nothing."""
    (folder / "boards").mkdir()
    boards = []
    for number in range(chosen.boards):
        clips = [f"  - {{prompt: Boat {number} is drifting past {clip}.}}" for clip in range(chosen.clips)]
        engine = f"engine: {{name: svi, steps: {chosen.steps}, guidance: 1, max_frames: 5}}"
        head = ["version: 1", f"reference: {DATA / 'anchor.png'}", "resolution: 32x32", engine, "clips:"]
        boards.append(folder / "boards" / f"{number:03}.yaml")
        boards[-1].write_text("\n".join([*head, *clips]) + "\n", "utf-8")
    return boards


def rendered(name: str, paths: Sequence[Path], folder: Path) -> Way:
    """One process for each path."""
    took: list[Took] = []
    events = []
    for path in paths:
        told = folder / f"{name}-{path.stem}.jsonl"
        command = [PROGRAM, "render", path, "--json", "--models", DATA / "models", "--dtype", "float32"]
        command += ["--memory", "offload", "-o", folder / name, "--cache", folder / name / "cache"]
        line = f"exec {shlex.join(map(str, command))} > {shlex.quote(str(told))}"
        took.append(run_alone(("sh", "-c", line), folder))
        events += [json.loads(text) for text in told.read_text("utf-8").splitlines()]
    came = [each for each in events if each["event"] in ("model_loaded", "model_moved")]
    came = [each for each in came if each["model"] in EXPERTS]
    pieces = [each["seconds"] for each in events if each["event"] == "piece_done"]
    return Way(
        name=name,
        wall=sum(each.wall for each in took),
        cpu=sum(each.cpu for each in took),
        processes=len(took),
        came=len(came),
        moved=sum(each["bytes"] for each in came),
        encoded=len(pieces),
        encoding=sum(pieces),
    )


def upstream(separate: Way, clips: int) -> Way:
    """The separate runs with the film so far encoded after every clip: computed, see the notes."""
    more = (clips + 1) / 2 - 1
    return Way(
        name="upstream's way, computed",
        wall=separate.wall + more * separate.encoding,
        cpu=separate.cpu + more * separate.encoding,
        processes=separate.processes,
        came=separate.came,
        moved=separate.moved,
        encoded=round(separate.encoded * (1 + more)),
        encoding=separate.encoding * (1 + more),
    )


def report(ways: Sequence[Way], chosen: argparse.Namespace) -> Result:
    together = ways[0]
    findings = [
        Finding("expert loads of all boards together", str(together.came), "2 for each clip of the longest",
                "holds" if together.came <= 2 * chosen.clips else "missed"),
        *(
            Finding(
                f"{way.name}, beside together",
                f"{way.came / together.came:.3g} x expert loads, {way.wall / together.wall:.3g} x wall "
                f"({shown(way.wall)} and {shown(together.wall)} s)",
            )
            for way in ways[1:]
        ),
    ]  # fmt: skip
    columns = ("way", "wall s", "CPU s", "processes", "experts came", "MB moved", "pieces encoded")
    return Result(
        name="batch",
        question="what does rendering boards together save, beside one run for each and upstream's way?",
        settings={"boards": chosen.boards, "clips": chosen.clips, "steps": chosen.steps, "size": "32x32"},
        tables=(Table("All boards", columns, tuple(way.row for way in ways)),),
        findings=tuple(findings),
        notes=(QUEUEING, ABOUT, UPSTREAM),
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--boards", type=int, default=12)
    parser.add_argument("--clips", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    chosen = parser.parse_args()
    with workplace() as folder:
        boards = write_boards(folder, chosen)
        progress(f"{chosen.boards} boards together")
        together = rendered("together", [folder / "boards"], folder)
        progress(f"{chosen.boards} boards one by one")
        separate = rendered("a run for each", boards, folder)
    finish(report((together, separate, upstream(separate, chosen.clips)), chosen), write=chosen.write)


if __name__ == "__main__":
    main()
