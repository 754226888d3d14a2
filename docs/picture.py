"""Draw `film.webp`, the README's moving picture: a shipped board as the animatic renders it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import av
from PIL import Image

HERE = Path(__file__).parent
BOARD = HERE.parent / "storyboards/demo.yaml"
SIZE = (416, 240)
EVERY = 6
"""Of so many frames one is shown."""
LARGEST = 300_000
"""Bytes."""


def frames_of(film: Path) -> list[Image.Image]:
    """Some frames of a film, scaled down."""
    with av.open(str(film)) as container:
        return [
            Image.fromarray(frame.to_ndarray(format="rgb24")).resize(SIZE, Image.Resampling.LANCZOS)
            for number, frame in enumerate(container.decode(video=0))
            if number % EVERY == 0
        ]


def draw() -> Path:
    """Render the board and write the picture at the highest quality that is small enough."""
    target = HERE / "film.webp"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "svi_story",
            "render",
            str(BOARD),
            "--engine",
            "animatic",
            "-o",
            folder,
        ]
        subprocess.run([*command, "--cache", f"{folder}/cache"], check=True)
        first, *others = frames_of(Path(folder, BOARD.stem).with_suffix(".mp4"))
    for quality in range(80, 10, -10):
        first.save(
            target, save_all=True, append_images=others, duration=EVERY * 1000 // 15, loop=0, quality=quality
        )
        if target.stat().st_size < LARGEST:
            return target
    raise SystemExit(f"{target} is larger than {LARGEST} bytes at any quality; show fewer frames")


if __name__ == "__main__":
    sys.stdout.write(f"{draw()}\n")
