"""What do workers of a Ray cluster bring, on this machine: one and two, beside no Ray at all?"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from typing import TYPE_CHECKING

import yaml
from common import HERE, PROGRAM, QUEUEING, Finding, Result, Table, finish, options, progress, workplace
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MODELS = HERE.parent / "tests" / "data" / "svi" / "models"
WAYS: Mapping[str, tuple[str, ...]] = {
    "no Ray": (),
    "1 worker": ("--ray", "--workers", "1"),
    "2 workers": ("--ray", "--workers", "2"),
}
STARTING = (
    "*command*: the whole of it, with Python, torch in every worker, Ray started and ended. *making* leaves "
    "the start out: from the first segment that is started to the end."
)
THREADS = "One thread for each process that samples, so that a second worker is a second core."


def write_boards(folder: Path, boards: int, clips: int, steps: int) -> None:
    """Boards of one chain each, alike in everything but their words."""
    folder.mkdir()
    Image.linear_gradient("L").convert("RGB").save(folder / "picture.png")
    for number in range(boards):
        board = {
            "version": 1,
            "reference": "picture.png",
            "resolution": "128x96",
            "engine": {"variant": "2.0", "steps": steps, "max_frames": 9},
            "clips": [{"prompt": f"Fog {number}.{clip} is drifting."} for clip in range(clips)],
        }
        (folder / f"{number}.yaml").write_text(yaml.safe_dump(board), "utf-8")


def render(folder: Path, out: str, flags: tuple[str, ...]) -> tuple[float, float]:
    """Seconds of the whole command, and from the first segment's start on."""
    words = ["--models", str(MODELS), "--dtype", "float32", "-o", out, "--cache", f"{out}/cache", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    with subprocess.Popen(
        [PROGRAM, "render", "boards", *words, *flags],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        making = next(time.perf_counter() for line in process.stdout if '"segment_started"' in line)
        process.stdout.read()
    end = time.perf_counter()
    if process.returncode:
        raise RuntimeError(f"{out} ended with {process.returncode}")
    return end - start, end - making


def films(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.mp4"))]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--boards", type=int, default=8)
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    took: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    same = True
    with workplace() as folder:
        write_boards(folder / "boards", asked.boards, asked.clips, asked.steps)
        for turn in range(asked.rounds):
            for number, (way, flags) in enumerate(WAYS.items()):
                progress(f"round {turn + 1}: {way}")
                took[way].append(render(folder, f"out-{turn}-{number}", flags))
                same &= films(folder / f"out-{turn}-{number}") == films(folder / "out-0-0")
    whole, making = ({way: [one[k] for one in runs] for way, runs in took.items()} for k in (0, 1))
    rows = tuple((way, statistics.median(whole[way]), statistics.median(making[way])) for way in WAYS)
    gains = {
        way: statistics.median(a / b for a, b in zip(making["1 worker"], making[way], strict=True))
        for way in ("no Ray", "2 workers")
    }
    result = Result(
        name="cluster",
        question=str(__doc__),
        settings={"boards": asked.boards, "clips": asked.clips, "steps": asked.steps, "rounds": asked.rounds},
        tables=(Table("Medians", ("way", "command s", "making s"), rows),),
        findings=(
            Finding("2 workers beside 1", f"{gains['2 workers']:.3g} x as fast", "2 x on two idle cores"),
            Finding("no Ray beside 1 worker", f"{gains['no Ray']:.3g} x as fast"),
            Finding("films of all ways and rounds", "the same bit for bit" if same else "DIFFER", "the same"),
        ),
        notes=(STARTING, THREADS, QUEUEING),
    )
    finish(result, write=asked.write)


if __name__ == "__main__":
    main()
