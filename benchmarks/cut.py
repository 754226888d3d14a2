"""What does the cut cost, beside moviepy's own way and upstream's? Time, memory, and the right frames."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from common import (
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
from footage import bed, footage, numbers_in

from svi_story.cache.frames import write_frames

if TYPE_CHECKING:
    import argparse

    from common import Cell

FOOTAGE = 4
"""Different clips; a film of more shows them again."""
CRF = 18
FLAT = 1.10
"""Largest peak of many clips, beside that of few."""
NAMES = {
    "pieces": "pieces, join after every clip",
    "again": "cut again, one caption changed",
    "music": "cut again, the music changed",
    "moviepy": "moviepy concatenate_videoclips",
    "upstream": "upstream: all in RAM, re-encoded",
    "computed": "upstream, computed",
}
SHARED = (
    "Other processes share this machine: compare the ratios and CPU seconds within this run, not wall "
    "seconds with another machine's. Every film is cut by a process of its own, one at a time."
)
WORK = (
    "All ways read the same lossless clips, use every frame, and encode with libx264, medium, 4 threads. "
    "Ours and upstream's leave a watchable film after every clip. "
    "*cut again* finds the other pieces there; the new music is 20 s long, looped, mixed and encoded. "
    "The next piece begins while x264 empties its queue of the one before."
)
MEMORY = (
    "*peak MB*: the process and its children together, shared pages counted once, looked at often. "
    "*doubled* and *missing* frames are found by decoding the film: every frame shows its number."
)
UPSTREAM = (
    "*upstream, computed*: cutting n clips its way is n (n + 1) / 2 encodings of one clip, and n clips of "
    "pictures in memory, four bytes a pixel; the films it was measured on are above."
)


WAYS = ("pieces", "again", "music", "moviepy", "upstream")
OURS = WAYS[:3]


@dataclass(frozen=True)
class Cut:
    """One film, cut one way."""

    way: str
    clips: int
    took: Took
    doubled: int | None
    missing: int | None


def measure(folder: Path, chosen: argparse.Namespace) -> list[Cut]:
    """Every way, in turn, for films of so many clips."""
    width, height = map(int, chosen.size.split("x"))
    for number in range(FOOTAGE):
        clip = footage(chosen.frames, width, height, number)
        write_frames(folder / f"footage-{number}.avi", clip, Fraction(15))
    bed(folder / "bed.wav")
    cuts = []
    for clips in sorted(chosen.clips):
        for way in WAYS if clips <= chosen.upstream else WAYS[:-1]:
            progress(f"{clips} clips, {NAMES[way]}")
            cuts.append(cut(folder, way, clips, chosen.frames))
    return cuts


def cut(folder: Path, way: str, clips: int, frames: int) -> Cut:
    """One film, and whether it has the frames it should have."""
    script = Path(__file__).with_name("cut_ways.py")
    took = run_alone((sys.executable, script, way, folder, str(clips), str(CRF)), folder)
    film = folder / f"{way}.mp4"
    told = list(numbers_in(film))
    runs = sum(1 for _ in groupby(told))
    film.unlink()
    return Cut(way, clips, took, doubled=len(told) - runs, missing=clips * frames - runs)


def rows_of(cuts: list[Cut]) -> tuple[tuple[Cell, ...], ...]:
    """Each cut, beside ours of as many clips."""
    ours = {each.clips: each.took for each in cuts if each.way == "pieces"}
    return tuple(
        (
            each.clips,
            NAMES[each.way],
            *(each.took.wall, each.took.cpu),
            *(each.took.wall / ours[each.clips].wall, each.took.cpu / ours[each.clips].cpu),
            *(round(each.took.peak), each.took.peak / ours[each.clips].peak),
            *(each.doubled, each.missing),
        )
        for each in cuts
    )


def computed(known: Cut, clips: int, chosen: argparse.Namespace) -> Cut:
    """Upstream's way where it would take too long, from a film that was cut that way."""
    factor = clips * (clips + 1) / (known.clips * (known.clips + 1))
    width, height = map(int, chosen.size.split("x"))
    more = (clips - known.clips) * chosen.frames * width * height * 4 / 1e6
    took = Took(known.took.wall * factor, 0.0, known.took.cpu * factor, known.took.peak + more)
    return Cut("computed", clips, took, doubled=None, missing=None)


def with_computed(cuts: list[Cut], chosen: argparse.Namespace) -> list[Cut]:
    """The films that were cut, and those that upstream's way would take too long for, by clips."""
    known = [each for each in cuts if each.way == "upstream"][-1:]
    more = [computed(last, clips, chosen) for last in known for clips in chosen.clips if clips > last.clips]
    return sorted(cuts + more, key=lambda each: each.clips)


def findings(cuts: list[Cut]) -> tuple[Finding, ...]:
    """Flat memory, speed beside the others, the right frames."""
    ours = [each for each in cuts if each.way == "pieces"]
    few, many = ours[0], ours[-1]
    growth = many.took.peak / few.took.peak
    what = f"peak memory of {many.clips} clips, beside {few.clips}"
    figure = f"{shown(growth)} x ({many.took.peak:.0f} and {few.took.peak:.0f} MB)"
    wrong = sum((each.doubled or 0) + (each.missing or 0) for each in cuts if each.way in OURS)
    found = [
        Finding(what, figure, f"<= {FLAT:g} x", "holds" if growth <= FLAT else "missed"),
        Finding("frames doubled or missing in our films", str(wrong), "0", "missed" if wrong else "holds"),
    ]
    return (*found, *(_beside(each, ours) for each in cuts if each.way != "pieces"))


def _beside(other: Cut, ours: list[Cut]) -> Finding:
    mine = next(each.took for each in ours if each.clips == other.clips)
    wall, cpu, peak = (getattr(other.took, name) / getattr(mine, name) for name in ("wall", "cpu", "peak"))
    figure = f"{shown(wall)} x our wall time, {shown(cpu)} x CPU, {shown(peak)} x memory"
    return Finding(f"{other.clips} clips, {NAMES[other.way]}", figure)


def report(cuts: list[Cut], chosen: argparse.Namespace) -> Result:
    ratios = ("x our wall", "x our CPU", "peak MB", "x our peak")
    columns = ("clips", "way", "wall s", "CPU s", *ratios, "doubled", "missing")
    settings = {"size": chosen.size, "frames a clip": chosen.frames, "different clips": FOOTAGE, "crf": CRF}
    return Result(
        name="cut",
        question="what does the cut cost, beside moviepy's own way and upstream's?",
        settings=settings,
        tables=(Table("Films from finished clips", columns, rows_of(cuts)),),
        findings=findings(cuts),
        notes=(SHARED, WORK, MEMORY, UPSTREAM),
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--size", default="832x480")
    parser.add_argument("--frames", type=int, default=81, help="of every clip")
    parser.add_argument("--upstream", type=int, default=4, help="the most clips to cut upstream's way")
    chosen = parser.parse_args()
    with workplace() as folder:
        cuts = measure(folder, chosen)
    finish(report(with_computed(cuts, chosen), chosen), write=chosen.write)


if __name__ == "__main__":
    main()
