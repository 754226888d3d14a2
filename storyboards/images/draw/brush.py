"""A small paint box: anti-aliased shapes, soft light and cut paper, as plain functions on arrays.

A picture is height x width x 3 and a mask height x width, both float32 in 0..1 (sRGB). Points are (x, y)
in pixels of the finished picture. Nothing is rounded to 8 bits before `save`, so gradients stay smooth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from pathlib import Path

Array = NDArray[np.float32]
Point = tuple[float, float]
Outline = Sequence[Point]
Size = tuple[int, int]  # width, height

SUPERSAMPLE = 4
GRAIN = 0.008


def rgb(colour: str) -> Array:
    """A colour written as `#rrggbb`."""
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], np.float32)


def gradient(size: Size, *stops: tuple[float, str]) -> Array:
    """A picture that runs from colour to colour down the page; stops are (y in pixels, colour)."""
    rows = np.arange(size[1])
    places = [place for place, _ in stops]
    bands = [np.interp(rows, places, [rgb(colour)[band] for _, colour in stops]) for band in range(3)]
    column = np.stack(bands, axis=-1).astype(np.float32)
    return np.repeat(column[:, None, :], size[0], axis=1)


def shapes(size: Size, outlines: Iterable[Outline]) -> Array:
    """The mask of filled outlines."""
    canvas = Image.new("L", (size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE))
    draw = ImageDraw.Draw(canvas)
    for outline in outlines:
        draw.polygon([(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in outline], fill=255)
    return _reduce(canvas)


def strokes(size: Size, lines: Iterable[Outline], width: float) -> Array:
    """The mask of lines of one width, round at the joints."""
    canvas = Image.new("L", (size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE))
    draw = ImageDraw.Draw(canvas)
    for line in lines:
        points = [(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in line]
        draw.line(points, fill=255, width=max(1, round(width * SUPERSAMPLE)), joint="curve")
    return _reduce(canvas)


def _reduce(canvas: Image.Image) -> Array:
    return np.asarray(canvas.reduce(SUPERSAMPLE), np.float32) / np.float32(255)


def dots(text: str) -> list[Point]:
    """Points written as in SVG: `x,y x,y ...`."""
    pairs = (pair.split(",") for pair in text.split())
    return [(float(x), float(y)) for x, y in pairs]


def disc(centre: Point, radius: float, tall: float = 1.0) -> list[Point]:
    """The outline of a circle; `tall` stretches it up and down."""
    turns = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    return [(centre[0] + radius * np.cos(t), centre[1] + radius * tall * np.sin(t)) for t in turns]


def box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """The outline of a rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def curve(points: Outline, *, closed: bool = True, steps: int = 14) -> list[Point]:
    """A smooth line through the points (Catmull-Rom). A point given twice is a sharp corner."""
    knots = np.array(points, np.float64)
    padded = np.pad(knots, ((1, 2), (0, 0)), mode="wrap" if closed else "edge")
    line: list[Point] = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        if (b == c).all():
            continue
        for t in np.linspace(0, 1, steps, endpoint=False):
            p = 2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
            line.append((p[0] / 2, p[1] / 2))
    return line if closed else [*line, (knots[-1][0], knots[-1][1])]


def moved(outline: Outline, to: Point, scale: float = 1.0, *, mirror: bool = False) -> list[Point]:
    """An outline drawn around (0, 0), brought to its place and size."""
    side = -scale if mirror else scale
    return [(to[0] + x * side, to[1] + y * scale) for x, y in outline]


def turned(outline: Outline, degrees: float) -> list[Point]:
    """An outline turned clockwise around (0, 0)."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in outline]


def cloud(place: Point, scale: float) -> list[list[Point]]:
    """The outlines of a cloud: round above, flat below."""
    puffs = (
        (-96, 0, 32),
        (-54, -20, 46),
        (8, -32, 58),
        (68, -16, 44),
        (110, 2, 30),
        (30, 0, 40),
        (-20, 0, 40),
    )
    discs = [moved(disc((x, y), radius), place, scale) for x, y, radius in puffs]
    flat = place[1] + 14 * scale
    return [[(x, min(y, flat)) for x, y in outline] for outline in discs]


def blade(foot: Point, height: float, bend: float, width: float) -> list[Point]:
    """The outline of a long leaf that rises from its foot and bends to one side."""
    ups = np.linspace(0, 1, 24)
    xs, ys = foot[0] + bend * ups**2, foot[1] - height * (ups - 0.25 * abs(bend) / height * ups**3)
    half = width / 2 * np.sqrt(1 - ups) * (0.7 + ups)
    left = [(float(x - w), float(y)) for x, y, w in zip(xs, ys, half, strict=True)]
    right = [(float(x + w), float(y)) for x, y, w in zip(xs, ys, half, strict=True)]
    return [*left, *right[::-1]]


def ridge(
    size: Size, base: float, height: float, seed: int, waves: Sequence[float] = (1, 2.3, 5.1)
) -> Outline:
    """Everything below a hilly line around y = base, as an outline; waves are hills per picture width."""
    rng = np.random.default_rng(seed)
    xs = np.linspace(-20, size[0] + 20, 240)
    ys = np.full_like(xs, base)
    for wave in waves:
        ys += height / wave**0.8 * np.sin(2 * np.pi * wave * xs / size[0] + rng.uniform(0, 2 * np.pi))
    line = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
    return [*line, (size[0] + 20, size[1] + 20), (-20, size[1] + 20)]


def glow(size: Size, centre: Point, radius: float, *, tall: float = 1.0) -> Array:
    """A soft round light that fades to about a third at the radius."""
    xs = np.arange(size[0], dtype=np.float32)[None, :]
    ys = np.arange(size[1], dtype=np.float32)[:, None]
    distance = ((xs - centre[0]) ** 2 + ((ys - centre[1]) / tall) ** 2) / radius**2
    return np.exp(-distance).astype(np.float32)


def blur(mask: Array, radius: float) -> Array:
    """A mask out of focus: three box blurs, close to a Gaussian of standard deviation `radius`."""
    reach = max(1, round(radius))
    for axis in (0, 1, 0, 1, 0, 1):
        mask = _box_blur(mask, reach, axis)
    return mask


def _box_blur(mask: Array, reach: int, axis: int) -> Array:
    pads = [(reach + 1, reach) if i == axis else (0, 0) for i in range(2)]
    sums = np.cumsum(np.pad(mask, pads, mode="edge"), axis=axis, dtype=np.float64)
    width = 2 * reach + 1
    length = mask.shape[axis]
    ahead = np.take(sums, range(width, width + length), axis=axis)
    behind = np.take(sums, range(length), axis=axis)
    return ((ahead - behind) / width).astype(np.float32)


def paint(picture: Array, colour: str | Array, mask: Array, opacity: float = 1.0) -> None:
    """Cover the picture where the mask is, with one colour or another picture."""
    cover = rgb(colour) if isinstance(colour, str) else colour
    picture += (cover - picture) * (mask * opacity)[..., None]


def light(picture: Array, colour: str, mask: Array, strength: float = 1.0) -> None:
    """Shine on the picture where the mask is (screen blend): it gets brighter and never burns out."""
    shine = rgb(colour) * (mask * strength)[..., None]
    picture[:] = 1 - (1 - picture) * (1 - shine)


def sheet(picture: Array, colour: str | Array, mask: Array, *, lift: float = 8, dark: float = 0.35) -> None:
    """Lay a sheet of cut paper on the picture: its shadow falls down around it, its upper edge is lit."""
    shadow = blur(_lowered(mask, round(lift / 2)), lift) * (1 - mask)
    paint(picture, "#0a0a1e", shadow, dark)
    paint(picture, colour, mask)
    light(picture, "#ffffff", np.clip(mask - _lowered(mask, 2), 0, 1), 0.22)


def _lowered(mask: Array, rows: int) -> Array:
    return np.pad(mask, ((rows, 0), (0, 0)), mode="edge")[: len(mask)]


def fibres(picture: Array, seed: int, strength: float = 0.012) -> None:
    """Give the whole picture the faint tooth of paper."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(picture.shape[:2]).astype(np.float32)
    tooth = blur(noise, 2) * 6 + blur(noise, 9) * 14
    picture *= 1 + strength * tooth[..., None]


def save(picture: Array, path: Path, seed: int = 0) -> None:
    """Write the picture as JPEG, with a grain that keeps gradients from banding."""
    rng = np.random.default_rng(seed)
    grain = rng.standard_normal(picture.shape[:2]).astype(np.float32)[..., None] * GRAIN
    pixels = (np.clip(picture + grain, 0, 1) * 255 + 0.5).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=88, subsampling=0, optimize=True)
