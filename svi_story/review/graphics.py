"""Thumbnails and plots for the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from svi_story.review.degradation import HOP, WINDOW
from svi_story.review.thresholds import COLOUR_DRIFT, SOFTENING, TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from fractions import Fraction

    from numpy.typing import NDArray

    from svi_story.cache.frames import Frames
    from svi_story.review.degradation import Window
    from svi_story.review.measures import Floats, Frame
    from svi_story.review.results import FilmReview

POINTS = 1200
"""Most points of a line: more than a wide screen has columns."""
WIDTH = 1000
"""Of a plot, in the units of its paths."""
QUALITY = 68
LOOP_WIDTH, LOOP_FPS, LOOP_QUALITY = 240, 8, 50
"""Of animations: at most so many pixels wide, and about so many pictures a second."""


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


def loop_of(parts: Sequence[tuple[Callable[[], Frames], int]], fps: Fraction, most: int) -> Picture | None:
    """A take as an endless animation of at most `most` pictures, at its own speed; None without frames.

    `parts` open the frames of its segments, and say how many of them at the start repeat the one before.
    """
    total = 0
    for opened, overlap in parts:
        with opened() as frames:
            total += max(len(frames) - overlap, 0)
    if not total or not most:
        return None
    apart = max(ceil(total / most), round(fps / LOOP_FPS), 1)
    pictures: list[Image.Image] = []
    place = 0
    for opened, overlap in parts:
        with opened() as frames:
            for number in range(overlap, len(frames)):
                if place % apart == 0 and len(pictures) < most:
                    image = Image.fromarray(frames[number])
                    image.thumbnail((LOOP_WIDTH, LOOP_WIDTH), Image.Resampling.BILINEAR, reducing_gap=2.0)
                    pictures.append(image)
                place += 1
    file = io.BytesIO()
    pictures[0].save(
        file,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=max(round(1000 * apart / fps), 20),
        loop=0,
        quality=LOOP_QUALITY,
        method=2,
    )
    return Picture(0, pictures[0].width, pictures[0].height, file.getvalue())


def smaller(picture: Picture, width: int) -> Picture:
    """The same picture at most `width` wide."""
    frame = np.asarray(Image.open(io.BytesIO(picture.webp)).convert("RGB"))
    return thumbnail(frame, picture.within, width)


class Gallery:
    """A few pictures of a film of unknown length, evenly spaced: of too many, every other one goes."""

    def __init__(self, width: int, most: int) -> None:
        self._width, self._most = width, most
        self._step, self._offered = 1, 0
        self.pictures: list[Picture] = []

    def add(self, frame: int, picture: Frame) -> None:
        """Offer a frame of the film; it may be left out."""
        if self._offered % self._step == 0:
            self.pictures.append(thumbnail(picture, frame, self._width))
        self._offered += 1
        if len(self.pictures) > self._most:
            self.pictures = self.pictures[::2]
            self._step *= 2

    def renumber(self, numbers: Sequence[int] | NDArray[np.int64]) -> None:
        """Give every picture the number that its frame has in another count."""
        self.pictures = [replace(each, within=int(numbers[each.within])) for each in self.pictures]

    def nearest(self, frame: int) -> Picture | None:
        """The picture that is nearest to a frame."""
        return min(self.pictures, key=lambda each: abs(each.within - frame), default=None)


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


def plots(review: FilmReview) -> tuple[Plot, ...]:
    """Degradation, colours, sharpness and motion over a film; only what was measured somewhere."""
    columns = min(review.frames, POINTS)
    colour = window_line(review, columns, lambda window: window.drift)
    detail = window_line(review, columns, lambda window: 100 * (1 - np.exp(window.detail)))
    edges = window_line(review, columns, lambda window: 100 * (1 - window.edges))
    lost = [("detail", np.maximum(detail, 0)), ("edges", np.maximum(edges, 0))]
    about_colour = "change of what stayed in the picture for 10 or 20 s, other light apart"
    drawn = []
    if any(run.degradation.late_windows for run in review.runs):
        drawn += [
            _plot(("colour", "Degradation: colours", "ΔE", about_colour), [("", colour)], COLOUR_DRIFT),
            _plot(
                ("lost", "Degradation: detail", "% lost", "by what stayed for 10 s; by the strongest edges"),
                lost,
                100 * SOFTENING,
            ),
        ]
    return (*drawn, *(_plots_of_file(review) if review.facts else _plots_of_board(review)))


def _plots_of_board(review: FilmReview) -> Iterator[Plot]:
    drift = [(part, film_line(review, f"drift.{part}")) for part in ("total", "mean", "spread")]
    warned = any(clip.run and clip.run.same_scene for clip in review.clips)
    colours = "distance of the colours from the anchor’s in CIELAB"
    if not warned:
        colours += ", which the prompts may ask for"
    yield _plot(
        ("drift", "Distance from the anchor", "ΔE", colours), drift, TABLE["drift"].value if warned else None
    )
    sharpness = film_line(review, "series.sharpness")
    yield _plot(
        ("sharpness", "Sharpness", "0–1", "detail that a blur would remove"), [("sharpness", sharpness)]
    )
    motion = film_line(review, "series.mean_motion") * np.float32(float(review.fps) / 10)
    yield _plot(("motion", "Motion", "% of width per s", "mean optical flow"), [("motion", motion)])


def _plots_of_file(review: FilmReview) -> Iterator[Plot]:
    assert review.facts is not None, "the review of a film file"
    for name, words in (
        ("distance", ("Distance of the colours", "ΔE", "from the reference, else from the first frame")),
        ("sharpness", ("Sharpness", "a pixel", "gradient of edges, relative to their contrast")),
        ("change", ("Change", "levels", "mean difference to the frame before")),
    ):
        yield _plot((name, *words), [("", review.facts.sampled[name])])


def window_line(review: FilmReview, columns: int, value: Callable[[Window], float]) -> Floats:
    """A value of the windows at so many places, evenly spaced over the film; NaN where there is none."""
    line = np.full(columns, np.nan, np.float32)
    for run in review.runs:
        for window in run.degradation.windows:
            middle = window.start + WINDOW / 2
            ends = (middle - HOP / 2, middle + HOP / 2)
            first, last = (min(max(round(end / review.seconds * columns), 0), columns) for end in ends)
            line[first:last] = value(window)
    return line


def unjudged(review: FilmReview) -> list[tuple[float, float]]:
    """Where too little stayed in the picture: start and length, in percent of the film."""
    unit = 100 / review.seconds
    return [
        (round((window.start + (WINDOW - HOP) / 2) * unit, 3), round(HOP * unit, 3))
        for run in review.runs
        for window in run.degradation.windows
        if not window.judged
    ]


def film_line(review: FilmReview, name: str) -> Floats:
    """A measure of every film frame, NaN where nothing was measured; in a fade, the later clip's.

    `name` is an attribute of `Run`, and an attribute of that.
    """
    line = np.full(review.frames, np.nan, np.float32)
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
