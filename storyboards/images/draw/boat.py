"""A paper boat with a red flag on a still pond at sunrise."""

from __future__ import annotations

import brush
import numpy as np
from brush import Array, Point

SIZE = (1280, 736)
SHORE = 372


def draw() -> Array:
    """Paint sky and hills, mirror them in the pond, and put the boat among the lilies."""
    picture = _morning()
    _mirror(picture)
    _ripples(picture)
    _lilies(picture)
    _boat(picture, (600, 520))
    _reeds(picture)
    brush.fibres(picture, 8)
    return picture


def _morning() -> Array:
    picture = brush.gradient(SIZE, (0, "#5f9ea8"), (150, "#a9cdbf"), (270, "#f6dfb4"), (SHORE, "#ffc08a"))
    brush.light(picture, "#fff0bd", brush.glow(SIZE, (930, 300), 300), 0.75)
    brush.paint(picture, "#fff8dc", brush.shapes(SIZE, [brush.disc((930, 262), 60)]))
    for place, scale, colour in (
        ((250, 130), 1.25, "#e6ede0"),
        ((640, 96), 0.8, "#dbe8de"),
        ((1180, 150), 1.1, "#f3e9d2"),
    ):
        brush.sheet(picture, colour, brush.shapes(SIZE, brush.cloud(place, scale)), lift=7, dark=0.16)
    for base, height, seed, colour in (
        (290, 40, 41, "#a9bba6"),
        (325, 30, 42, "#7d9f95"),
        (352, 18, 44, "#4f7d7a"),
    ):
        mask = brush.shapes(SIZE, [brush.ridge(SIZE, base, height, seed)])
        brush.sheet(picture, colour, mask, lift=7, dark=0.2)
    return picture


def _mirror(picture: Array) -> None:
    """The picture above the shore again in the water: rippled, a little darker."""
    rows = np.arange(SHORE, SIZE[1])
    depth = (rows - SHORE) / (SIZE[1] - SHORE)
    ripple = 5 * depth * (np.sin(rows / 3.7) + np.sin(rows / 9.1 + 1))
    source = np.clip(SHORE - 1 - 0.98 * (rows - SHORE) + ripple, 0, SHORE - 1).astype(int)
    water = brush.gradient(SIZE, (SHORE, "#7fa79a"), (SIZE[1], "#1f5560"))[SHORE:]
    fade = (0.25 + 0.45 * depth).astype(np.float32)[:, None, None]
    picture[SHORE:] = picture[source] * (1 - fade) + water * fade
    brush.light(picture, "#fff3cf", brush.strokes(SIZE, [[(0, SHORE), (1280, SHORE)]], 2.5), 0.4)


def _ripples(picture: Array) -> None:
    rings = [brush.disc((600, 588), 190 + 70 * i, 0.2) for i in range(4)]
    for i, ring in enumerate(rings):
        brush.light(picture, "#fff3d6", brush.strokes(SIZE, [[*ring, ring[0]]], 2.4), 0.34 - 0.07 * i)
    rng = np.random.default_rng(13)
    spots = rng.uniform((0, SHORE + 20), (1280, 720), (70, 2))
    glints = [[(x, y), (x + (y - SHORE) * rng.uniform(0.1, 0.35), y)] for x, y in spots]
    brush.light(picture, "#fff3d6", brush.strokes(SIZE, glints, 2), 0.28)


def _lilies(picture: Array) -> None:
    pads = (
        (180, 560, 62),
        (300, 636, 84),
        (96, 668, 70),
        (1010, 486, 46),
        (1120, 560, 66),
        (980, 640, 88),
        (1210, 660, 80),
        (420, 452, 34),
    )
    for x, y, radius in pads:
        notch = np.linspace(0.35, 2 * np.pi - 0.15, 60)
        pad = [(x, y), *((x + radius * np.cos(t), y + 0.36 * radius * np.sin(t)) for t in notch)]
        paper = brush.gradient(SIZE, (y - 30, "#8fb573"), (y + 30, "#4f8a63"))
        brush.sheet(picture, paper, brush.shapes(SIZE, [pad]), lift=5, dark=0.3)
    for place, scale in (((300, 622), 1.0), ((1120, 552), 0.8), ((1002, 482), 0.5)):
        _blossom(picture, place, scale)


def _blossom(picture: Array, place: Point, scale: float) -> None:
    petal = brush.curve(brush.dots("0,6 0,6 -13,-16 0,-46 0,-46 13,-16"))
    for angle, colour in (
        (-68, "#e58fa0"),
        (68, "#e58fa0"),
        (-36, "#f2aab2"),
        (36, "#f2aab2"),
        (0, "#ffd0d0"),
    ):
        outline = brush.moved(brush.turned(petal, angle), place, scale)
        brush.sheet(picture, colour, brush.shapes(SIZE, [outline]), lift=2, dark=0.2)


def _boat(picture: Array, place: Point) -> None:
    shade = brush.blur(brush.shapes(SIZE, [brush.disc((place[0], place[1] + 76), 170, 0.16)]), 8)
    brush.paint(picture, "#123c48", shade, 0.55)
    echo = [brush.moved([(-150, 70), (150, 70), (104, 128), (-104, 128)], place)]
    brush.light(picture, "#fff3dd", brush.blur(brush.shapes(SIZE, echo), 7), 0.3)
    pole = [[(place[0], place[1] - 118), (place[0], place[1] - 196)]]
    flag = brush.curve(brush.dots("0,-196 0,-196 34,-190 70,-178 70,-178 36,-164 0,-158 0,-158"))
    brush.paint(picture, "#6b4a3a", brush.strokes(SIZE, pole, 4))
    brush.sheet(picture, "#d6453f", brush.shapes(SIZE, [brush.moved(flag, place)]), lift=3)
    sail = ([(0, -126), (-84, 10), (0, 10)], "#fff8ea"), ([(0, -126), (84, 10), (0, 10)], "#dfcdb4")
    hull = (
        ([(-214, -50), (-84, 6), (-134, 78)], "#efdfc6"),
        ([(214, -50), (84, 6), (134, 78)], "#c9b196"),
        ([(-214, -50), (0, 8), (0, 78), (-134, 78)], "#fffaf0"),
        ([(214, -50), (0, 8), (0, 78), (134, 78)], "#e9d8be"),
    )
    for outline, colour in (*sail, *hull):
        brush.sheet(picture, colour, brush.shapes(SIZE, [brush.moved(outline, place)]), lift=4, dark=0.22)


def _reeds(picture: Array) -> None:
    rng = np.random.default_rng(15)
    for colour, height in (("#3f7566", 330), ("#2a5a54", 260), ("#173c40", 190)):
        feet = np.concatenate([rng.uniform(-30, 120, 9), rng.uniform(1150, 1310, 9)])
        leaves = [
            brush.blade((x, 750), height * rng.uniform(0.7, 1.25), rng.uniform(-70, 70), 16) for x in feet
        ]
        brush.sheet(picture, colour, brush.shapes(SIZE, leaves), lift=8, dark=0.3)
    stems = ((52, 330, 8), (104, 392, -6), (1216, 350, -8), (1166, 420, 6))
    lines = [[(x, 750), (x + lean, top)] for x, top, lean in stems]
    heads = [brush.disc((x + lean, top), 9, 3.6) for x, top, lean in stems]
    brush.sheet(picture, "#3f6b52", brush.strokes(SIZE, lines, 5), lift=5, dark=0.25)
    brush.sheet(picture, "#7d4a33", brush.shapes(SIZE, heads), lift=5, dark=0.3)
