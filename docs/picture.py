"""Draw the README's moving pictures from boards: `film.webp` by the animatic, `toy.webp` by the toy."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import av
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
ROOT = HERE.parent
LARGEST = 300_000
"""Bytes."""


class Picture(NamedTuple):
    """A moving picture of a board's film."""

    name: str
    board: str
    words: tuple[str, ...]
    """Options of `render`."""
    size: tuple[int, int]
    every: int
    """Of so many frames one is shown."""
    milliseconds: int
    """How long each is."""
    label: str = ""
    """Written below each."""


PICTURES = (
    Picture("film.webp", "demo.yaml", ("--engine", "animatic"), (416, 240), 6, 400),
    Picture(
        "toy.webp",
        "toy.yaml",
        ("--models", str(ROOT / "toy/models"), "--dtype", "float32"),
        (192, 192),
        1,
        83,
        "a toy model, not Wan 2.2",
    ),
)


def frames_of(film: Path, picture: Picture) -> list[Image.Image]:
    """Some frames of a film, in the picture's size."""
    with av.open(str(film)) as container:
        frames = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    larger = picture.size[0] > frames[0].width
    way = Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS
    return [labelled(frame.resize(picture.size, way), picture.label) for frame in frames[:: picture.every]]


def labelled(frame: Image.Image, label: str) -> Image.Image:
    """The frame with a line of text below it, if there is any."""
    if not label:
        return frame
    taller = Image.new("RGB", (frame.width, frame.height + 20), "white")
    taller.paste(frame)
    place = (frame.width // 2, frame.height + 10)
    ImageDraw.Draw(taller).text(place, label, "black", ImageFont.load_default(12), anchor="mm")
    return taller


def draw(picture: Picture) -> Path:
    """Render the board and write the picture at the highest quality that is small enough."""
    target, board = HERE / picture.name, ROOT / "storyboards" / picture.board
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "svi_story", "render", str(board), *picture.words, "-o", folder]
        subprocess.run([*command, "--cache", f"{folder}/cache"], check=True)
        first, *others = frames_of(Path(folder, board.stem).with_suffix(".mp4"), picture)
    pause = picture.milliseconds
    for quality in range(80, 10, -10):
        first.save(target, save_all=True, append_images=others, duration=pause, loop=0, quality=quality)
        if target.stat().st_size < LARGEST:
            return target
    raise SystemExit(f"{target} is larger than {LARGEST} bytes at any quality; show fewer frames")


if __name__ == "__main__":
    chosen = sys.argv[1:] or [picture.name for picture in PICTURES]
    for picture in PICTURES:
        if picture.name in chosen:
            sys.stdout.write(f"{draw(picture)}\n")
