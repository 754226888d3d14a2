"""Measures of frames in order, and of runs as arrays: colour, sharpness, noise, change, motion.

Colours, changes and motion are taken from small pictures (SMALL wide), in which grain averages out; sharpness
and noise from the frame as it is. Memory holds two small pictures, whatever the film's length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]
    """One picture: height x width x 3, RGB."""
    Floats = NDArray[np.float32]

    Flags = NDArray[np.bool_]


SMALL = 208
"""Width in pixels of the pictures that colour, change and motion are measured on: 832 / 4."""
LEAST = 64
"""Shortest side in pixels that optical flow works on; smaller pictures are enlarged for it."""
GRID = (8, 12)
"""Rows and columns of the blocks in which change and motion are counted."""
BLOCKS = GRID[0] * GRID[1]
LEVELS = 2.55
"""8-bit levels per unit of CIELAB: 100 of L* are 255 levels."""
BLUR = 11
"""Length in pixels of the blur that a frame is compared with (Crete-Roffet 2007; scikit-image's default)."""
GRAIN = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
"""Immerkaer's mask (1996): it answers to grain, and neither to slopes nor to straight edges."""


@dataclass(frozen=True)
class Look:
    """What is kept of a frame until the next ones come."""

    lab: Floats
    """The small picture, rows x columns x 3, CIELAB."""
    grey: Frame
    """The small picture's luma, rows x columns."""
    whole: Frame
    """The frame itself."""


@dataclass(frozen=True)
class Measure:
    """One frame's numbers."""

    mean: Floats
    """Mean L*, a*, b*."""
    cov: Floats
    """3 x 3: covariance of L*, a*, b* over the picture; the root of its diagonal is the spread."""
    sharpness: float
    """0 (blurred) to 1: one minus Crete-Roffet's blur effect, the worse of both directions."""
    noise: float
    """Standard deviation of the grain, in levels of 255."""
    floor: float
    """The noise of the quietest tenth of its blocks: grain without the texture."""
    motion: Floats
    """How far each block moved since the frame before, in thousandths of the width; NaN where none is."""
    flow: Floats
    """Blocks x 2: where to, right and down, in the same unit."""
    rest: Floats
    """What the motion leaves of each block's change, in levels of 255; NaN where there is none."""
    turn: Floats
    """Mean (3) and covariance (3 x 3), flat: by how much the colours of what stays in the picture changed
    since the frame before; zeros where there is none."""
    change: Floats
    """How much each block's colours changed since the frame before, in levels of 255; NaN where none is."""
    blocks: Floats
    """Blocks x 3: each block's mean L*, a*, b*."""
    skip: float
    """The mean change against the frame before the last; NaN where there is none."""
    same: bool
    """Whether the frame before is the very same, bit for bit."""


def measured(
    frames: Iterable[Frame], before: tuple[Look, ...] = (), top: int = 0
) -> Iterator[tuple[Measure, Look]]:
    """Every frame's numbers, in order, and what the next frames need of it; `top` rows are not looked at.

    `before` are the last two looks of what comes before, if anything does: a film measured in parts gives
    the numbers of the film measured at once.
    """
    looks = list(before[-2:])
    for frame in frames:
        look, grey = look_of(frame, top)
        mean, cov = colours(look.lab)
        last = looks[-1] if looks else None
        earlier = looks[-2] if len(looks) > 1 else None
        yield (
            Measure(
                mean,
                cov,
                sharpness(grey),
                *noise(grey),
                *_moved(last, look),
                _change(last, look),
                _in_blocks(look.lab).reshape(BLOCKS, 3),
                float(_change(earlier, look).mean()),
                last is not None and np.array_equal(last.whole, frame),
            ),
            look,
        )
        looks = [*looks[-1:], look]


def look_of(frame: Frame, top: int = 0) -> tuple[Look, Frame]:
    """A frame's small pictures below row `top`, and its luma as it is."""
    seen = frame[top:]
    grey = cast("Frame", cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY))
    height, width = seen.shape[:2]
    scale = max(min(SMALL / width, 1.0), LEAST / min(height, width))
    size = (round(width * scale), round(height * scale))
    small = cv2.resize(seen, size, interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    luma = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return Look(cast("Floats", lab), cast("Frame", luma), frame), grey


def colours(lab: Floats) -> tuple[Floats, Floats]:
    """Mean (3) and covariance (3 x 3) of a picture's CIELAB colours."""
    pixels = lab.reshape(-1, 3).astype(np.float64)
    mean = pixels.mean(axis=0)
    cov = pixels.T @ pixels / len(pixels) - np.outer(mean, mean)
    return mean.astype(np.float32), cov.astype(np.float32)


def sharpness(grey: Frame) -> float:
    """How much detail a blur would take away: 1 minus the blur effect. 0 for a flat picture."""
    image = grey.astype(np.float32)
    blurred = (_lost(image, 0), _lost(image, 1))
    return 1 - max(blurred)


def _lost(image: Floats, axis: int) -> float:
    """The share of a direction's edges that are left after blurring along it."""
    kernel = np.full((BLUR, 1) if axis == 0 else (1, BLUR), 1 / BLUR, np.float32)
    soft = cv2.filter2D(image, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT)
    order = (0, 1) if axis == 0 else (1, 0)
    edges = np.abs(cv2.Sobel(image, cv2.CV_32F, order[0], order[1], borderType=cv2.BORDER_REFLECT))
    left = np.abs(cv2.Sobel(soft, cv2.CV_32F, order[0], order[1], borderType=cv2.BORDER_REFLECT))
    whole = float(edges[2:-1, 2:-1].sum(dtype=np.float64))
    kept = float(np.maximum(edges - left, 0)[2:-1, 2:-1].sum(dtype=np.float64))
    return (whole - kept) / whole if whole else 1.0


def noise(grey: Frame) -> tuple[float, float]:
    """The grain's standard deviation in levels of 255, of the whole picture and of its quietest blocks.

    Over the whole picture fine texture counts as a few levels.
    """
    grain = np.abs(cv2.filter2D(grey, cv2.CV_32F, GRAIN)) * np.float32(np.sqrt(np.pi / 2) / 6)
    return float(grain.mean()), float(np.percentile(_in_blocks(grain), 10))


def _moved(last: Look | None, look: Look) -> tuple[Floats, Floats, Floats, Floats]:
    """Motion, flow, rest and turn of a `Measure`."""
    if last is None or last.grey.shape != look.grey.shape:
        nothing = np.full(BLOCKS, np.nan, np.float32)
        return nothing, np.zeros((BLOCKS, 2), np.float32), nothing, np.zeros(12, np.float32)
    # A new one every time: it keeps what it last saw, and numbers would depend on where a film is cut
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    # From this frame back to the last one: for every pixel, where it comes from
    field = flow.calc(look.grey, last.grey, np.zeros((*look.grey.shape, 2), np.float32))
    unit = np.float32(1000 / look.grey.shape[1])
    length = cast("Floats", cv2.magnitude(field[..., 0], field[..., 1]))
    there = _in_blocks(cast("Floats", -field)).reshape(BLOCKS, 2) * unit
    return _in_blocks(length) * unit, there, *_unexplained(last, look, cast("Floats", field))


def _unexplained(last: Look, look: Look, field: Floats) -> tuple[Floats, Floats]:
    """What is left of a change when every pixel is compared with where it comes from."""
    height, width = look.grey.shape
    x = np.arange(width, dtype=np.float32)[None, :]
    y = np.arange(height, dtype=np.float32)[:, None]
    # Both half way towards each other: interpolating one alone would soften it, and shrink its spread
    halves = [(x + share * field[..., 0], y + share * field[..., 1]) for share in (0.5, -0.5)]
    before, after = (
        cv2.remap(lab, *half, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for lab, half in zip((last.lab, look.lab), halves, strict=True)
    )
    distance = np.sqrt(np.square(after - before).sum(axis=2)) * np.float32(LEVELS)
    inside = np.logical_and.reduce([(x >= 0) & (x < width) & (y >= 0) & (y < height) for x, y in halves])
    if inside.mean() < 0.1:
        return _in_blocks(distance), np.zeros(12, np.float32)
    one, other = (colours(cast("Floats", each)[inside]) for each in (before, after))
    turn = np.concatenate([other[0] - one[0], (other[1] - one[1]).ravel()])
    return _in_blocks(cast("Floats", distance)), turn


def _change(last: Look | None, look: Look) -> Floats:
    if last is None or last.lab.shape != look.lab.shape:
        return np.full(BLOCKS, np.nan, np.float32)
    distance = np.sqrt(np.square(look.lab - last.lab).sum(axis=2))
    return _in_blocks(distance) * np.float32(LEVELS)


def _in_blocks(values: Floats) -> Floats:
    """The mean of each block, rows first; channels stay together."""
    return cast("Floats", cv2.resize(values, GRID[::-1], interpolation=cv2.INTER_AREA)).ravel()


@dataclass(frozen=True)
class Track:
    """What was measured on n frames in a row; see `Measure` for units."""

    mean: Floats
    """n x 3."""
    cov: Floats
    """n x 3 x 3."""
    sharpness: Floats
    noise: Floats
    floor: Floats
    motion: Floats
    """n x blocks."""
    flow: Floats
    """n x blocks x 2."""
    rest: Floats
    """n x blocks."""
    turn: Floats
    """n x 12."""
    change: Floats
    """n x blocks."""
    blocks: Floats
    """n x blocks x 3."""
    skip: Floats
    same: Flags

    @staticmethod
    def of(measures: Sequence[Measure]) -> Track:
        """At least one measure."""
        return Track(
            mean=np.stack([each.mean for each in measures]),
            cov=np.stack([each.cov for each in measures]),
            sharpness=np.array([each.sharpness for each in measures], np.float32),
            noise=np.array([each.noise for each in measures], np.float32),
            floor=np.array([each.floor for each in measures], np.float32),
            motion=np.stack([each.motion for each in measures]),
            flow=np.stack([each.flow for each in measures]),
            rest=np.stack([each.rest for each in measures]),
            turn=np.stack([each.turn for each in measures]),
            change=np.stack([each.change for each in measures]),
            blocks=np.stack([each.blocks for each in measures]),
            skip=np.array([each.skip for each in measures], np.float32),
            same=np.array([each.same for each in measures], bool),
        )

    @staticmethod
    def joined(tracks: Sequence[Track]) -> Track:
        """Several runs, one after another."""
        return Track(**{name: np.concatenate([getattr(t, name) for t in tracks]) for name in _NAMES})

    def __len__(self) -> int:
        return len(self.sharpness)

    def __getitem__(self, frames: slice) -> Track:
        """A part of it."""
        return Track(**{name: getattr(self, name)[frames] for name in _NAMES})

    @property
    def moving(self) -> Floats:
        """How far each whole picture moved, in thousandths of its width; 0 for a first frame."""
        moving: Floats = np.nan_to_num(self.motion.mean(axis=1), nan=0.0)
        return moving

    @property
    def changing(self) -> Floats:
        """How much each whole picture changed, in levels of 255; NaN for a first frame."""
        changing: Floats = self.change.mean(axis=1)
        return changing

    @property
    def spread(self) -> Floats:
        """n x 3: standard deviations of L*, a*, b*."""
        spread: Floats = np.sqrt(np.maximum(np.diagonal(self.cov, axis1=1, axis2=2), 0))
        return spread


_NAMES = tuple(Track.__dataclass_fields__)


@dataclass(frozen=True)
class Drift:
    """How far the colours of n frames are from an anchor's, in CIELAB units (Delta E 1976)."""

    total: Floats
    """The Wasserstein (Frechet) distance between both pictures' colours, taken as normal distributions."""
    mean: Floats
    """The part that is the distance of the means."""
    spread: Floats
    """The part that is the difference of the spreads and their directions."""


def drift_from(track: Track, mean: Floats, cov: Floats) -> Drift:
    """Every frame's distance from colours of this mean (3) and covariance (3 x 3)."""
    return distance(track.mean, track.cov, mean, cov)


def distance(
    means: NDArray[np.floating[Any]], covs: NDArray[np.floating[Any]], mean: Floats, cov: Floats
) -> Drift:
    """How far n means (n x 3) and covariances (n x 3 x 3) are from one of each."""
    moved = np.square(means - mean).sum(axis=1)
    root = _root(cov.astype(np.float64)[None])[0]
    between = _root(root @ covs.astype(np.float64) @ root)
    traces = np.trace(covs, axis1=1, axis2=2) + np.trace(cov) - 2 * np.trace(between, axis1=1, axis2=2)
    spread = np.maximum(traces, 0)
    return Drift(
        np.sqrt(moved + spread).astype(np.float32),
        np.sqrt(moved).astype(np.float32),
        np.sqrt(spread).astype(np.float32),
    )


def _root(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric square roots of covariance matrices."""
    values, vectors = np.linalg.eigh(matrices)
    scaled: NDArray[np.float64] = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
    roots: NDArray[np.float64] = scaled @ vectors.transpose(0, 2, 1)
    return roots
