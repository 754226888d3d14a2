"""Gentle, eased camera moves over a still image. Same seed and start: same move."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from PIL import Image

ZOOM = (1.08, 1.28)
"""How far in the camera goes. Never 1: a picture merely copied is sharper than the moving ones around it."""
START_ZOOM = (1.12, 1.20)
REACH = 0.8
"""How near to the image's edge a move may end: 1 touches it."""
PEAK_SPEED = 0.03
"""Largest speed, in frame widths (heights) a second; a zoom counts by its growth."""
MAX_TRAVEL = 0.15
"""Longest move, in frame widths (heights), however long the segment."""
_EASE_PEAK = 1.875
"""Largest slope of smootherstep: top speed over mean speed."""
_CANDIDATES = 8


@dataclass(frozen=True)
class Pose:
    """Where the camera looks: the view's centre in image widths and heights, and its magnification."""

    x: float
    y: float
    zoom: float


def first_pose(rng: random.Random) -> Pose:
    """Where a chain starts: near the middle."""
    zoom = _between(rng, *START_ZOOM)
    return Pose(_centre(_between(rng, -0.5, 0.5), zoom), _centre(_between(rng, -0.5, 0.5), zoom), zoom)


def is_possible(pose: Pose) -> bool:
    """Whether the camera can be there: near enough to the image to be inside."""
    return 0 <= pose.x <= 1 and 0 <= pose.y <= 1 and 1 < pose.zoom <= 2


def next_pose(start: Pose, rng: random.Random, seconds: float) -> Pose:
    """Where a move of so many seconds ends: a pan or a zoom towards a random view well inside the image.

    Of a few random views the first that is far enough to fill the time wins. Every move heads for the inside,
    so a long chain never drifts into a corner.
    """
    travel = min(MAX_TRAVEL, PEAK_SPEED / _EASE_PEAK * seconds)
    candidates = [
        _zoomed(start, rng) if _between(rng, 0, 1) < 0.5 else _panned(start, rng) for _ in range(_CANDIDATES)
    ]
    target = max(candidates, key=lambda pose: min(_distance(start, pose), travel))
    distance = _distance(start, target)
    return _mixed(start, target, min(1.0, travel / distance)) if distance else start


def path(start: Pose, end: Pose, frames: int, overlap: int) -> Iterator[Pose]:
    """The pose of every frame: held while frames repeat the parent's, then eased from rest to rest."""
    held = max(overlap - 1, 0)
    for frame in range(frames):
        t = max(frame - held, 0) / max(frames - 1 - held, 1)
        yield _mixed(start, end, t * t * t * (t * (6 * t - 15) + 10))  # smootherstep


def view(image: Image.Image, pose: Pose) -> Image.Image:
    """What the camera sees, at the image's size, to a fraction of a pixel."""
    from PIL import Image

    width, height = image.width / pose.zoom, image.height / pose.zoom
    left = min(max(pose.x * image.width - width / 2, 0.0), image.width - width)
    top = min(max(pose.y * image.height - height / 2, 0.0), image.height - height)
    return image.resize(image.size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))


def _panned(start: Pose, rng: random.Random) -> Pose:
    x, y = _between(rng, -REACH, REACH), _between(rng, -REACH, REACH)
    return Pose(_centre(x, start.zoom), _centre(y, start.zoom), start.zoom)


def _zoomed(start: Pose, rng: random.Random) -> Pose:
    zoom = _between(rng, *ZOOM)
    return Pose(_centre(_place(start.x, start.zoom), zoom), _centre(_place(start.y, start.zoom), zoom), zoom)


def _distance(start: Pose, end: Pose) -> float:
    pan = math.hypot(end.x - start.x, end.y - start.y) * max(start.zoom, end.zoom)
    return max(pan, abs(math.log(end.zoom / start.zoom)))


def _centre(place: float, zoom: float) -> float:
    """From -1 .. 1, edge to edge of what this zoom leaves free, to a centre."""
    return 0.5 + place * (0.5 - 0.5 / zoom)


def _place(centre: float, zoom: float) -> float:
    return (centre - 0.5) / (0.5 - 0.5 / zoom)


def _mixed(start: Pose, end: Pose, share: float) -> Pose:
    """Between two poses. The views inside the image form a convex set, so what lies between stays inside."""
    return Pose(
        start.x + (end.x - start.x) * share,
        start.y + (end.y - start.y) * share,
        start.zoom + (end.zoom - start.zoom) * share,
    )


def _between(rng: random.Random, low: float, high: float) -> float:
    # Of random.Random, only random() promises the same numbers in every Python.
    return low + (high - low) * rng.random()
