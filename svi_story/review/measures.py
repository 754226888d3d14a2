"""Measures of frames in order, and of runs as arrays: colour, sharpness, noise, change, motion.

Colours, changes and motion are taken from downscaled frames (SMALL_WIDTH columns), in which grain averages
out; sharpness and noise from the frame as it is. Memory holds two frames, whatever the film's length.
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


SMALL_WIDTH = 208
"""Width in pixels of the pictures that colour, change and motion are measured on: 832 / 4."""
LEAST_SIDE = 64
"""Shortest side in pixels that optical flow works on; smaller pictures are enlarged for it."""
GRID = (8, 12)
"""Rows and columns of the blocks in which change and motion are counted."""
BLOCKS = GRID[0] * GRID[1]
LEVELS = 2.55
"""8-bit levels per unit of CIELAB: 100 of L* are 255 levels."""
BLUR_LENGTH = 11
"""Length in pixels of the blur that a frame is compared with (Crete-Roffet 2007; scikit-image's default)."""
GRAIN_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
"""Immerkaer's mask (1996): it answers to grain, and neither to slopes nor to straight edges."""


@dataclass(frozen=True)
class Downscaled:
    """What is kept of a frame to compare the next two with."""

    lab: Floats
    """The small picture, rows x columns x 3, CIELAB."""
    grey: Frame
    """The small picture's luma, rows x columns."""
    frame: Frame
    """The frame at full size."""


@dataclass(frozen=True)
class Measure:
    """The measures of one frame; those that compare are against the frame before."""

    mean: Floats
    """Mean L*, a*, b*."""
    cov: Floats
    """3 x 3: covariance of L*, a*, b* over the picture; the root of its diagonal is the spread."""
    sharpness: float
    """0 (blurred) to 1."""
    noise: float
    """Standard deviation of the grain, in levels of 255."""
    noise_floor: float
    """The noise of the quietest tenth of the blocks: grain without texture."""
    motion: Floats
    """Per block: length of the optical flow, in thousandths of the width; NaN for a first frame."""
    flow: Floats
    """Blocks x 2: the flow itself, right and down, in the same unit."""
    residual: Floats
    """Per block: the change that motion compensation leaves, in levels of 255; NaN for a first frame."""
    colour_change: Floats
    """Mean (3) and covariance (3 x 3), flat: by how much the colours of what stays in the picture changed,
    motion compensated; zeros for a first frame."""
    change: Floats
    """Per block: how much the colours changed, in levels of 255; NaN for a first frame."""
    blocks: Floats
    """Blocks x 3: each block's mean L*, a*, b*."""
    change_over_two: float
    """The mean change against the frame two before; NaN where there is none."""
    identical: bool
    """Whether the frame before is the same bit for bit."""


def measure_frames(
    frames: Iterable[Frame], before: tuple[Downscaled, ...] = (), top: int = 0
) -> Iterator[tuple[Measure, Downscaled]]:
    """Every frame's measures, in order, and the downscaled frame; the first `top` rows are ignored.

    `before` are the last two downscaled frames of what comes before: a film measured in parts gives the
    measures of the film measured at once.
    """
    previous = list(before[-2:])
    for frame in frames:
        small, grey = downscale(frame, top)
        mean, cov = colours(small.lab)
        last = previous[-1] if previous else None
        earlier = previous[-2] if len(previous) > 1 else None
        yield (
            Measure(
                mean,
                cov,
                sharpness(grey),
                *noise(grey),
                *_motion(last, small),
                _change(last, small),
                _in_blocks(small.lab).reshape(BLOCKS, 3),
                float(_change(earlier, small).mean()),
                last is not None and np.array_equal(last.frame, frame),
            ),
            small,
        )
        previous = [*previous[-1:], small]


def downscale(frame: Frame, top: int = 0) -> tuple[Downscaled, Frame]:
    """A frame from row `top` on, downscaled, and its luma at full size."""
    visible = frame[top:]
    grey = cast("Frame", cv2.cvtColor(visible, cv2.COLOR_RGB2GRAY))
    height, width = visible.shape[:2]
    scale = max(min(SMALL_WIDTH / width, 1.0), LEAST_SIDE / min(height, width))
    size = (round(width * scale), round(height * scale))
    small = cv2.resize(visible, size, interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    luma = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return Downscaled(cast("Floats", lab), cast("Frame", luma), frame), grey


def colours(lab: Floats) -> tuple[Floats, Floats]:
    """Mean (3) and covariance (3 x 3) of a picture's CIELAB colours."""
    pixels = lab.reshape(-1, 3).astype(np.float64)
    mean = pixels.mean(axis=0)
    cov = pixels.T @ pixels / len(pixels) - np.outer(mean, mean)
    return mean.astype(np.float32), cov.astype(np.float32)


def sharpness(grey: Frame) -> float:
    """1 minus Crete-Roffet's blur effect, the worse of both directions. 0 for a uniform picture."""
    image = grey.astype(np.float32)
    return 1 - max(_blur_effect(image, 0), _blur_effect(image, 1))


def _blur_effect(image: Floats, axis: int) -> float:
    """The share of edges in a direction that is left after blurring along it."""
    kernel = np.full((BLUR_LENGTH, 1) if axis == 0 else (1, BLUR_LENGTH), 1 / BLUR_LENGTH, np.float32)
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
    grain = np.abs(cv2.filter2D(grey, cv2.CV_32F, GRAIN_KERNEL)) * np.float32(np.sqrt(np.pi / 2) / 6)
    return float(grain.mean()), float(np.percentile(_in_blocks(grain), 10))


def _motion(last: Downscaled | None, small: Downscaled) -> tuple[Floats, Floats, Floats, Floats]:
    """Motion, flow, residual and colour change of a `Measure`."""
    if last is None or last.grey.shape != small.grey.shape:
        nothing = np.full(BLOCKS, np.nan, np.float32)
        return nothing, np.zeros((BLOCKS, 2), np.float32), nothing, np.zeros(12, np.float32)
    # A new one every time: it keeps the last flow, and measures would depend on where a film is split
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    # From this frame back to the last one: for every pixel, where it comes from
    field = flow.calc(small.grey, last.grey, np.zeros((*small.grey.shape, 2), np.float32))
    unit = np.float32(1000 / small.grey.shape[1])
    length = cast("Floats", cv2.magnitude(field[..., 0], field[..., 1]))
    forward = _in_blocks(cast("Floats", -field)).reshape(BLOCKS, 2) * unit
    return _in_blocks(length) * unit, forward, *_compensated(last, small, cast("Floats", field))


def _compensated(last: Downscaled, small: Downscaled, field: Floats) -> tuple[Floats, Floats]:
    """The residual per block, and the change of colours, comparing each pixel with where it came from."""
    height, width = small.grey.shape
    x = np.arange(width, dtype=np.float32)[None, :]
    y = np.arange(height, dtype=np.float32)[:, None]
    # Both half way towards each other: interpolating one alone would soften it, and shrink its spread
    halves = [(x + share * field[..., 0], y + share * field[..., 1]) for share in (0.5, -0.5)]
    before, after = (
        cv2.remap(lab, *half, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for lab, half in zip((last.lab, small.lab), halves, strict=True)
    )
    distance = np.sqrt(np.square(after - before).sum(axis=2)) * np.float32(LEVELS)
    inside = np.logical_and.reduce([(x >= 0) & (x < width) & (y >= 0) & (y < height) for x, y in halves])
    if inside.mean() < 0.1:
        return _in_blocks(distance), np.zeros(12, np.float32)
    one, other = (colours(cast("Floats", each)[inside]) for each in (before, after))
    colour_change = np.concatenate([other[0] - one[0], (other[1] - one[1]).ravel()])
    return _in_blocks(cast("Floats", distance)), colour_change


def _change(last: Downscaled | None, small: Downscaled) -> Floats:
    if last is None or last.lab.shape != small.lab.shape:
        return np.full(BLOCKS, np.nan, np.float32)
    distance = np.sqrt(np.square(small.lab - last.lab).sum(axis=2))
    return _in_blocks(distance) * np.float32(LEVELS)


def _in_blocks(values: Floats) -> Floats:
    """The mean of each block, row by row; channels stay together."""
    return cast("Floats", cv2.resize(values, GRID[::-1], interpolation=cv2.INTER_AREA)).ravel()


@dataclass(frozen=True)
class MeasureSeries:
    """The measures of n consecutive frames; see `Measure` for units."""

    mean: Floats
    """n x 3."""
    cov: Floats
    """n x 3 x 3."""
    sharpness: Floats
    noise: Floats
    noise_floor: Floats
    motion: Floats
    """n x blocks."""
    flow: Floats
    """n x blocks x 2."""
    residual: Floats
    """n x blocks."""
    colour_change: Floats
    """n x 12."""
    change: Floats
    """n x blocks."""
    blocks: Floats
    """n x blocks x 3."""
    change_over_two: Floats
    identical: Flags

    @staticmethod
    def of(measures: Sequence[Measure]) -> MeasureSeries:
        """At least one measure."""
        return MeasureSeries(
            mean=np.stack([each.mean for each in measures]),
            cov=np.stack([each.cov for each in measures]),
            sharpness=np.array([each.sharpness for each in measures], np.float32),
            noise=np.array([each.noise for each in measures], np.float32),
            noise_floor=np.array([each.noise_floor for each in measures], np.float32),
            motion=np.stack([each.motion for each in measures]),
            flow=np.stack([each.flow for each in measures]),
            residual=np.stack([each.residual for each in measures]),
            colour_change=np.stack([each.colour_change for each in measures]),
            change=np.stack([each.change for each in measures]),
            blocks=np.stack([each.blocks for each in measures]),
            change_over_two=np.array([each.change_over_two for each in measures], np.float32),
            identical=np.array([each.identical for each in measures], bool),
        )

    def __len__(self) -> int:
        return len(self.sharpness)

    def __getitem__(self, frames: slice) -> MeasureSeries:
        """A part of it."""
        return MeasureSeries(**{name: getattr(self, name)[frames] for name in _FIELDS})

    @property
    def mean_motion(self) -> Floats:
        """Mean motion of each frame, in thousandths of the width; 0 for a first frame."""
        motion: Floats = np.nan_to_num(self.motion.mean(axis=1), nan=0.0)
        return motion

    @property
    def mean_change(self) -> Floats:
        """Mean change of each frame, in levels of 255; NaN for a first frame."""
        change: Floats = self.change.mean(axis=1)
        return change

    @property
    def spread(self) -> Floats:
        """n x 3: standard deviations of L*, a*, b*."""
        spread: Floats = np.sqrt(np.maximum(np.diagonal(self.cov, axis1=1, axis2=2), 0))
        return spread


_FIELDS = tuple(MeasureSeries.__dataclass_fields__)


@dataclass(frozen=True)
class Drift:
    """How far the colours of n frames are from an anchor's, in CIELAB units (Delta E 1976)."""

    total: Floats
    """The Wasserstein (Frechet) distance between both pictures' colours, taken as normal distributions."""
    mean: Floats
    """The part that is the distance of the means."""
    spread: Floats
    """The part that is the difference of the spreads and their directions."""


def drift_from(series: MeasureSeries, mean: Floats, cov: Floats) -> Drift:
    """Every frame's distance from colours of this mean (3) and covariance (3 x 3)."""
    return colour_distance(series.mean, series.cov, mean, cov)


def colour_distance(
    means: NDArray[np.floating[Any]], covs: NDArray[np.floating[Any]], mean: Floats, cov: Floats
) -> Drift:
    """The distances of n means (n x 3) and covariances (n x 3 x 3) from one of each."""
    moved = np.square(means - mean).sum(axis=1)
    root = _matrix_root(cov.astype(np.float64)[None])[0]
    between = _matrix_root(root @ covs.astype(np.float64) @ root)
    traces = np.trace(covs, axis1=1, axis2=2) + np.trace(cov) - 2 * np.trace(between, axis1=1, axis2=2)
    spread = np.maximum(traces, 0)
    return Drift(
        np.sqrt(moved + spread).astype(np.float32),
        np.sqrt(moved).astype(np.float32),
        np.sqrt(spread).astype(np.float32),
    )


def _matrix_root(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric square roots of covariance matrices."""
    values, vectors = np.linalg.eigh(matrices)
    scaled: NDArray[np.float64] = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
    roots: NDArray[np.float64] = scaled @ vectors.transpose(0, 2, 1)
    return roots
