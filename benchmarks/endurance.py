"""Does a long night with planted failures make all it can, nothing twice, in flat memory?"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from common import HERE, QUEUEING, Finding, Result, Table, finish, options, progress, workplace

sys.path.insert(0, str(HERE.parent / "tests"))
from endurance_night import (
    CLIPS,
    LOST,
    REFUSED,
    Faults,
    Night,
    heal,
    quarters,
    render,
    trouble_of,
    write_boards,
)

if TYPE_CHECKING:
    from pathlib import Path

ABOUT = (
    "The first night is killed (SIGKILL) after a fifth of its segments. In the second the disk is full for "
    "a while, some boards have no picture or a broken one, and the engine fails, has a bug or finds no "
    "memory for others. Before the third all is put right. Memory and open files are read at every finished "
    "segment; quarters are of the second night's."
)


def nights(folder: Path, count: int) -> dict[str, tuple[Night, float]]:
    """Three nights, and the seconds that each took."""
    boards = folder / "boards"
    write_boards(boards, count)
    plans = {
        "killed": Faults(kill_after=count * CLIPS // 5),
        "full disk, failures": Faults(full_after=count * CLIPS // 4),
        "healed": Faults(healed=True),
    }
    ended = {}
    for name, plan in plans.items():
        progress(f"{count} boards: {name}")
        if plan.healed:
            heal(boards)
        start = time.perf_counter()
        ended[name] = (render(boards, plan), time.perf_counter() - start)
    return ended


def report(ended: dict[str, tuple[Night, float]], count: int) -> Result:
    rows = tuple(
        (
            name,
            seconds,
            len(night.of("segment_done")),
            len(night.of("film_done")),
            len(night.of("board_delayed")),
            len(night.of("board_failed")),
            len(night.of("board_refused")),
            max((sample.rss for sample in night.samples), default=0) / 1e6,
        )
        for name, (night, seconds) in ended.items()
    )
    whole = [night for night, _ in ended.values()]
    made = sum((night.made() for night in whole), Counter[str]())
    samples = ended["full disk, failures"][0].samples
    rss = quarters([sample.rss for sample in samples])
    files = quarters([sample.files for sample in samples])
    lost = sum(trouble_of(number) in (*LOST, *REFUSED) for number in range(count))
    films = len(whole[1].of("film_done"))
    twice = sum(times > 1 for times in made.values())
    return Result(
        name="endurance",
        question="does a long night with planted failures make all it can, nothing twice, in flat memory?",
        settings={"boards": count, "clips": CLIPS, "size": "64x64", "frames a clip": 5},
        tables=(
            Table(
                "Three nights",
                ("night", "wall s", "segments", "films", "put off", "failed", "refused", "peak MB"),
                rows,
            ),
        ),
        findings=(
            _finding("segments made twice", str(twice), "0", twice == 0),
            _finding("films of the second night", str(films), str(count - lost), films == count - lost),
            _finding(
                "memory, last quarter",
                f"{rss[1] / rss[0]:.3f} x the first",
                "<= 1.1 x",
                rss[1] <= 1.1 * rss[0],
            ),
            _finding(
                "open files, last quarter",
                f"{files[1]:g} ({files[0]:g})",
                "the same",
                files[1] <= files[0] + 2,
            ),
        ),
        notes=(QUEUEING, ABOUT),
    )


def _finding(what: str, figure: str, budget: str, holds: object) -> Finding:
    return Finding(what, figure, budget, "holds" if holds else "missed")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--boards", type=int, default=200)
    chosen = parser.parse_args()
    with workplace() as folder:
        os.chdir(folder)
        ended = nights(folder, chosen.boards)
        os.chdir(HERE)
    finish(report(ended, chosen.boards), write=chosen.write)


if __name__ == "__main__":
    main()
