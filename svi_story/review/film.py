"""A film's review: every finished frame measured once, in order, and what is wrong with it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import numpy as np

from svi_story.engines import implementation_of
from svi_story.engines.base import open_anchor
from svi_story.enginespec import spec_of
from svi_story.errors import RenderError
from svi_story.events import ClipReviewed, Warned
from svi_story.review.analysis import AnchorMeasures, Run, RunSegment
from svi_story.review.contact_sheet import clip_starts
from svi_story.review.findings import Defect, defects_of, remedies
from svi_story.review.graphics import Picture, thumbnail
from svi_story.review.measures import (
    MeasureSeries,
    colours,
    downscale,
    measure_frames,
    noise,
    sharpness,
)
from svi_story.review.thresholds import TABLE, Threshold

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from svi_story.cache.entry import Entry
    from svi_story.cache.frames import Frames
    from svi_story.events import Reporter
    from svi_story.plan.model import FilmPlan, Segment, Shot
    from svi_story.review.analysis import Seam
    from svi_story.review.measures import Downscaled, Frame, Measure

    FindEntry = Callable[[str], Entry | None]
    """A finished, verified segment by its key; None when it is not in the cache."""

STRIP_PICTURES = 24
"""Pictures on the page's contact sheet, where a film has fewer clips."""
STRIP_WIDTH = 144
FEW_CLIPS = 60
"""Films of more clips get smaller pictures, so that the page stays below 15 MB."""
MAX_SECONDS = 366 * 24 * 3600
"""Sampling times above a year are ignored: they are forged."""


JoinKind = Literal["continue", "cut", "fade", "dip"]


@dataclass(frozen=True)
class Finding:
    """One warning."""

    kind: str
    clip: int
    """0-based number of the clip."""
    segment: int
    frame: int
    """Where it starts, in frames of the film at the board's rate."""
    within: int
    """The same, counted within the clip."""
    frames: int
    value: float
    remedies: tuple[str, ...]

    @property
    def threshold(self) -> Threshold:
        """The threshold that the value exceeds."""
        return TABLE[self.kind]


@dataclass(frozen=True)
class JoinReview:
    """Where a segment follows another."""

    clip: int
    segment: int
    frame: int
    """The first frame after it, in the film."""
    kind: JoinKind
    """continue, cut, fade or dip; continue also between the segments of a clip."""
    seam: Seam | None
    """None where it cannot be measured, and where a new chain starts."""


@dataclass(frozen=True)
class ClipReview:
    """One clip: its entries, measures and pictures."""

    number: int
    """0-based."""
    shot: Shot
    start: int
    """Its first frame in the film, at the board's rate, title card included."""
    entries: tuple[Entry | None, ...]
    """One for each segment."""
    run: Run | None
    """The run that holds its frames; None where none is finished."""
    frames: slice
    """Its frames in the run."""
    pictures: tuple[Picture, ...]
    """First, middle and last finished frame."""
    strip: tuple[Picture, ...]
    """A few small ones, evenly spaced, for the page's contact sheet."""

    @property
    def missing(self) -> int:
        """Segments that are not finished."""
        return sum(entry is None for entry in self.entries)

    @property
    def seconds_spent(self) -> tuple[float, float] | None:
        """Seconds of sampling and of decoding of the finished segments; None where they were not recorded.

        Entries may come from anybody: what is no plausible number of seconds is ignored.
        """
        pairs = []
        for entry in self.entries:
            notes = entry.manifest.get("notes") if entry else None
            if isinstance(notes, dict):
                sampling = _seconds(notes.get("sampling_seconds"))
                decoding = _seconds(notes.get("decoding_seconds"))
                if sampling is not None and decoding is not None:
                    pairs.append((sampling, decoding))
        return (sum(a for a, _ in pairs), sum(b for _, b in pairs)) if pairs else None


@dataclass(frozen=True)
class FilmReview:
    """All results for a film."""

    plan: FilmPlan
    clips: tuple[ClipReview, ...]
    joins: tuple[JoinReview, ...]
    findings: tuple[Finding, ...]

    @property
    def uniform_anchors(self) -> list[str]:
        """Ids of the clips whose anchor shows one colour only: nothing can be compared with it."""
        return [clip.shot.id for clip in self.clips if clip.run and clip.run.anchor.is_uniform]


def review_film(plan: FilmPlan, find: FindEntry, report: Reporter) -> FilmReview:
    """Measure all finished frames of a film. Each entry is opened once; memory holds no frames.

    The plan's segments have keys. RenderError when a verified entry cannot be read.
    """
    entries = [[find(segment.key) for segment in shot.segments] for shot in plan.shots]
    reader = _Reader(plan, entries, report)
    runs = [reader.read(places) for places in _runs(plan, entries)]
    of_clip = {clip: (run, frames) for run in reversed(runs) for clip, frames in run.clips().items()}
    clips = []
    for number, (shot, start) in enumerate(zip(plan.shots, clip_starts(plan), strict=True)):
        run, frames = of_clip.get(number, (None, slice(0, 0)))
        pictures, strip = (tuple(each.get(number, ())) for each in (reader.pictures, reader.strips))
        clips.append(ClipReview(number, shot, start, tuple(entries[number]), run, frames, pictures, strip))
    return FilmReview(plan, tuple(clips), tuple(_joins(clips)), _findings(clips, runs, reader))


def _runs(plan: FilmPlan, entries: Sequence[Sequence[Entry | None]]) -> Iterator[list[tuple[int, int]]]:
    """Numbers of clip and segment of what is finished, in runs that no cut and no gap interrupts."""
    run = 0
    numbered: list[tuple[int, int, int]] = []
    for clip, shot in enumerate(plan.shots):
        run += shot.starts_chain
        for segment, entry in enumerate(entries[clip]):
            run += entry is None
            if entry is not None:
                numbered.append((run, clip, segment))
    for _, group in groupby(numbered, key=lambda each: each[0]):
        yield [(clip, segment) for _, clip, segment in group]


class _Reader:
    """Reads the entries of a film, run by run: measures, pictures, and NaN or Inf in latents."""

    def __init__(self, plan: FilmPlan, entries: Sequence[Sequence[Entry | None]], report: Reporter) -> None:
        self._plan, self._entries, self._report = plan, entries, report
        self._width = 320 if len(plan.shots) <= FEW_CLIPS else 224
        self._strip = min(max(round(STRIP_PICTURES / len(plan.shots)), 1), 6)
        self._top = implementation_of(plan.engine).overlay_rows(plan.size, plan.fps)
        self._done = 0
        self._anchors: dict[str, AnchorMeasures] = {}
        self.pictures: dict[int, list[Picture]] = {}
        self.strips: dict[int, list[Picture]] = {}
        self.not_finite: list[tuple[int, int, int]] = []
        """Clip, segment, and how many values of its latents are not finite."""

    def read(self, places: Sequence[tuple[int, int]]) -> Run:
        """Measure a run's frames, clip by clip, and keep pictures of them."""
        measures: list[Measure] = []
        parts: list[RunSegment] = []
        previous: tuple[Downscaled, ...] = ()
        for clip, group in groupby(places, key=lambda place: place[0]):
            segments = [segment for _, segment in group]
            shot, first = self._plan.shots[clip], len(measures)
            total = sum(shot.segments[each].contributes for each in segments)
            in_strip = {(2 * each + 1) * total // (2 * self._strip) for each in range(self._strip)}
            for segment in segments:
                start, entry = len(measures), self._entries[clip][segment]
                assert entry is not None, "runs hold what is finished"
                self._check_latents(entry, clip, segment)
                before = sum(each.contributes for each in shot.segments[:segment])
                for frame, (measure, small) in _measured(entry, shot.segments[segment], previous, self._top):
                    place, within = len(measures) - first, before + len(measures) - start
                    if place in (0, total // 2, total - 1):
                        self.pictures.setdefault(clip, []).append(thumbnail(frame, within, self._width))
                    if place in in_strip:
                        self.strips.setdefault(clip, []).append(thumbnail(frame, within, STRIP_WIDTH))
                    measures.append(measure)
                    previous = (*previous[-1:], small)
                parts.append(RunSegment(clip, segment, start, len(measures), before))
            self._done += 1
            self._report(ClipReviewed(self._plan.board, shot.id, self._done, len(self._plan.shots)))
        clip, segment = places[0]
        return Run(
            MeasureSeries.of(measures),
            tuple(parts),
            self._anchor(clip, measures[0]),
            self._plan.fps,
            may_rest=spec_of(self._plan.engine).still_subject,
            starts_chain=self._plan.shots[clip].starts_chain and segment == 0,
        )

    def _check_latents(self, entry: Entry, clip: int, segment: int) -> None:
        floats = [each for each in entry.latents().values() if np.issubdtype(each.dtype, np.inexact)]
        count = sum(int(np.count_nonzero(~np.isfinite(each))) for each in floats)
        if count:
            self.not_finite.append((clip, segment, count))

    def _anchor(self, clip: int, first: Measure) -> AnchorMeasures:
        """The measures of a chain's anchor; of the run's first frame where the anchor's file is gone."""
        planned = self._plan.shots[clip].segments[0].anchor
        if planned.pixels not in self._anchors:
            try:
                small, grey = downscale(open_anchor(planned), self._top)
            except RenderError as error:
                what = f"{self._plan.board}: compared with the first frame instead: {error}"
                self._report(Warned(what))
                return AnchorMeasures(first.mean, first.cov, first.noise, first.noise_floor, first.sharpness)
            self._anchors[planned.pixels] = AnchorMeasures(*colours(small.lab), *noise(grey), sharpness(grey))
        return self._anchors[planned.pixels]


def _measured(
    entry: Entry, segment: Segment, previous: tuple[Downscaled, ...], top: int
) -> Iterator[tuple[Frame, tuple[Measure, Downscaled]]]:
    """The frames that reach the film, with their measures."""
    current: list[Frame] = []

    def keep(frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            current[:] = [frame]
            yield frame

    with entry.frames() as frames, closing(_read_ahead(frames, segment.overlap)) as read:
        for measured in measure_frames(keep(read), previous, top):
            yield current[0], measured


def _read_ahead(frames: Frames, start: int) -> Generator[Frame, None, None]:
    """Frames from `start` on, each decoded by a second thread while the one before is measured."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(frames.__getitem__, start)
        for place in range(start + 1, len(frames) + 1):
            frame = coming.result()
            if place < len(frames):
                coming = pool.submit(frames.__getitem__, place)
            yield frame


def _joins(clips: Sequence[ClipReview]) -> Iterator[JoinReview]:
    """Every place where a segment follows another, in film order."""
    for clip in clips:
        frame, run = clip.start, clip.run
        measured = {(each.clip, each.segment): each.start for each in run.segments[1:]} if run else {}
        for segment, planned in enumerate(clip.shot.segments):
            if clip.number or segment:
                kind: JoinKind = "continue"
                if segment == 0 and clip.shot.starts_chain:
                    kind = "fade" if clip.shot.fade else "dip" if clip.shot.dip else "cut"
                start = measured.get((clip.number, segment))
                seam = run.seams[start] if run and start is not None else None
                yield JoinReview(clip.number, segment, frame, kind, seam)
            frame += planned.contributes


def _findings(clips: Sequence[ClipReview], runs: Sequence[Run], reader: _Reader) -> tuple[Finding, ...]:
    """Every warning, in film order."""
    found = []
    for number, segment, count in reader.not_finite:
        within = sum(each.contributes for each in clips[number].shot.segments[:segment])
        found.append(_finding(clips[number], segment, Defect("nan", -1, 1, float(count)), within))
    for run in runs:
        for number, defect in defects_of(run):
            part = next(each for each in run.segments if each.start <= defect.frame < each.stop)
            within = part.within + defect.frame - part.start
            found.append(_finding(clips[number], part.segment, defect, within))
    return tuple(sorted(found, key=lambda each: (each.frame, each.kind)))


def _finding(clip: ClipReview, segment: int, defect: Defect, within: int) -> Finding:
    planned = clip.shot.segments[segment]
    return Finding(
        kind=defect.kind,
        clip=clip.number,
        segment=segment,
        frame=clip.start + within,
        within=within,
        frames=defect.frames,
        value=defect.value,
        remedies=remedies(defect.kind, planned, planned.engine),
    )


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SECONDS:
        return float(value)
    return None
