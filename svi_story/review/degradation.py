"""Whether a film accumulates errors, as opposed to: whether its story moves on.

Twice a second a frame is compared with those 1, 5, 10 and 20 s before, but only where the same content is
still in the picture: blocks of a small picture that optical flow finds again. Where too little stayed,
nothing can be told, and that is the answer. Memory holds the samples of 20 s, whatever the film's length.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, cast

import cv2
import numpy as np

from svi_story.review.thresholds import (
    COLOUR_DRIFT,
    LEAST_JUDGED,
    MELTED_EDGES,
    MELTED_SHARPNESS,
    SOFTENED,
    SOFTENING,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from svi_story.review.measures import Floats, Frame

What = Literal["colour", "softening", "melting"]

RATE = 2
"""Samples a second."""
WINDOW, HOP = 5.0, 2.5
"""Seconds: results are medians over windows."""
START = 6
"""Samples at the beginning that edges are compared with later."""
LAGS = (1, 5, 10, 20)
"""Seconds between the frames that are compared."""
MELTED_SECONDS = 15.0

WIDTH, BLOCK = 208, 8
"""Pixels: of the small picture, and of the blocks in it that are found again."""
LEAST_ROWS = 8
"""Rows of blocks that optical flow needs; lower pictures are stretched."""
FOUND_AGAIN = 0.8
"""Correlation of a block's lightness with that of the same content earlier."""
LEAST_BLOCKS, LEAST_SHARE = 15, 0.2
"""Blocks with texture, and their share, that must be found again for a comparison to count."""
TEXTURE = 4.0
"""Variance of L* in a block: below it, there is nothing to be found again."""
JUMPED = 0.2
"""Of a change over twice the time: what did not come in both halves is other light, or something new."""
MAGNIFIED = 1.1
"""A camera that comes nearer by more shows less fine detail of the same content."""


@dataclass(frozen=True)
class Window:
    """What was measured in a few seconds; NaN where too little stayed in the picture, or time passed."""

    start: float
    """Seconds."""
    colour: float
    """Same-content drift over 10 s: CIELAB a*b*, other light taken out, and what 1 s changes subtracted."""
    colour_20: float
    """The same over 20 s."""
    detail: float
    """Logarithm of how much fine detail the same content has kept over 10 s, relative to its contrast."""
    edges: float
    """Strength of the strongest edges in the last 15 s, as a share of that at the start."""
    sharpness: float
    """Gradient of edges relative to their contrast in the last 15 s, as a share of that at the start."""
    stayed: float
    """Share of the textured blocks that were found again after 5 s."""

    @property
    def judged(self) -> bool:
        """Whether enough stayed in the picture to judge it."""
        return bool(np.isfinite([self.colour, self.colour_20, self.detail]).any())

    @property
    def drift(self) -> float:
        """The larger of both colour drifts; NaN where neither was measured."""
        return float(np.fmax(self.colour, self.colour_20))


@dataclass(frozen=True)
class Degraded:
    """One way in which a film degrades."""

    what: What
    since: float
    """Seconds."""
    worst: float
    """Start of the worst window, in seconds."""
    value: float
    """CIELAB for colour; the share that was lost for softening and melting."""


@dataclass(frozen=True)
class Degradation:
    """The result for a film, or for a run of clips."""

    windows: tuple[Window, ...]
    found: tuple[Degraded, ...]

    @property
    def late_windows(self) -> tuple[Window, ...]:
        """Those that begin late enough for a comparison over 10 s."""
        late = (window for window in self.windows if window.start - self.windows[0].start + WINDOW > LAGS[2])
        return tuple(late)

    @property
    def judged_share(self) -> float:
        """Share of the late windows that could be judged."""
        late = [window.judged for window in self.late_windows]
        return sum(late) / len(late) if late else 0.0

    @property
    def verdict(self) -> Literal["degraded", "not degraded", "cannot tell"]:
        """The answer in words."""
        if self.found:
            return "degraded"
        return "not degraded" if self.judged_share >= LEAST_JUDGED else "cannot tell"


@dataclass(frozen=True)
class _Sample:
    """What is kept of a frame: 0.4 MB."""

    lab: Floats
    pattern: Frame
    """Luma with the local contrast made even, for optical flow."""
    fine: Floats
    """Energy of the finest detail of the full frame, at the size of the small picture."""
    edges: float
    """99th percentile of the gradient, in levels a pixel."""
    sharpness: float
    """Median over the picture of the largest gradient in a neighbourhood, relative to its contrast."""


class DegradationMeter:
    """Collects the samples of a film, or of a run of clips, in order."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, _Sample]] = deque(maxlen=LAGS[-1] * RATE + 4)
        self._times: list[float] = []
        self._rows: list[list[float]] = []
        self._first = 0.0
        self._start: _Sample | None = None
        self._from_reference = float("nan")

    def wants(self, seconds: float) -> bool:
        """Whether a frame at this time is to be added."""
        return not self._times or seconds - self._first >= len(self._times) / RATE - 1e-6

    def add(self, seconds: float, frame: Frame) -> None:
        """Measure a frame: height x width x 3, RGB."""
        sample = _sample(frame)
        row = [sample.edges, sample.sharpness]
        for lag in LAGS:
            earlier = min(self._recent, key=lambda each: abs(seconds - lag - each[0]), default=None)
            if earlier is None or abs(seconds - lag - earlier[0]) > 0.6 / RATE:
                row += [np.nan] * 3
            else:
                row += _compare(earlier[1], sample)
        if not self._times:
            self._first, self._start = seconds, sample
        # Where frames are missing, later samples keep their own times
        while self._times and seconds - self._first >= (len(self._times) + 1) / RATE:
            self._times.append(self._first + len(self._times) / RATE)
            self._rows.append([np.nan] * len(row))
        self._times.append(seconds)
        self._rows.append(row)
        self._recent.append((seconds, sample))

    def add_reference(self, frame: Frame) -> None:
        """Compare the first sample with the picture that it should show."""
        if self._start is not None:
            self._from_reference = _compare(_sample(frame), self._start)[2]

    @property
    def sharpness(self) -> Floats:
        """Sharpness of the edges in every sample; NaN where there are none."""
        return np.array([row[1] for row in self._rows], np.float32)

    def softened(self) -> list[float]:
        """Times at which the same content has clearly less fine detail than up to 10 s before."""
        if not self._rows:
            return []
        least = np.fmin.reduce(np.array(self._rows)[:, 4:13:3], axis=1)  # over 1, 5 and 10 s
        least[0] = self._from_reference
        over = least < np.log(1 - SOFTENED)
        return [seconds for seconds, soft in zip(self._times, over, strict=True) if soft]

    def result(self) -> Degradation:
        """Everything that the samples so far say."""
        if not self._times:
            return Degradation((), ())
        windows = tuple(_windows(np.array(self._times) - self._first, np.array(self._rows)))
        shifted = tuple(replace(each, start=each.start + self._first) for each in windows)
        return Degradation(shifted, tuple(_degraded(shifted)))


def _sample(frame: Frame) -> _Sample:
    height, width = frame.shape[:2]
    size = (WIDTH, max(round(WIDTH * height / width / BLOCK), LEAST_ROWS) * BLOCK)
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean = cv2.blur(grey, (15, 15))
    spread = np.sqrt(np.maximum(cv2.blur(grey * grey, (15, 15)) - mean * mean, 0)) + 4
    pattern = np.clip(128 + 50 * (grey - mean) / spread, 0, 255).astype(np.uint8)

    full: NDArray[Any] = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    detail = full - cv2.pyrUp(cv2.pyrDown(full), dstsize=(width, height))
    fine = cv2.resize(detail * detail, size, interpolation=cv2.INTER_AREA)
    gradient = _gradient(full)
    return _Sample(
        cast("Floats", lab),
        pattern,
        cast("Floats", fine),
        float(np.percentile(gradient[::2, ::2], 99)),
        _edge_sharpness(full),
    )


def _gradient(grey: NDArray[Any]) -> Floats:
    parts = (cv2.Sobel(grey, cv2.CV_32F, *order, scale=0.25) for order in ((1, 0), (0, 1)))
    return cast("Floats", cv2.magnitude(*parts))


def _edge_sharpness(full: NDArray[Any]) -> float:
    """Independent of light and contrast: 0.2 to 0.4 in films, half of that where everything is smeared."""
    height, width = full.shape
    if width > 2 * WIDTH:
        full = cv2.resize(full, (2 * WIDTH, round(2 * WIDTH * height / width)), interpolation=cv2.INTER_AREA)
    grey = cv2.GaussianBlur(full, (0, 0), 0.7)
    around = np.ones((17, 17), np.uint8)
    contrast = (cv2.dilate(grey, around) - cv2.erode(grey, around))[BLOCK::BLOCK, BLOCK::BLOCK]
    steepest = cv2.dilate(_gradient(grey) / 2, around)[BLOCK::BLOCK, BLOCK::BLOCK]
    visible = contrast > 16
    return float(np.median(steepest[visible] / contrast[visible])) if visible.sum() >= 20 else float("nan")


def _blocks(values: NDArray[Any]) -> Floats:
    """The mean of each block; channels stay together."""
    height, width = values.shape[:2]
    return cast("Floats", cv2.resize(values, (width // BLOCK, height // BLOCK), interpolation=cv2.INTER_AREA))


def _compare(old: _Sample, new: _Sample) -> list[float]:
    """Of what is in both pictures: its share, its change of colour, its fine detail (see `Window`)."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(
        new.pattern, old.pattern, cast("NDArray[np.float32]", None)
    )
    height, width = new.pattern.shape
    x = np.arange(width, dtype=np.float32)[None, :] + flow[..., 0]
    y = np.arange(height, dtype=np.float32)[:, None] + flow[..., 1]
    before, fine_before = (
        cv2.remap(each, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for each in (old.lab, old.fine)
    )
    inside = _blocks(((x >= 0) & (x < width) & (y >= 0) & (y < height)).astype(np.float32)) > 0.9
    was, now = _blocks(before), _blocks(new.lab)
    l_was, l_now = before[..., 0], new.lab[..., 0]
    var_was = np.maximum(_blocks(l_was * l_was) - was[..., 0] ** 2, 0)
    var_now = np.maximum(_blocks(l_now * l_now) - now[..., 0] ** 2, 0)
    together = _blocks(l_was * l_now) - was[..., 0] * now[..., 0]
    correlation = together / np.sqrt((var_was + 0.3) * (var_now + 0.3))
    textured = (var_was + var_now > 2 * TEXTURE) & inside
    found = textured & (correlation > FOUND_AGAIN)
    share = float(found.sum() / max(textured.sum(), 8))
    if found.sum() < LEAST_BLOCKS or share < LEAST_SHARE:
        return [share, np.nan, np.nan]
    # Smooth areas among what was found again have colours, too
    among = cv2.blur(found.astype(np.float32), (5, 5)) > 0.3
    stayed = found | (~textured & inside & among)
    change = now[stayed] - _in_light_of(was[stayed], now[stayed])
    colour = float(np.median(np.hypot(change[:, 1], change[:, 2])))
    return [share, colour, _detail_kept(fine_before, new.fine, (var_was, var_now), (x, y), found)]


def _detail_kept(
    before: NDArray[Any],
    after: Floats,
    variances: tuple[NDArray[Any], NDArray[Any]],
    places: tuple[Floats, Floats],
    found: NDArray[np.bool_],
) -> float:
    """Log ratio of fine detail to contrast; NaN where the camera came nearer."""
    earlier = [_blocks(np.ascontiguousarray(each))[found].std() for each in np.broadcast_arrays(*places)]
    rows, columns = np.nonzero(found)
    later = [columns.std() * BLOCK, rows.std() * BLOCK]
    if np.hypot(*later) > MAGNIFIED * np.hypot(*earlier):
        return float("nan")

    def log_ratio(now: NDArray[Any], was: NDArray[Any]) -> float:
        return 0.5 * float(np.median(np.log((now[found] + 0.3) / (was[found] + 0.3))))

    return log_ratio(_blocks(after), _blocks(before)) - log_ratio(variances[1], variances[0])


def _in_light_of(old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """Old colours (n x 3, CIELAB) in the light of the new ones: one gain for each linear RGB channel."""
    rgb_old, rgb_new = (
        cv2.cvtColor(each[None].astype(np.float32), cv2.COLOR_LAB2RGB)[0] for each in (old, new)
    )
    usable = (rgb_old.min(axis=1) > 0.04) & (rgb_new.max(axis=1) < 0.96)
    if usable.sum() <= 8:
        return old
    gain = np.clip(np.median((rgb_new[usable] + 0.02) / (rgb_old[usable] + 0.02), axis=0), 0.4, 2.5)
    lit = np.clip((rgb_old + 0.02) * gain - 0.02, 0, 1).astype(np.float32)
    return cast("NDArray[Any]", cv2.cvtColor(lit[None], cv2.COLOR_RGB2LAB)[0])


def _windows(times: NDArray[np.float64], rows: NDArray[np.float64]) -> list[Window]:
    """Times in seconds since the start, and the rows of `DegradationMeter.add`."""
    edges, sharpness = rows[:, 0], rows[:, 1]
    (_, over_1, _), (stayed, over_5, _), (_, over_10, detail), (_, over_20, _) = np.moveaxis(
        rows[:, 2:].reshape(-1, len(LAGS), 3), 0, 2
    )
    usual = float(np.nanmedian(over_1)) if np.isfinite(over_1).any() else np.nan
    drift_10 = _drift(over_10, over_5, usual, LAGS[1] * RATE)
    drift_20 = _drift(over_20, over_10, usual, LAGS[2] * RATE)
    first = np.flatnonzero(np.isfinite(sharpness))[:START]  # a film may begin in black
    windows = []
    for start in np.arange(0, max(times[-1] - WINDOW, 0) + 0.01, HOP):
        inside = (times >= start) & (times < start + WINDOW)
        lately = (times >= start + WINDOW - MELTED_SECONDS) & (times < start + WINDOW)
        enough = start + WINDOW >= MELTED_SECONDS
        windows.append(
            Window(
                float(start),
                _median(drift_10[inside], 3),
                _median(drift_20[inside], 3),
                _median(detail[inside], 3),
                _upper(edges[lately]) / _median(edges[first], 1) if enough else np.nan,
                _upper(sharpness[lately]) / _median(sharpness[first], 1) if enough else np.nan,
                _median(stayed[inside], 1),
            )
        )
    return windows


def _drift(
    whole: NDArray[np.float64], half: NDArray[np.float64], usual: float, steps: int
) -> NDArray[np.float64]:
    """What a time changes beyond the usual; 0 where it did not come in both halves, NaN where unknown."""
    halves = np.full(len(half), np.nan)
    halves[steps:] = np.minimum(half[steps:], half[:-steps]) - usual
    drift = np.where(np.isfinite(halves), whole - usual, np.nan)
    return np.where(halves <= JUMPED * drift, 0.0, drift)


def _median(values: NDArray[np.float64], least: int) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) >= least else float("nan")


def _upper(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.percentile(finite, 90)) if len(finite) else float("nan")


def _degraded(windows: Sequence[Window]) -> list[Degraded]:
    """What two windows in a row agree on; for melting one is enough, it is about 15 s."""
    found = []
    colour = [window.drift for window in windows]
    for what, values, limit in (
        ("colour", colour, COLOUR_DRIFT),
        ("softening", [1 - np.exp(window.detail) for window in windows], SOFTENING),
    ):
        over = [value > limit for value in values]
        pairs = [place for place, both in enumerate(pairwise(over)) if all(both)]
        if pairs:
            worst, since = int(np.nanargmax(values)), windows[pairs[0]].start
            found.append(Degraded(cast("What", what), since, windows[worst].start, float(values[worst])))
    melted = [
        place
        for place, window in enumerate(windows)
        if window.edges < MELTED_EDGES and window.sharpness < MELTED_SHARPNESS
    ]
    if melted:
        worst = min(melted, key=lambda place: windows[place].edges)
        since = windows[melted[0]].start + WINDOW - MELTED_SECONDS
        found.append(Degraded("melting", since, windows[worst].start, 1 - windows[worst].edges))
    return sorted(found, key=lambda each: each.since)
