"""Thumbnails and plots for the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from svi_story.review.thresholds import TABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svi_story.review.film import FilmReview
    from svi_story.review.measures import Floats, Frame

POINTS = 1200
"""Most points of a line: more than a wide screen has columns."""
WIDTH = 1000
"""Of a plot, in the units of its paths."""
QUALITY = 68


@dataclass(frozen=True)
class Picture:
    """One frame, small."""

    within: int
    """The frame's place within its clip."""
    width: int
    height: int
    webp: bytes

    @property
    def uri(self) -> str:
        """As a data URI."""
        return f"data:image/webp;base64,{base64.b64encode(self.webp).decode()}"


def thumbnail(frame: Frame, within: int, width: int) -> Picture:
    """A frame at most `width` wide, as WebP."""
    image = Image.fromarray(frame)
    image.thumbnail((width, width), Image.Resampling.BILINEAR, reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY, method=2)
    return Picture(within, image.width, image.height, file.getvalue())


@dataclass(frozen=True)
class PlotLine:
    """One series of a plot."""

    name: str
    path: str
    """The d of an SVG path, in WIDTH x 100."""
    values: list[float | None]
    """For reading off, evenly spaced over the film."""


@dataclass(frozen=True)
class Plot:
    """One measure over the whole film."""

    id: str
    title: str
    unit: str
    explanation: str
    lines: tuple[PlotLine, ...]
    top: float
    """The value at the upper edge; the lower edge is 0."""
    threshold: float | None
    """Drawn as a dashed line."""

    def y(self, value: float) -> float:
        """A value's place between 0 (top) and 100."""
        return round(100 - 100 * min(value / self.top, 1.0), 2)


def plots(review: FilmReview, frames: int) -> tuple[Plot, ...]:
    """Colour drift, sharpness and motion over a film of so many frames at the board's rate."""
    drift = [(part, film_line(review, frames, f"drift.{part}")) for part in ("total", "mean", "spread")]
    sharpness = film_line(review, frames, "series.sharpness")
    motion = film_line(review, frames, "series.mean_motion") * np.float32(float(review.plan.fps) / 10)
    colours = "distance from the anchor’s colours in CIELAB"
    return (
        _plot(("drift", "Colour drift", "ΔE", colours), drift, TABLE["drift"].value),
        _plot(
            ("sharpness", "Sharpness", "0–1", "detail that a blur would remove"), [("sharpness", sharpness)]
        ),
        _plot(("motion", "Motion", "% of width per s", "mean optical flow"), [("motion", motion)]),
    )


def film_line(review: FilmReview, frames: int, name: str) -> Floats:
    """A measure of every film frame, NaN where nothing was measured; in a fade, the later clip's.

    `name` is an attribute of `Run`, and an attribute of that.
    """
    line = np.full(frames, np.nan, np.float32)
    owner, _, attribute = name.partition(".")
    for clip in review.clips:
        if clip.run is None:
            continue
        values = getattr(getattr(clip.run, owner), attribute)
        for each in clip.run.segments:
            if each.clip == clip.number:
                place = clip.start + each.within
                line[place : place + each.stop - each.start] = values[each.start : each.stop]
    return line


def _plot(
    words: tuple[str, str, str, str], series: Sequence[tuple[str, Floats]], threshold: float | None = None
) -> Plot:
    most = max(float(np.nanmax(values, initial=0)) for _, values in series)
    top = _round_up(max(most * 1.08, (threshold or 0) * 1.15, 0.01))
    lines = []
    for name, values in series:
        count = min(len(values), 4 * POINTS)
        places = ((np.arange(count) + 0.5) * len(values) / max(count, 1)).astype(int)
        sampled = [round(float(each), 2) if np.isfinite(each) else None for each in values[places]]
        lines.append(PlotLine(name, svg_path(values, top), sampled))
    return Plot(*words, tuple(lines), top, threshold)


def _round_up(value: float) -> float:
    """The next value with one or two plain digits."""
    unit: float = 10 ** np.floor(np.log10(value))
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return float(next(step for step in steps if step * unit >= value * 0.999) * unit)


def svg_path(values: Floats, top: float) -> str:
    """An SVG path; a long line keeps the lowest and highest value of every column, gaps stay gaps."""
    frames = len(values)
    places = _extremes(values) if frames > POINTS else list(range(frames))
    parts, command = [], "M"
    for place in places:
        if np.isfinite(values[place]):
            x = (place + 0.5) / frames * WIDTH
            parts.append(f"{command}{x:.1f} {100 - 100 * min(values[place] / top, 1):.1f}")
            command = "L"
        else:
            command = "M"
    return "".join(parts)


def _extremes(values: Floats) -> list[int]:
    """The frames that hold each column's lowest and highest value, in order; a gap's first frame too."""
    chosen: set[int] = set()
    for column in np.array_split(np.arange(len(values)), POINTS // 2):
        part = values[column]
        if np.isfinite(part).any():
            chosen |= {int(column[np.nanargmin(part)]), int(column[np.nanargmax(part)])}
        chosen |= {int(each) for each in column[~np.isfinite(part)][:1]}
    return sorted(chosen)
