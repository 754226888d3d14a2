"""A figure under a red umbrella walks down a wet street at night. Upright, for phones."""

from __future__ import annotations

import brush
import numpy as np
from brush import Array, Point

SIZE = (736, 1280)
HORIZON = 800
FAR: Point = (368, HORIZON - 40)  # where the street's lines meet


def draw() -> Array:
    """Paint the street, mirror it in the wet stones, and put the walker and the rain before it."""
    picture = _sky()
    _moon(picture)
    _houses(picture)
    _bokeh(picture)
    _lanterns(picture)
    _mirror(picture)
    _walker(picture, (368, 1090))
    _rain(picture)
    brush.fibres(picture, 7)
    return picture


def _sky() -> Array:
    return brush.gradient(
        SIZE, (0, "#10163f"), (360, "#2a2a66"), (640, "#64408a"), (HORIZON, "#c8657f"), (1280, "#1a1a45")
    )


def _moon(picture: Array) -> None:
    brush.light(picture, "#cfd4ff", brush.glow(SIZE, (470, 190), 150), 0.35)
    brush.paint(picture, "#f4ecd0", brush.shapes(SIZE, [brush.disc((470, 190), 56)]))


def _houses(picture: Array) -> None:
    """Rows of houses on both sides, from the far end of the street to the near corner."""
    rows = (
        (70, 140, 560, "#7d4f8c"),
        (135, 250, 470, "#5d4184"),
        (220, 330, 360, "#453674"),
        (290, 480, 200, "#2f2a60"),
    )
    for i, (inner, outer, top, colour) in enumerate(rows):
        for side in (-1, 1):
            rise = 40 * ((i + (side > 0)) % 2)
            front = [
                (inner, HORIZON + 8 * i),
                (inner, top + rise),
                ((inner + outer) / 2, top + rise - 70 - 12 * i),
                (outer, top + rise),
                (outer, HORIZON + 8 * i),
            ]
            outline = brush.moved(front, (FAR[0], 0), mirror=side < 0)
            mask = brush.shapes(SIZE, [outline])
            paper = brush.gradient(SIZE, (top, colour), (HORIZON, "#8a4a78" if i < 2 else "#4a3068"))
            brush.sheet(picture, paper, mask, lift=6 + 2 * i, dark=0.3)
            _windows(picture, (inner, outer, top + rise), side, i)


def _windows(picture: Array, wall: tuple[float, float, float], side: int, row: int) -> None:
    inner, outer, top = wall
    rng = np.random.default_rng(100 + 10 * row + side)
    wide, tall = 9 + 5 * row, 15 + 8 * row
    lit: list[list[Point]] = []
    unlit: list[list[Point]] = []
    for y in np.arange(top + 24, HORIZON - 90, tall * 1.9):
        for x in np.arange(inner + 12 + 4 * row, outer - wide, wide * 1.8):
            pane = brush.moved(brush.box(x, y, x + wide, y + tall), (FAR[0], 0), mirror=side < 0)
            (lit if rng.random() < 0.55 else unlit).append(pane)
    glow = brush.shapes(SIZE, lit)
    brush.paint(picture, "#1f1d4c", brush.shapes(SIZE, unlit), 0.6)
    brush.paint(picture, "#ffc96b", glow, 0.95)
    brush.light(picture, "#ff9d4a", brush.blur(glow, 9), 0.5)


def _bokeh(picture: Array) -> None:
    rng = np.random.default_rng(17)
    for colour in ("#ffb347", "#ff6f61", "#ffe08a", "#6fd0ff", "#ff8fc0"):
        spots = np.stack([rng.normal(FAR[0], 62, 7), rng.uniform(600, 790, 7)], axis=1)
        mask = brush.blur(brush.shapes(SIZE, [brush.disc((x, y), rng.uniform(5, 17)) for x, y in spots]), 1.2)
        brush.paint(picture, colour, mask, 0.5)
        brush.light(picture, colour, brush.blur(mask, 12), 0.6)
    brush.light(picture, "#ffb26b", brush.glow(SIZE, FAR, 150), 0.6)


def _lanterns(picture: Array) -> None:
    for out, top, scale in ((92, 650, 0.42), (150, 590, 0.7), (262, 470, 1.2)):
        for side in (-1, 1):
            x = FAR[0] + side * out
            foot = HORIZON + 12 * scale
            post = [[(x, foot), (x, top), (x - side * 26 * scale, top - 14 * scale)]]
            brush.paint(picture, "#191a3d", brush.strokes(SIZE, post, 7 * scale))
            lamp = (x - side * 34 * scale, top + 6 * scale)
            hood = brush.moved([(-20, -14), (20, -14), (8, -30), (-8, -30)], lamp, scale)
            brush.paint(picture, "#191a3d", brush.shapes(SIZE, [hood]))
            brush.paint(picture, "#fff2c4", brush.shapes(SIZE, [brush.disc(lamp, 17 * scale)]))
            for radius, strength in ((34, 0.6), (110, 0.35)):
                brush.light(picture, "#ffc877", brush.glow(SIZE, lamp, radius * scale), strength)


def _mirror(picture: Array) -> None:
    """Everything above the horizon again below it: stretched, rippled and darker, as on wet stones."""
    rows = np.arange(HORIZON, SIZE[1])
    rng = np.random.default_rng(23)
    phase = rng.uniform(0, 2 * np.pi, 3)
    depth = (rows - HORIZON) / (SIZE[1] - HORIZON)
    ripple = sum(np.sin(rows / length + p) for length, p in zip((3.1, 7.3, 13.7), phase, strict=True))
    source = np.clip(HORIZON - 1 - 1.12 * (rows - HORIZON) + 7 * ripple * depth, 0, HORIZON - 1).astype(int)
    wet = picture[source].copy()
    for i, shift in enumerate((ripple * 7 * depth).astype(int)):
        wet[i] = np.roll(wet[i], shift, axis=0)
    dark = brush.gradient(SIZE, (HORIZON, "#4a2f66"), (SIZE[1], "#10132f"))[HORIZON:]
    fade = (0.42 + 0.35 * depth).astype(np.float32)[:, None, None]
    picture[HORIZON:] = wet * (1 - fade) + dark * fade
    joints = [[(FAR[0] + 60 * i, HORIZON + 2), (FAR[0] + 330 * i, SIZE[1])] for i in range(-9, 10)]
    joints += [[(0, y), (736, y)] for y in HORIZON + 480 * np.linspace(0.03, 1, 15) ** 2]
    brush.paint(picture, "#0d1030", brush.strokes(SIZE, joints, 2), 0.18)


def _walker(picture: Array, foot: Point) -> None:
    shade = brush.blur(brush.shapes(SIZE, [brush.disc((foot[0], foot[1] + 4), 92, 0.14)]), 8)
    brush.paint(picture, "#070a22", shade, 0.8)
    echo = brush.glow(SIZE, (foot[0], foot[1] + 120), 100, tall=0.9)
    brush.light(picture, "#e8404f", echo, 0.3)
    _coat(picture, foot)
    hair = brush.disc((foot[0], foot[1] - 292), 36, 1.1)
    brush.sheet(picture, "#2b1a2c", brush.shapes(SIZE, [hair]), lift=3)
    wrap = brush.dots("-44,-268 0,-256 44,-268 48,-244 0,-228 -48,-244")
    tail = brush.dots("22,-252 60,-240 96,-250 124,-232 124,-232 116,-208 92,-222 58,-212 20,-228")
    for part in (tail, wrap):
        outline = brush.moved(brush.curve(part), foot)
        brush.sheet(picture, "#e2b04a", brush.shapes(SIZE, [outline]), lift=3, dark=0.25)
    _umbrella(picture, (foot[0], foot[1] - 300))


def _coat(picture: Array, foot: Point) -> None:
    boots = [
        brush.moved(brush.curve([(-34, -60), (-8, -60), (-8, 4), (-38, 4)]), foot),
        brush.moved(brush.curve([(10, -60), (34, -60), (38, -6), (10, -4)]), foot),
    ]
    brush.sheet(picture, "#15142f", brush.shapes(SIZE, boots), lift=4)
    coat = brush.dots("-46,-250 0,-276 46,-250 62,-150 80,-40 80,-40 0,-30 -80,-40 -80,-40 -62,-150")
    mask = brush.shapes(SIZE, [brush.moved(brush.curve(coat), foot)])
    cloth = brush.gradient(SIZE, (foot[1] - 276, "#37508c"), (foot[1] - 30, "#1c2550"))
    brush.sheet(picture, cloth, mask, lift=10, dark=0.45)
    folds = [
        brush.moved(line, foot)
        for line in ([(0, -150), (0, -34)], [(-38, -130), (-50, -38)], [(38, -130), (50, -38)])
    ]
    brush.paint(picture, "#141a3f", brush.strokes(SIZE, folds, 3) * mask, 0.7)
    belt = brush.moved(brush.box(-90, -168, 90, -154), foot)
    brush.paint(picture, "#141a3f", brush.shapes(SIZE, [belt]) * mask, 0.8)


def _umbrella(picture: Array, middle: Point) -> None:
    turns = np.linspace(-np.pi / 2, np.pi / 2, 7)  # where the ribs meet the hem, from left to right
    dome = [(175 * np.sin(t), -118 * np.cos(t)) for t in np.linspace(-np.pi / 2, np.pi / 2, 40)]
    hem: list[Point] = []
    for right, left in zip(turns[:0:-1], turns[-2::-1], strict=True):
        a, b = 175 * np.sin(right), 175 * np.sin(left)
        hem += [(a + (b - a) * t, -26 * np.sin(np.pi * t)) for t in np.linspace(0, 1, 12)]
    mask = brush.shapes(SIZE, [brush.moved([*dome, *hem], middle)])
    silk = brush.gradient(SIZE, (middle[1] - 118, "#f0555a"), (middle[1], "#b52a45"))
    brush.sheet(picture, silk, mask, lift=10, dark=0.4)
    ribs = [[(0, -118), (120 * np.sin(t), -84 * np.cos(t) - 10), (175 * np.sin(t), 0)] for t in turns[1:-1]]
    lines = [brush.moved(brush.curve(rib, closed=False), middle) for rib in ribs]
    brush.paint(picture, "#7d1838", brush.strokes(SIZE, lines, 2.4) * mask, 0.7)
    tip = brush.moved(brush.box(-3, -136, 3, -116), middle)
    brush.paint(picture, "#2a1a2f", brush.shapes(SIZE, [tip]))


def _rain(picture: Array) -> None:
    rng = np.random.default_rng(19)
    for width, count, strength in ((1.1, 200, 0.26), (1.8, 80, 0.2)):
        starts = rng.uniform((-10, -20), (746, 1280), (count, 2))
        lines = [[(x, y), (x - 8, y + rng.uniform(30, 70))] for x, y in starts]
        brush.light(picture, "#dbe4ff", brush.strokes(SIZE, lines, width), strength)
