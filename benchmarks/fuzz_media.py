"""Do mutated media files and bundles ever hang, take too much memory, or end in a traceback?"""

from __future__ import annotations

import os
import random
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import yaml
from common import HERE, QUEUEING, Finding, Result, Table, finish, options, progress, workplace
from PIL import Image

from svi_story.cli.app import app

sys.path.insert(0, str(HERE.parent / "tests"))
from media_fuzz import Outcome, bundles, peaks, pictures, sounds

from svi_story.media import guard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHARES = {"pictures": 0.45, "sounds": 0.4, "bundles": 0.15}
LONGEST, MOST_MEGABYTES = 5.0, 1000
ABOUT = (
    "Every file is a small good one, changed by flipped bits, other numbers in length fields, cuts, repeated "
    "parts and splices. Pictures and sounds are read as `plan` reads them, in the process behind the guard; "
    "bundles are unpacked, two of three with manifests that vouch for the change. *crashed* files ended the "
    "process behind the guard, and were refused."
)


def board_in(folder: Path) -> Path:
    """A small board whose film is made."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 16, 3), np.uint8)
    Image.fromarray(pixels).resize((96, 64)).save(folder / "anchor.png")
    board = folder / "board.yaml"
    fields = {
        "version": 1,
        "reference": "anchor.png",
        "resolution": "64x64",
        "engine": {"name": "animatic", "max_frames": 13},
        "clips": [{"prompt": "The fog is drifting over the lake.", "frames": 13}],
    }
    board.write_text(yaml.safe_dump(fields), "utf-8")
    app(["render", str(board)], standalone_mode=False)
    return board


def run(folder: Path, files: int, seed: int) -> dict[str, tuple[Outcome, float]]:
    """What became of each kind, and how long it took."""
    board = board_in(folder)
    kinds: dict[str, tuple[Callable[[random.Random, int, Path, Outcome], None], Path]] = {
        "pictures": (pictures, folder),
        "sounds": (sounds, folder),
        "bundles": (bundles, board),
    }
    done: dict[str, tuple[Outcome, float]] = {}
    for kind, (fuzz, place) in kinds.items():
        progress(f"{kind}: {round(files * SHARES[kind])}")
        outcome, began = Outcome(), time.monotonic()
        fuzz(random.Random(f"{kind} {seed}"), round(files * SHARES[kind]), place, outcome)
        done[kind] = (outcome, time.monotonic() - began)
    guard.stop()
    return done


def report(done: dict[str, tuple[Outcome, float]], seed: int) -> Result:
    outcomes = [outcome for outcome, _ in done.values()]
    rows = tuple(
        (
            kind,
            outcome.files.total(),
            outcome.read,
            outcome.refused,
            outcome.slow,
            len(outcome.crashed),
            outcome.longest,
            seconds,
        )
        for kind, (outcome, seconds) in done.items()
    )
    unexpected = [each for outcome in outcomes for each in outcome.unexpected]
    longest = max(outcome.longest for outcome in outcomes)
    own, child = peaks()
    total = sum(outcome.files.total() for outcome in outcomes)
    by_ending = sum((outcome.files for outcome in outcomes), Outcome().files)
    return Result(
        name="fuzz_media",
        question="do mutated media files ever hang, take too much memory, or end in a traceback?",
        settings={"files": total, "seed": seed},
        tables=(
            Table(
                "What became of them",
                ("kind", "files", "read", "refused", "too slow", "crashed", "slowest s", "wall s"),
                rows,
            ),
            Table("Files", ("ending", "files"), tuple(sorted(by_ending.items()))),
        ),
        findings=(
            _finding("errors that are none of ours", str(len(unexpected)), "0", not unexpected),
            _finding("the slowest file", f"{longest:.2f} s", f"<= {LONGEST:g} s", longest <= LONGEST),
            _finding(
                "most memory, this process and the guard's",
                f"{own:.0f} and {child:.0f} MB",
                f"<= {MOST_MEGABYTES} MB",
                own + child <= MOST_MEGABYTES,
            ),
        ),
        notes=(QUEUEING, ABOUT, *unexpected[:10]),
    )


def _finding(what: str, figure: str, budget: str, holds: object) -> Finding:
    return Finding(what, figure, budget, "holds" if holds else "missed")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=9)
    chosen = parser.parse_args()
    with workplace() as folder:
        os.chdir(folder)
        done = run(folder, chosen.files, chosen.seed)
        os.chdir(HERE)
    finish(report(done, chosen.seed), write=chosen.write)


if __name__ == "__main__":
    main()
