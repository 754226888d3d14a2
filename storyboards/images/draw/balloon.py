"""A cat flies a striped balloon over paper hills, early in the morning. Taller than the film: 4:3."""

from __future__ import annotations

import brush
import numpy as np
from brush import Array, Point

SIZE = (1200, 900)
BALLOON: Point = (690, 330)  # the middle of its envelope


def draw() -> Array:
    """Paint sky, clouds and hills from far to near, and the balloon before them."""
    picture = _sky()
    _hills(picture)
    _birds(picture)
    _basket(picture)
    _envelope(picture)
    _meadow(picture)
    brush.fibres(picture, 5)
    return picture


def _sky() -> Array:
    stops = (0, "#4f86b8"), (240, "#8fb7cf"), (430, "#f2d3b8"), (560, "#ffbf8f"), (640, "#ff9f7d")
    sky = brush.gradient(SIZE, *stops)
    brush.light(sky, "#ffdf9e", brush.glow(SIZE, (300, 520), 420), 0.7)
    brush.paint(sky, "#fff6d8", brush.shapes(SIZE, [brush.disc((300, 500), 74)]))
    clouds = (
        ((140, 250), 1.5, "#f7e6da"),
        ((990, 205), 1.25, "#dfe7ea"),
        ((1090, 430), 1.6, "#f9d9c2"),
        ((470, 395), 0.8, "#fbe3cc"),
    )
    for place, scale, colour in clouds:
        brush.sheet(sky, colour, brush.shapes(SIZE, brush.cloud(place, scale)), lift=9, dark=0.22)
    return sky


def _hills(picture: Array) -> None:
    layers = (
        (560, 40, 31, "#d99a9a", "#e9b39a"),
        (610, 38, 32, "#b0788f", "#d18f8c"),
        (660, 40, 33, "#7d6486", "#a37a8c"),
    )
    for base, height, seed, top, bottom in layers:
        mask = brush.shapes(SIZE, [brush.ridge(SIZE, base, height, seed)])
        paper = brush.gradient(SIZE, (base - 60, top), (base + 110, bottom))
        brush.sheet(picture, paper, mask, lift=10, dark=0.25)
    mask = brush.shapes(SIZE, [brush.ridge(SIZE, 715, 30, 34)])
    brush.sheet(picture, brush.gradient(SIZE, (670, "#4f6f7c"), (900, "#6f9a8c")), mask, lift=10, dark=0.3)


def _birds(picture: Array) -> None:
    wing = brush.dots("-20,-7 -10,-11 0,0 0,0 10,-11 20,-7")
    places = ((360, 300, 1.0), (405, 278, 0.8), (330, 268, 0.7), (448, 300, 0.6))
    lines = [brush.moved(brush.curve(wing, closed=False), (x, y), scale) for x, y, scale in places]
    brush.paint(picture, "#4a4668", brush.strokes(SIZE, lines, 3.2), 0.85)


def _gore(left: float, right: float) -> list[Point]:
    """One upright strip of the envelope between two turns around it (-1 and 1 are its edges)."""
    heights = np.linspace(0, 1, 60)
    # A teardrop: round above, drawn in to the mouth below.
    half = 178 * np.sqrt(np.clip(1 - (1 - np.minimum(heights / 0.46, 1)) ** 2, 0, 1))
    below = np.clip((heights - 0.46) / 0.54, 0, 1)
    half = half * (1 - 0.8 * below**1.75)
    ys = -190 + 425 * heights
    down = [(float(right * w), float(y)) for w, y in zip(half, ys, strict=True)]
    up = [(float(left * w), float(y)) for w, y in zip(half, ys, strict=True)]
    return brush.moved([*down, *up[::-1]], BALLOON)


def _envelope(picture: Array) -> None:
    whole = brush.shapes(SIZE, [_gore(-1, 1)])
    brush.sheet(picture, "#d94b45", whole, lift=16, dark=0.35)
    turns = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 9))
    colours = ("#d94b45", "#fbe7c6", "#ef9a3d", "#fbe7c6", "#d94b45", "#fbe7c6", "#ef9a3d", "#fbe7c6")
    for left, right, colour in zip(turns[:-1], turns[1:], colours, strict=True):
        brush.paint(picture, colour, brush.shapes(SIZE, [_gore(left, right)]))
    across = np.clip((np.arange(SIZE[0]) - BALLOON[0] + 40) / 240, 0, 1).astype(np.float32)[None, :]
    brush.paint(picture, "#5c2450", whole * across, 0.42)
    brush.light(picture, "#fff2c8", whole * brush.glow(SIZE, (BALLOON[0] - 90, BALLOON[1] - 80), 120), 0.4)
    belt = brush.dots("-180,84 0,122 180,84 180,106 0,146 -180,106")
    band = brush.shapes(SIZE, [brush.moved(brush.curve(belt), BALLOON)])
    brush.paint(picture, "#2f7f86", band * whole, 0.92)


def _basket(picture: Array) -> None:
    x, y = BALLOON[0], BALLOON[1] + 318
    ropes = [[(x + side * 34, y - 88), (x + side * 44, y)] for side in (-1, -0.35, 0.35, 1)]
    brush.paint(picture, "#5a3b36", brush.strokes(SIZE, ropes, 3))
    _pilot(picture, (x, y - 20))
    wicker = brush.curve(brush.dots("-50,-4 -50,-4 50,-4 50,-4 42,58 34,66 -34,66 -42,58"))
    mask = brush.shapes(SIZE, [brush.moved(wicker, (x, y))])
    brush.sheet(picture, "#a9693e", mask, lift=8, dark=0.35)
    weave = [[(x - 60, y + 8 + 13 * i), (x + 60, y + 8 + 13 * i)] for i in range(5)]
    brush.paint(picture, "#7d4628", brush.strokes(SIZE, weave, 2.5) * mask, 0.7)
    rim = brush.shapes(SIZE, [brush.moved(brush.box(-56, -10, 56, 4), (x, y))])
    brush.sheet(picture, "#c98a55", rim, lift=3)


def _pilot(picture: Array, place: Point) -> None:
    ears: list[brush.Outline] = [[(-27, -26), (-25, -58), (-4, -38)], [(27, -26), (25, -58), (4, -38)]]
    face = brush.disc((0, -18), 31, 0.84)
    body = brush.curve([(-24, 20), (-22, -4), (22, -4), (24, 20)])
    parts = [brush.moved(part, place) for part in (*ears, face, body)]
    brush.sheet(picture, "#dd8a48", brush.shapes(SIZE, parts), lift=4, dark=0.3)
    marks = [
        brush.moved(line, place)
        for line in ([(0, -45), (0, -32)], [(-9, -43), (-7, -33)], [(9, -43), (7, -33)])
    ]
    brush.paint(picture, "#8a4526", brush.strokes(SIZE, marks, 3.5))
    muzzle = [brush.moved(brush.disc((side * 7, -7), 9, 0.8), place) for side in (-1, 1)]
    brush.paint(picture, "#f9ead6", brush.shapes(SIZE, muzzle))
    eyes = [brush.moved(brush.disc((side * 13, -20), 3.6, 1.3), place) for side in (-1, 1)]
    brush.paint(picture, "#231a2e", brush.shapes(SIZE, [*eyes, brush.moved(brush.disc((0, -12), 3), place)]))
    scarf = [brush.moved(brush.curve([(-26, 4), (26, 4), (24, 16), (-24, 16)]), place)]
    scarf.append(brush.moved(brush.curve(brush.dots("18,6 18,6 60,-4 92,8 92,8 88,22 56,10 20,16")), place))
    brush.sheet(picture, "#2f7f86", brush.shapes(SIZE, scarf), lift=3, dark=0.25)


def _meadow(picture: Array) -> None:
    layers = ((790, 30, 35, "#3f6f5a", "#2f5a50"), (850, 26, 36, "#2a4f4a", "#1c3a3c"))
    for base, height, seed, top, bottom in layers:
        outline = brush.ridge(SIZE, base, height, seed)
        paper = brush.gradient(SIZE, (base - 40, top), (900, bottom))
        brush.sheet(picture, paper, brush.shapes(SIZE, [outline]), lift=12, dark=0.35)
        rng = np.random.default_rng(seed)
        roots = [outline[i] for i in rng.choice(236, 16, replace=False)]
        firs = [tier for x, y in roots for tier in _fir((x, y + 6), rng.uniform(0.5, 1.0))]
        brush.sheet(picture, bottom, brush.shapes(SIZE, firs), lift=5, dark=0.25)


def _fir(foot: Point, scale: float) -> list[list[Point]]:
    tiers = (
        [(-26, 0), (26, 0), (0, -44)],
        [(-21, -24), (21, -24), (0, -66)],
        [(-15, -48), (15, -48), (0, -86)],
    )
    return [brush.moved(tier, foot, scale) for tier in tiers]
