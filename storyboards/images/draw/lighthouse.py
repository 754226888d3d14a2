"""A lighthouse at dusk: its lamp is lit, a small boat comes home."""

from __future__ import annotations

import brush
import numpy as np
from brush import Array, Point

SIZE = (1280, 736)
LAMP: Point = (900, 168)


def draw() -> Array:
    """Paint the picture from the sky to the nearest wave."""
    picture = _sky()
    _far_shore(picture)
    _sea(picture, first=0, last=3)
    _beams(picture)
    _boat(picture, (330, 584))
    _headland(picture)
    _tower(picture)
    _sea(picture, first=3, last=6)
    _lamp(picture)
    brush.fibres(picture, 3)
    return picture


def _sky() -> Array:
    stops = (
        (0, "#141b45"),
        (170, "#37306e"),
        (320, "#87457f"),
        (430, "#d9687a"),
        (505, "#ffa877"),
        (540, "#ffd9a0"),
    )
    sky = brush.gradient(SIZE, *stops)
    rng = np.random.default_rng(11)
    for brightness in (0.9, 0.6, 0.35):
        spots = rng.uniform((0, 0), (1280, 310 * brightness), (50, 2))
        dots = [brush.disc((x, y), rng.uniform(0.6, 1.5)) for x, y in spots]
        brush.light(sky, "#fff3d6", brush.shapes(SIZE, dots), brightness)
    brush.light(sky, "#ffb066", brush.glow(SIZE, (400, 545), 420, tall=0.5), 0.55)
    brush.paint(sky, "#fff0c4", brush.shapes(SIZE, [brush.disc((400, 528), 62)]), 0.95)
    for (x, y), scale, colour in (
        ((240, 330), 1.5, "#a2517f"),
        ((640, 250), 1.1, "#6b407d"),
        ((1130, 372), 1.3, "#c4607d"),
    ):
        brush.sheet(sky, colour, brush.shapes(SIZE, brush.cloud((x, y), scale)), lift=6, dark=0.16)
    return sky


def _far_shore(picture: Array) -> None:
    for base, height, seed, colour in ((512, 14, 5, "#c4677f"), (530, 12, 8, "#97517f")):
        mask = brush.shapes(SIZE, [brush.ridge(SIZE, base, height, seed)])
        brush.sheet(picture, colour, mask, lift=4, dark=0.15)


def _sea(picture: Array, first: int, last: int) -> None:
    colours = ("#8a5288", "#6d4a8a", "#514486", "#3c3c7c", "#2b326b", "#1d2656")
    for i in range(first, last):
        top = 548 + 30 * i + 2 * i * i
        outline = _waves(top, 70 + 16 * i, 5 + 1.5 * i, shift=37 * i * i)
        mask = brush.shapes(SIZE, [outline])
        brush.sheet(picture, colours[i], mask, lift=5 + i, dark=0.3)
        path = brush.glow(SIZE, (400, top + 8), 60 + 26 * i, tall=0.28)
        brush.light(picture, "#ffb98a", path * mask, 0.5 - 0.07 * i)


def _waves(top: float, length: float, height: float, shift: float) -> list[Point]:
    """A row of rolling crests: each rises slowly and falls steeply."""
    line: list[Point] = []
    for x in np.arange(-20, SIZE[0] + 24, 4.0):
        phase = ((x + shift) / length) % 1
        line.append((float(x), float(top - height * np.sin(np.pi * phase**1.5) ** 1.4)))
    return [*line, (SIZE[0] + 20, SIZE[1] + 20), (-20, SIZE[1] + 20)]


def _boat(picture: Array, place: Point) -> None:
    hull = brush.curve(brush.dots("-44,0 -44,0 44,-2 44,-2 30,20 -28,20"))
    main = brush.curve(brush.dots("2,-96 2,-96 40,-40 44,-10 44,-10 2,-8 2,-8"))
    fore = brush.curve(brush.dots("-3,-82 -3,-82 -24,-40 -34,-10 -34,-10 -3,-8 -3,-8"))
    for outline, colour in ((main, "#fff1dc"), (fore, "#f4b9a0"), (hull, "#7d2f4f")):
        brush.sheet(picture, colour, brush.shapes(SIZE, [brush.moved(outline, place)]), lift=3, dark=0.3)


def _headland(picture: Array) -> None:
    back = brush.dots("640,660 640,660 690,600 740,560 790,520 850,492 960,478 1090,486 1300,440")
    front = brush.dots("600,700 600,700 660,655 730,625 800,572 880,548 1000,542 1110,536 1300,505")
    _cliff(picture, back, "#4a3768")
    _cottage(picture, (1095, 462))
    _cliff(picture, front, "#2a2450")


def _cliff(picture: Array, line: list[Point], colour: str) -> None:
    outline = [*brush.curve(line, closed=False), (1300, 760), (600, 760)]
    paper = brush.gradient(SIZE, (430, colour), (660, "#1f1b42"))
    brush.sheet(picture, paper, brush.shapes(SIZE, [outline]), lift=8, dark=0.4)


def _tower(picture: Array) -> None:
    tower = [(868, 205), (932, 205), (956, 560), (844, 560)]
    mask = brush.shapes(SIZE, [tower])
    paper = brush.gradient(SIZE, (200, "#fff0de"), (560, "#d9a79f"))
    brush.sheet(picture, paper, mask, lift=10, dark=0.45)
    bands = [brush.box(830, y, 970, y + 52) for y in (238, 342, 446)]
    brush.paint(picture, "#c83f4f", brush.shapes(SIZE, bands) * mask)
    across = np.clip((np.arange(SIZE[0]) - 872) / 84, 0, 1).astype(np.float32)[None, :]
    brush.paint(picture, "#2b1f4d", mask * across, 0.55)
    slits = [brush.disc((898, y), 6, tall=1.7) for y in (316, 420)]
    brush.paint(picture, "#ffd27a", brush.shapes(SIZE, slits))
    door = brush.curve(brush.dots("884,560 884,560 884,520 900,504 916,520 916,560 916,560"))
    brush.paint(picture, "#4a2340", brush.shapes(SIZE, [door]))


def _lamp(picture: Array) -> None:
    glass = brush.shapes(SIZE, [brush.box(878, 136, 922, 194)])
    brush.paint(picture, "#ffe9a8", glass)
    rails = [[(x, 176), (x, 206)] for x in range(860, 945, 10)] + [[(858, 178), (942, 178)]]
    bars = [[(x, 134), (x, 194)] for x in (878, 893, 907, 922)]
    brush.paint(picture, "#3b2145", brush.strokes(SIZE, rails, 2.2))
    brush.paint(picture, "#5a2d4a", brush.strokes(SIZE, bars, 3))
    roof = brush.curve(brush.dots("868,138 868,138 880,112 900,96 920,112 932,138 932,138"))
    ball = brush.disc((900, 92), 6)
    deck = brush.box(854, 194, 946, 208)
    brush.sheet(picture, "#9c2f49", brush.shapes(SIZE, [roof, ball, deck]), lift=4, dark=0.3)
    for radius, strength in ((26, 0.9), (80, 0.45), (230, 0.22)):
        brush.light(picture, "#ffdf8f", brush.glow(SIZE, LAMP, radius), strength)


def _beams(picture: Array) -> None:
    ys, xs = np.mgrid[0 : SIZE[1], 0 : SIZE[0]].astype(np.float32)
    away = np.hypot(xs - LAMP[0], ys - LAMP[1])
    for reach, angle in ((900, 2.93), (620, -0.22)):
        turn = np.abs(np.angle(np.exp(1j * (np.arctan2(ys - LAMP[1], xs - LAMP[0]) - angle))))
        beam = np.exp(-((turn / 0.085) ** 4)) * np.exp(-((away / reach) ** 2))
        brush.light(picture, "#ffe6a6", beam.astype(np.float32), 0.5)


def _cottage(picture: Array, place: Point) -> None:
    wall = brush.moved(brush.box(-62, 0, 62, 80), place)
    roof = brush.moved([(-80, 6), (-46, -50), (46, -50), (80, 6)], place)
    chimney = brush.moved(brush.box(22, -78, 40, -40), place)
    brush.sheet(picture, "#6b3a5d", brush.shapes(SIZE, [chimney]), lift=3)
    brush.sheet(picture, "#e3b3a2", brush.shapes(SIZE, [wall]), lift=6)
    brush.sheet(picture, "#7a2f52", brush.shapes(SIZE, [roof]), lift=6)
    panes = [brush.moved(brush.box(x, 26, x + 28, 56), place) for x in (-42, 14)]
    brush.paint(picture, "#ffd27a", brush.shapes(SIZE, panes))
    bars = [
        brush.moved(line, place)
        for x in (-42, 14)
        for line in ([(x + 14, 26), (x + 14, 56)], [(x, 41), (x + 28, 41)])
    ]
    brush.paint(picture, "#7a2f52", brush.strokes(SIZE, bars, 2.5))
    brush.light(picture, "#ffb45a", brush.glow(SIZE, (place[0], place[1] + 40), 90), 0.3)
