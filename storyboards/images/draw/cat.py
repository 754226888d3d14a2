"""A tabby cat on a window sill; outside it rains on the evening town."""

from __future__ import annotations

from typing import TYPE_CHECKING

import brush
import numpy as np
from brush import Array, Outline, Point

if TYPE_CHECKING:
    from collections.abc import Iterable

SIZE = (1280, 736)
SILL = 590
GLASS = (300, 40, 1010, SILL)  # left, top, right, bottom


def draw() -> Array:
    """Paint the town, the glass before it, the room around the glass, and the cat."""
    picture = _town()
    _rain(picture)
    room = _room()
    brush.paint(picture, room, 1 - brush.shapes(SIZE, [brush.box(*GLASS)]))
    _frame(picture)
    _curtains(picture)
    _sill(picture)
    _lamp(picture, (150, SILL - 8))
    _plant(picture, (1080, SILL + 6))
    _cat(picture, (700, SILL + 14))
    brush.fibres(picture, 4)
    return picture


def _town() -> Array:
    picture = brush.gradient(SIZE, (0, "#27365f"), (220, "#4f5c8a"), (400, "#b08a9c"), (SILL, "#d9a08c"))
    for base, seed, colour in ((360, 21, "#77719a"), (420, 22, "#51578a"), (480, 23, "#343d6c")):
        brush.paint(picture, colour, brush.blur(brush.shapes(SIZE, _roofs(base, seed)), 2.5))
    rng = np.random.default_rng(5)
    corners = rng.uniform((310, 400), (1000, 580), (60, 2)) // 24 * 24
    lit = [brush.box(x, y, x + 9, y + 13) for x, y in corners]
    brush.light(picture, "#ffc46b", brush.blur(brush.shapes(SIZE, lit), 1.6), 0.75)
    for colour in ("#ffc35c", "#ff8a4c", "#ffe2a0", "#ff6f6f", "#6fc3ff"):
        spots = rng.uniform((310, 330), (1000, 575), (7, 2))
        discs = [brush.disc((x, y), rng.uniform(6, 20)) for x, y in spots]
        mask = brush.blur(brush.shapes(SIZE, discs), 1.3)
        brush.paint(picture, colour, mask, rng.uniform(0.4, 0.7))
        brush.light(picture, colour, brush.blur(mask, 14), 0.5)
    return picture


def _roofs(base: float, seed: int) -> list[list[Point]]:
    """A row of houses with pointed roofs."""
    rng = np.random.default_rng(seed)
    houses: list[list[Point]] = []
    x = 270.0
    while x < 1040:
        width, top = rng.uniform(60, 110), base + rng.uniform(-45, 45)
        peak = top - rng.uniform(20, 55)
        houses.append([(x, SILL), (x, top), (x + width / 2, peak), (x + width, top), (x + width, SILL)])
        x += width * rng.uniform(0.85, 1.1)
    return houses


def _rain(picture: Array) -> None:
    rng = np.random.default_rng(9)
    for width, count, strength in ((1.2, 130, 0.28), (2.0, 60, 0.2)):
        starts = rng.uniform((290, 0), (1020, SILL), (count, 2))
        lines = [[(x, y), (x - 7, y + rng.uniform(26, 60))] for x, y in starts]
        brush.light(picture, "#d9e4ff", brush.strokes(SIZE, lines, width), strength)
    drops = [
        brush.disc((x, y), rng.uniform(1.6, 4.2), 1.25)
        for x, y in rng.uniform((305, 45), (1005, SILL), (170, 2))
    ]
    mask = brush.shapes(SIZE, drops)
    brush.paint(picture, "#1f2a50", mask, 0.25)
    brush.light(picture, "#ffffff", np.clip(mask - np.roll(mask, (2, 1), (0, 1)), 0, 1), 0.6)


def _room() -> Array:
    wall = brush.gradient(SIZE, (0, "#3a2440"), (SILL, "#6b3a4a"), (736, "#4c2a3e"))
    brush.light(wall, "#ffae5c", brush.glow(SIZE, (150, 390), 330), 0.75)
    return wall


def _frame(picture: Array) -> None:
    left, top, right, bottom = GLASS
    middle, bar = (left + right) / 2, top + 190
    beams = [
        brush.box(left - 26, top - 26, right + 26, top),
        brush.box(left - 26, top - 26, left, bottom),
        brush.box(right, top - 26, right + 26, bottom),
        brush.box(middle - 9, top, middle + 9, bottom),
        brush.box(left, bar - 8, right, bar + 8),
    ]
    paper = brush.gradient(SIZE, (0, "#e6c3a0"), (SILL, "#c98f74"))
    brush.sheet(picture, paper, brush.shapes(SIZE, beams), lift=7, dark=0.45)


def _curtains(picture: Array) -> None:
    left = brush.dots("150,-20 330,-20 352,120 330,300 262,400 250,470 262,590 262,640 190,640 180,400")
    folds = [
        [(x, -20), (x + 14, 200), (x - 30 + 10 * i, 400), (x - 40 + 14 * i, 640)]
        for i, x in enumerate((215, 250, 285))
    ]
    for mirror in (False, True):
        place = (1310.0, 0.0) if mirror else (0.0, 0.0)
        outline = brush.moved(brush.curve(left), place, mirror=mirror)
        mask = brush.shapes(SIZE, [outline])
        paper = brush.gradient(SIZE, (0, "#a9433f"), (400, "#c2574a"), (640, "#8c3340"))
        brush.sheet(picture, paper, mask, lift=10, dark=0.45)
        lines = [brush.moved(brush.curve(fold, closed=False), place, mirror=mirror) for fold in folds]
        shade = brush.blur(brush.strokes(SIZE, lines, 9), 4) * mask
        brush.paint(picture, "#4c1630", shade, 0.6)


def _sill(picture: Array) -> None:
    top = brush.shapes(SIZE, [[(150, SILL - 6), (1160, SILL - 6), (1230, SILL + 44), (80, SILL + 44)]])
    board = brush.gradient(SIZE, (SILL - 6, "#a9695a"), (SILL + 44, "#e0a67f"))
    brush.sheet(picture, board, top, lift=8, dark=0.4)
    front = brush.shapes(SIZE, [brush.box(80, SILL + 44, 1230, SILL + 70)])
    shaded = brush.gradient(SIZE, (SILL + 44, "#b87860"), (SILL + 70, "#8a5050"))
    brush.sheet(picture, shaded, front, lift=10, dark=0.5)


def _lamp(picture: Array, foot: Point) -> None:
    shade = [(-52, -250), (52, -250), (92, -130), (-92, -130)]
    stand = [
        brush.moved(part, foot) for part in (brush.box(-6, -132, 6, 4), brush.disc((0, 6), 44, tall=0.3))
    ]
    brush.sheet(picture, "#8c5a3c", brush.shapes(SIZE, stand), lift=5)
    paper = brush.gradient(SIZE, (foot[1] - 250, "#ffd596"), (foot[1] - 130, "#fff0c8"))
    brush.sheet(picture, paper, brush.shapes(SIZE, [brush.moved(shade, foot)]), lift=4, dark=0.2)
    for radius, strength in ((120, 0.35), (300, 0.28), (620, 0.12)):
        brush.light(picture, "#ffbf6b", brush.glow(SIZE, (foot[0], foot[1] - 150), radius), strength)


def _plant(picture: Array, foot: Point) -> None:
    leaf = brush.curve(brush.dots("0,0 0,0 -20,-50 -12,-112 0,-140 0,-140 14,-108 20,-50"))
    fan = ((-62, "#2f5a4c"), (58, "#2f5a4c"), (-34, "#3f7558"), (36, "#3f7558"), (4, "#5b9465"))
    for angle, colour in fan:
        outline = brush.moved(brush.turned(leaf, angle), (foot[0], foot[1] - 66), 0.95)
        brush.sheet(picture, colour, brush.shapes(SIZE, [outline]), lift=4, dark=0.3)
    pot = brush.moved([(-50, -72), (50, -72), (38, 16), (-38, 16)], foot)
    rim = brush.moved(brush.box(-56, -84, 56, -64), foot)
    brush.sheet(picture, "#c96f4a", brush.shapes(SIZE, [pot]), lift=6)
    brush.sheet(picture, "#dd8a5e", brush.shapes(SIZE, [rim]), lift=4)


def _cat(picture: Array, foot: Point) -> None:
    body = brush.dots("-82,4 -96,-50 -86,-118 -58,-178 -36,-216 36,-216 58,-178 86,-118 96,-50 82,4")
    fur = brush.gradient(SIZE, (foot[1] - 220, "#b9642f"), (foot[1], "#d98a48"))
    mask = brush.shapes(SIZE, [brush.moved(brush.curve(body), foot)])
    brush.sheet(picture, fur, mask, lift=10, dark=0.5)
    bands = [
        [(side * 110, y), (side * 76, y + 4), (side * 46, y - 6)]
        for side in (-1, 1)
        for y in (-140, -104, -68)
    ]
    _stripes(picture, bands, foot, mask)
    _tail(picture, foot)
    bib = brush.curve(brush.dots("-34,-226 34,-226 40,-170 0,-118 -40,-170"))
    brush.sheet(picture, "#f6e2c8", brush.shapes(SIZE, [brush.moved(bib, foot)]), lift=4, dark=0.2)
    for side in (-1, 1):
        leg = brush.curve(brush.dots("10,-128 42,-128 44,-20 52,6 28,14 4,6 8,-20"))
        paw = brush.curve(brush.dots("4,-14 28,-22 50,-14 54,6 28,15 2,6"))
        for part, colour in ((leg, "#d98a48"), (paw, "#f6e2c8")):
            outline = brush.moved(part, foot, mirror=side < 0)
            brush.sheet(picture, colour, brush.shapes(SIZE, [outline]), lift=3, dark=0.25)
    _head(picture, (foot[0], foot[1] - 262))


def _stripes(picture: Array, lines: Iterable[Outline], place: Point, within: Array) -> None:
    curves = [brush.moved(brush.curve(line, closed=False), place) for line in lines]
    brush.paint(picture, "#8a4526", brush.strokes(SIZE, curves, 9) * within, 0.85)


def _tail(picture: Array, foot: Point) -> None:
    line = brush.curve(brush.dots("70,-16 124,-10 166,22 168,76 128,104 98,88"), closed=False)
    tip = len(line) * 5 // 6
    for part, colour, lift in ((line, "#c9743a", 6.0), (line[tip:], "#f6e2c8", 1.0)):
        mask = brush.shapes(SIZE, [brush.disc((foot[0] + x, foot[1] + y), 16) for x, y in part])
        brush.sheet(picture, colour, mask, lift=lift, dark=0.45)
    rings = [[(130, -24), (118, 12)], [(190, 20), (156, 32)], [(190, 66), (150, 62)]]
    within = brush.shapes(SIZE, [brush.disc((foot[0] + x, foot[1] + y), 16) for x, y in line])
    _stripes(picture, rings, foot, within)


def _head(picture: Array, centre: Point) -> None:
    ear = brush.curve(brush.dots("-78,-14 -80,-60 -70,-108 -70,-108 -44,-88 -12,-54 -12,-54 -30,-10"))
    inner = brush.curve(brush.dots("-66,-34 -68,-62 -64,-88 -64,-88 -44,-72 -28,-52 -28,-52"))
    for mirror in (False, True):
        for part, colour in ((ear, "#c9743a"), (inner, "#f0b49a")):
            outline = brush.moved(part, centre, mirror=mirror)
            brush.sheet(picture, colour, brush.shapes(SIZE, [outline]), lift=2, dark=0.2)
    face = brush.curve(brush.dots("0,-64 52,-54 84,-10 92,26 58,56 0,66 -58,56 -92,26 -84,-10 -52,-54"))
    mask = brush.shapes(SIZE, [brush.moved(face, centre)])
    fur = brush.gradient(SIZE, (centre[1] - 64, "#d58240"), (centre[1] + 66, "#e49a58"))
    brush.sheet(picture, fur, mask, lift=7, dark=0.4)
    marks = [[(0, -70), (0, -34)], [(-22, -66), (-17, -38)], [(22, -66), (17, -38)]]
    cheeks = [[(side * 98, y), (side * 66, y + 2)] for side in (-1, 1) for y in (8, 28)]
    _stripes(picture, marks + cheeks, centre, mask)
    _features(picture, centre)


def _features(picture: Array, centre: Point) -> None:
    muzzle = [brush.disc((-19, 32), 25, 0.82), brush.disc((19, 32), 25, 0.82), brush.disc((0, 48), 16, 0.7)]
    brush.paint(picture, "#f9ead6", brush.shapes(SIZE, [brush.moved(part, centre) for part in muzzle]))
    eyes = [brush.moved(brush.disc((side * 36, -4), 17, 0.94), centre) for side in (-1, 1)]
    pupils = [brush.moved(brush.disc((side * 34, -4), 8.5, 1.5), centre) for side in (-1, 1)]
    sparks = [brush.moved(brush.disc((side * 36 - 5, -10), 3.6), centre) for side in (-1, 1)]
    for outlines, colour in ((eyes, "#b9cf6a"), (pupils, "#231a2e"), (sparks, "#ffffff")):
        brush.paint(picture, colour, brush.shapes(SIZE, outlines))
    nose = brush.moved(brush.curve([(-10, 15), (10, 15), (3, 25), (-3, 25)]), centre)
    brush.paint(picture, "#c25b62", brush.shapes(SIZE, [nose]))
    mouth = [[(0, 25), (0, 32), (-8, 39), (-17, 36)], [(0, 25), (0, 32), (8, 39), (17, 36)]]
    whiskers = [
        [(side * 42, y), (side * 82, y - 5 + i * 5), (side * 118, y - 8 + i * 12)]
        for side in (-1, 1)
        for i, y in enumerate((28, 35, 42))
    ]
    smile = [brush.moved(brush.curve(line, closed=False), centre) for line in mouth]
    hairs = [brush.moved(brush.curve(line, closed=False), centre) for line in whiskers]
    brush.paint(picture, "#6b3030", brush.strokes(SIZE, smile, 2.6))
    brush.paint(picture, "#fff6e6", brush.strokes(SIZE, hairs, 1.5), 0.8)
