"""A red fox on a mossy rise in a misty forest, the low sun behind the trees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import brush
import numpy as np
from brush import Array, Outline, Point

if TYPE_CHECKING:
    from collections.abc import Iterable

SIZE = (1280, 736)


def draw() -> Array:
    """Paint the forest from the far mist to the near leaves, and the fox in its middle."""
    picture = brush.gradient(SIZE, (0, "#f0c88f"), (300, "#f9dfae"), (520, "#f3c792"), (736, "#d39a72"))
    brush.light(picture, "#fff3c9", brush.glow(SIZE, (860, 250), 330), 0.8)
    brush.paint(picture, "#fffbe6", brush.shapes(SIZE, [brush.disc((860, 240), 92)]), 0.95)
    layers = ("#d9b58a", "#b99a7c", "#8f8570", "#5f6d62")
    for i, colour in enumerate(layers):
        _trees(picture, i, colour)
    _sunbeams(picture)
    _ground(picture)
    _fox(picture, (560, 588))
    _leaves(picture)
    brush.fibres(picture, 6)
    return picture


def _trees(picture: Array, layer: int, colour: str) -> None:
    rng = np.random.default_rng(60 + layer)
    trunks = []
    for x in np.linspace(-40, 1300, 13 - 2 * layer) + rng.uniform(-30, 30, 13 - 2 * layer):
        if (layer == 3 and 330 < x < 1000) or (layer > 0 and 730 < x < 990):
            continue  # the fox and the sun stay free
        trunks += _trunk(x, 7 + 7 * layer, rng)
    ground = brush.ridge(SIZE, 500 + 26 * layer, 16, 70 + layer)
    mask = brush.shapes(SIZE, [*trunks, ground])
    mist = brush.gradient(SIZE, (200, colour), (520 + 20 * layer, "#e9c9a0" if layer < 2 else colour))
    brush.sheet(picture, mist, mask, lift=4 + 2 * layer, dark=0.1 + 0.06 * layer)
    brush.light(picture, "#ffe2ae", brush.glow(SIZE, (860, 430), 520, tall=0.4), 0.25 - 0.05 * layer)


def _trunk(x: float, half: float, rng: np.random.Generator) -> list[list[Point]]:
    lean = rng.uniform(-24, 24)
    parts: list[list[Point]] = [
        [(x - half + lean, -20), (x + half * 0.8 + lean, -20), (x + half * 1.3, 600), (x - half * 1.3, 600)]
    ]
    for _ in range(3):
        y, side = rng.uniform(20, 300), float(rng.choice((-1, 1)))
        root = x + lean * (1 - y / 600)
        reach = half * rng.uniform(4, 7)
        tip = (root + side * reach, y - reach * rng.uniform(0.5, 0.9))
        parts.append([(root, y + half * 0.7), tip, (root, y - half * 0.5)])
    return parts


def _sunbeams(picture: Array) -> None:
    beams = [
        [(860 + dx, 180), (900 + dx, 180), (x + 90, 760), (x - 40, 760)]
        for dx, x in ((-70, 180), (-20, 520), (20, 880), (60, 1180))
    ]
    mask = brush.blur(brush.shapes(SIZE, beams), 12)
    fade = np.clip(1 - np.arange(SIZE[1]) / 720, 0, 1).astype(np.float32)[:, None]
    brush.light(picture, "#ffedc0", mask * fade, 0.34)


def _ground(picture: Array) -> None:
    rise = brush.dots("-20,640 120,622 300,596 470,580 640,584 820,606 1000,616 1300,580")
    outline = [*brush.curve(rise, closed=False), (1300, 760), (-20, 760)]
    brush.sheet(
        picture,
        brush.gradient(SIZE, (570, "#7d8a4f"), (736, "#46602f")),
        brush.shapes(SIZE, [outline]),
        lift=12,
        dark=0.35,
    )
    rng = np.random.default_rng(8)
    feet = rng.uniform(0, 1280, 90)
    heights = np.interp(feet, [x for x, _ in rise], [y + 4 for _, y in rise])
    tufts = [_tuft((x, y), rng) for x, y in zip(feet, heights, strict=True)]
    brush.paint(picture, "#6c7c45", brush.strokes(SIZE, tufts, 2.6))


def _tuft(foot: Point, rng: np.random.Generator) -> list[Point]:
    return [foot, (foot[0] + rng.uniform(-8, 8), foot[1] - rng.uniform(8, 20))]


def _fox(picture: Array, foot: Point) -> None:
    fur, cream, dark = "#d5622c", "#fbead2", "#3a2430"
    tail = brush.curve(
        brush.dots("-96,-142 -150,-158 -226,-124 -282,-56 -300,-10 -300,-10 -236,-26 -170,-70 -108,-112")
    )
    tip = brush.curve(brush.dots("-254,-110 -330,-60 -320,20 -220,10 -214,-36 -232,-48 -226,-70 -246,-84"))
    body = brush.curve(
        brush.dots("-122,-146 -60,-168 30,-166 94,-190 140,-214 154,-166 136,-112 40,-98 -40,-108 -104,-96")
    )
    hind = brush.curve(
        brush.dots("-124,-146 -64,-150 -50,-98 -82,-56 -80,0 -80,0 -108,0 -108,0 -106,-54 -126,-96")
    )
    fore = brush.curve(brush.dots("84,-140 142,-150 136,-70 130,0 130,0 104,0 104,0 102,-70"))
    far = [brush.moved(leg, (shift, -4)) for leg, shift in ((hind, 40), (fore, -38))]
    far_mask, near_mask = _mask(far, foot), _mask([hind, fore], foot)
    coat = np.maximum(_mask([body], foot), near_mask)
    tail_mask = _mask([tail], foot)
    brush.sheet(picture, "#93401f", far_mask, lift=5, dark=0.3)
    brush.sheet(picture, "#c8552a", tail_mask, lift=8, dark=0.3)
    brush.paint(picture, cream, _mask([tip], foot) * tail_mask)
    brush.sheet(picture, fur, coat, lift=8, dark=0.35)
    brush.light(picture, "#ffb36b", coat * brush.glow(SIZE, (foot[0] + 60, foot[1] - 200), 120), 0.3)
    socks = _mask([brush.box(-140, -40, 160, 2)], foot)
    brush.paint(picture, dark, socks * np.maximum(near_mask, far_mask))
    chest = brush.curve(brush.dots("104,-200 158,-200 154,-140 130,-104 106,-150"))
    brush.paint(picture, cream, _mask([chest], foot) * coat)
    _head(picture, (foot[0] + 138, foot[1] - 238))


def _head(picture: Array, centre: Point) -> None:
    fur, cream, dark = "#df6f34", "#fbead2", "#3a2430"
    ears = [[(-56, -24), (-62, -92), (-10, -48)], [(8, -50), (44, -98), (48, -30)]]
    inner = [[(-48, -40), (-54, -76), (-26, -52)], [(20, -52), (38, -80), (40, -44)]]
    face = brush.curve(brush.dots("-60,-30 -6,-54 48,-34 62,0 92,26 98,36 84,44 30,56 -30,50 -74,18"))
    cheek = brush.curve(brush.dots("-74,18 -30,14 6,16 34,20 98,38 84,44 30,56 -30,52"))
    brush.sheet(picture, fur, _mask(ears, centre), lift=4, dark=0.3)
    brush.paint(picture, dark, _mask(inner, centre))
    mask = _mask([face], centre)
    brush.sheet(picture, fur, mask, lift=6, dark=0.35)
    brush.paint(picture, cream, _mask([cheek], centre) * mask)
    brush.paint(picture, dark, _mask([brush.disc((92, 31), 9, 0.85), brush.disc((22, -2), 7, 1.25)], centre))
    brush.paint(picture, "#ffffff", _mask([brush.disc((24, -6), 2.2)], centre))


def _mask(outlines: Iterable[Outline], place: Point) -> Array:
    return brush.shapes(SIZE, [brush.moved(outline, place) for outline in outlines])


def _leaves(picture: Array) -> None:
    rng = np.random.default_rng(12)
    for colour, height, spread in (("#4f6b3c", 150, 330), ("#34502f", 120, 300), ("#1f3527", 90, 260)):
        feet = np.concatenate([rng.uniform(-20, spread, 16), rng.uniform(1300 - spread, 1300, 16)])
        edge = 1.25 - np.minimum(feet + 20, 1300 - feet) / spread  # lower towards the middle
        leaves = [
            brush.blade((x, 750), height * tall * rng.uniform(0.8, 1.3), rng.uniform(-90, 90), 22)
            for x, tall in zip(feet, edge, strict=True)
        ]
        brush.sheet(picture, colour, brush.shapes(SIZE, leaves), lift=9, dark=0.35)
