"""What does a whole film cost, beside DiffSynth-Studio's pipeline as the SVI authors' script drives it?"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
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

from svi_story.cache.frames import Frames
from svi_story.cache.layout import FRAMES, Layout

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from common import Cell

    Costs = dict[tuple[str, str], Took]
    """By way and case."""

DATA = HERE.parent / "tests" / "data" / "svi"
DIFFSYNTH = "diffsynth==2.1.12"
NEEDS = ("einops", "modelscope", "pandas", "accelerate", "peft", "imageio[ffmpeg]")
"""Of DiffSynth, but for torch, transformers and safetensors, which our environment lends, and torchvision."""
WIDTH, HEIGHT, FRAMES_PER_CLIP, OVERLAP, GUIDANCE, FPS = 80, 64, 13, 5, 5, 15
NAMES = {"ours": "svi-story", "theirs": "DiffSynth"}
ABOUT = (
    "The checkpoint of the tests (two experts of two layers), SVI 2.0 Pro, one chain, float32 on the CPU; "
    "both sides use the same torch, and one thread for it. With so small a model the seconds are mostly "
    "Python starting and the work around the model: they say nothing about full-size seconds per step "
    "(`step.py` compares those)."
)
DRIVEN = (
    f"{DIFFSYNTH} is driven as the authors' script drives their fork of it: one process, all frames in "
    "memory, after every clip the film so far is encoded anew (quality 7), and at the end once more (5). The "
    "conditioning of SVI 2.0 Pro, which is in the fork only, replaces one unit of the pipeline. torchvision, "
    "which has no build for the CPU alone, is replaced by a module that raises an error when it is used."
)
WRITTEN = (
    "*written* is what reached disks (`write_bytes`), temporary files included. Ours keeps lossless frames "
    "and latents of every clip; theirs a film for each clip."
)
CASES = (
    "*one prompt changed*: that of the middle clip, after the whole film was made; in the chain, all later "
    "clips continue from it. *killed, then again*: SIGKILL as soon as half the clips are done, then the same "
    "command; the figures are those of the second run."
)


@dataclass(frozen=True)
class Place:
    """Where one way works."""

    name: str
    folder: Path
    python: Path

    @property
    def films(self) -> Path:
        """Where it leaves its film."""
        return self.folder / "films"

    def command(self, prompts: Sequence[str], steps: int, *, compare: bool = False) -> list[str | Path]:
        """The command that makes the film of these prompts, in an empty folder or in one that has it."""
        self.films.mkdir(parents=True, exist_ok=True)
        if self.name == "ours":
            board = self.folder / "film.yaml"
            board.write_text(_board(prompts, steps), "utf-8")
            command = [PROGRAM, "render", board, "--json", "--models", DATA / "models", "--dtype", "float32"]
            command += ["-o", self.films, "--cache", self.folder / "cache"]
            told = shlex.quote(str(self.folder / "events.jsonl"))
            return ["sh", "-c", f"exec {shlex.join(map(str, command))} > {told}"]
        film = {
            "models": str(DATA / "models"),
            "anchor": str(DATA / "anchor.png"),
            "folder": str(self.films),
            "prompts": list(prompts),
            "negative_prompt": _negative_prompt(),
            "seeds": [seed_of(number) for number in range(len(prompts))],
            "width": WIDTH,
            "height": HEIGHT,
            "frames": FRAMES_PER_CLIP,
            "overlap": OVERLAP,
            "steps": steps,
            "guidance": GUIDANCE,
            "fps": FPS,
            "compare": compare,
        }
        (self.folder / "film.json").write_text(json.dumps(film), "utf-8")
        return [self.python, HERE / "upstream_film.py", self.folder / "film.json"]

    def clips_done(self) -> int:
        """How many clips are finished so far."""
        if self.name == "ours":
            return len(list((self.folder / "cache" / "entries").glob(f"**/{FRAMES}")))
        return len(list(self.films.glob("clip_*.mp4")))

    def clear(self) -> None:
        """Start from nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)


def seed_of(number: int) -> int:
    """As the authors' script sets it."""
    return 42 * number


def _negative_prompt() -> str:
    settings = json.loads((DATA / "settings.json").read_text("utf-8"))
    return str(settings["negative_prompt"])


def _board(prompts: Sequence[str], steps: int) -> str:
    clips = [{"prompt": prompt, "seed": seed_of(number)} for number, prompt in enumerate(prompts)]
    engine = {"name": "svi", "variant": "2.0-pro", "steps": steps, "guidance": GUIDANCE, "shift": 5}
    board = {
        "version": 1,
        "reference": str(DATA / "anchor.png"),
        "resolution": f"{WIDTH}x{HEIGHT}",
        "fps": FPS,
        "negative_prompt": _negative_prompt(),
        "engine": {**engine, "boundary": 0.875, "max_frames": FRAMES_PER_CLIP},
        "clips": clips,
    }
    return json.dumps(board, ensure_ascii=False)  # which is YAML too


def prompts_of(clips: int) -> list[str]:
    """One sentence for each clip."""
    return [f"A small boat is drifting past island {number} in the evening." for number in range(clips)]


def install(folder: Path) -> Path:
    """An environment of DiffSynth's own, which borrows our torch, unless it is there already; its Python."""
    python = folder / "bin" / "python"
    if python.exists():
        return python
    progress("install DiffSynth")
    venv.create(folder, with_pip=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    lent = folder / "lib" / version / "site-packages" / "lent.pth"
    lent.write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", DIFFSYNTH], check=True)
    subprocess.run([*pip, *NEEDS], check=True)
    return python


def largest_difference(places: dict[str, Place], steps: int) -> tuple[int, float]:
    """Between both ways' frames of three clips: in levels of 255, and the share of values above 1 level.

    Also the first run of both, which fills the page cache.
    """
    import numpy as np

    for place in places.values():
        run_alone(place.command(prompts_of(3), steps, compare=True), place.folder)
    ours = places["ours"]
    lines = (ours.folder / "events.jsonl").read_text("utf-8").splitlines()
    started = [event for event in map(json.loads, lines) if event["event"] == "segment_started"]
    mine = []
    for number, event in enumerate(started):
        with Frames(Layout(ours.folder / "cache").entry(event["key"]) / FRAMES) as frames:
            mine += list(frames)[OVERLAP if number else 0 :]
    other = np.load(places["theirs"].films / "pictures.npy").astype(int)
    difference = np.abs(np.stack(mine).astype(int) - other)
    for place in places.values():
        place.clear()
    return int(difference.max()), float((difference > 1).mean())


def measure(places: dict[str, Place], clips: int, steps: int) -> Costs:
    """What each way costs for each case of a film of so many clips."""
    took: Costs = {}
    prompts = prompts_of(clips)
    changed = [*prompts]
    changed[clips // 2] = "A heron is standing in the reeds and looking up."
    for name, place in places.items():

        def run(texts: Sequence[str], place: Place = place, kill: Callable[[], bool] | None = None) -> Took:
            return run_alone(place.command(texts, steps), place.folder, kill)

        def half(place: Place = place) -> bool:
            return place.clips_done() >= clips // 2

        progress(f"{clips} clips: {NAMES[name]}")
        took[name, "whole film"] = run(prompts)
        took[name, "one prompt changed"] = run(changed)
        place.clear()
        run(prompts, kill=half)
        took[name, "killed, then again"] = run(prompts)
        place.clear()
    return took


def report(
    measured: dict[int, Costs],
    difference: tuple[int, float],
    chosen: argparse.Namespace,
) -> Result:
    import torch

    rows: list[tuple[Cell, ...]] = []
    findings = [_same(difference)]
    for clips, took in measured.items():
        for (name, case), it in took.items():
            rows.append((clips, case, NAMES[name], it.wall, it.queued, it.cpu, it.peak, it.written))
        findings += [_finding(clips, case, took) for case in dict.fromkeys(case for _, case in took)]
    findings += [_each(name, measured) for name in NAMES]
    return Result(
        name="upstream",
        question="what does a whole film cost, beside DiffSynth driven as the SVI authors' script drives it?",
        settings={
            "clips": ", ".join(map(str, chosen.clips)),
            "frames of a clip": FRAMES_PER_CLIP,
            "steps": chosen.steps,
            "size": f"{WIDTH}x{HEIGHT}",
            "torch": torch.__version__,
            "DiffSynth": DIFFSYNTH.partition("==")[2],
        },
        tables=(
            Table(
                "Films",
                ("clips", "case", "way", "wall s", "queued s", "CPU s", "peak MB", "written MB"),
                tuple(rows),
            ),
        ),
        findings=tuple(findings),
        notes=(ABOUT, DRIVEN, CASES, WRITTEN, QUEUEING),
    )


def _same(difference: tuple[int, float]) -> Finding:
    most, above = difference
    figure = f"{most} of 255 at most, {100 * above:.2g} % of the values more than 1"
    return Finding("difference of the frames, 3 clips", figure, "<= 1 on 99.9 %", _verdict(above <= 1e-3))


def _verdict(holds: bool) -> str:  # noqa: FBT001 - what it is about stands before it
    return "holds" if holds else "missed"


def _finding(clips: int, case: str, took: Costs) -> Finding:
    ours, theirs = took["ours", case], took["theirs", case]

    def ratio(of: Callable[[Took], float], unit: str) -> str:
        return f"{of(ours) / of(theirs):.2g} x {unit} ({shown(of(ours))} and {shown(of(theirs))})"

    wall = ratio(lambda it: it.wall, "wall s")
    cpu = ratio(lambda it: it.cpu, "CPU s")
    peak = ratio(lambda it: it.peak, "peak MB")
    written = f"written MB {shown(ours.written)} and {shown(theirs.written)}"
    return Finding(f"{clips} clips, {case}, beside DiffSynth", f"{wall}, {cpu}, {peak}, {written}")


def _each(name: str, measured: dict[int, Costs]) -> Finding:
    """What one clip more costs, without what starting costs."""
    least, most = min(measured), max(measured)
    few, many = (measured[clips][name, "whole film"] for clips in (least, most))
    cpu, wall = (many.cpu - few.cpu) / (most - least), (many.wall - few.wall) / (most - least)
    return Finding(f"a clip more, {least} to {most} clips: {NAMES[name]}", f"{wall:.2g} s, {cpu:.2g} CPU s")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[3, 6, 12], help="two films at least")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--environment", type=Path, help="where DiffSynth is installed, and stays")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # threads that wait for each other on a busy machine cost CPU time
    with workplace() as folder:
        python = install(chosen.environment or folder / "diffsynth")
        places = {name: Place(name, folder / name, python) for name in NAMES}
        progress("compare the frames")
        difference = largest_difference(places, chosen.steps)
        measured = {clips: measure(places, clips, chosen.steps) for clips in chosen.clips}
    finish(report(measured, difference, chosen), write=chosen.write)


if __name__ == "__main__":
    main()
