"""A film's review: every finished frame measured once, in order, and what is wrong with it; also as JSON."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from svi_story.engines import implementation_of
from svi_story.engines.anchor import open_anchor
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
    from svi_story.review.measures import Downscaled, Floats, Frame, Measure

    FindEntry = Callable[[str], Entry | None]
    """A finished, verified segment by its key; None when it is not in the cache."""

STRIP_PICTURES = 24
"""Pictures on the page's contact sheet, where a film has fewer clips."""
STRIP_WIDTH = 144
FEW_CLIPS = 60
"""Films of more clips get smaller pictures, so that the page stays below 15 MB."""
MAX_SECONDS = 366 * 24 * 3600
"""Sampling times above a year are ignored: they are forged."""


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
    kind: str
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
                kind = "continue"
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


def as_json(review: FilmReview) -> dict[str, Any]:
    """The JSON of `review --json`; NaN never occurs, what was not measured is null."""
    plan = review.plan
    return {
        "board": str(plan.board),
        "title": plan.title,
        "frames": sum(shot.frames - shot.fade for shot in plan.shots),
        "fps": str(plan.fps),
        "width": plan.size.width,
        "height": plan.size.height,
        "engine": plan.engine,
        "clips": [_clip_json(clip) for clip in review.clips],
        "joins": [_join_json(join, review) for join in review.joins],
        "cannot_judge": review.uniform_anchors,
        "warnings": [_finding_json(finding, review) for finding in review.findings],
    }


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SECONDS:
        return float(value)
    return None


def _clip_json(clip: ClipReview) -> dict[str, Any]:
    spent = clip.seconds_spent
    return {
        "id": clip.shot.id,
        "start": clip.start,
        "frames": clip.shot.frames,
        "missing_segments": clip.missing,
        "sampling_seconds": round(spent[0], 3) if spent else None,
        "decoding_seconds": round(spent[1], 3) if spent else None,
        "measures": _measures_json(clip),
    }


def _measures_json(clip: ClipReview) -> dict[str, Any] | None:
    """A clip's measures; None where none of its segments is finished."""
    if clip.run is None:
        return None
    series, drift = clip.run.series[clip.frames], clip.run.drift
    return {
        "drift": _range(drift.total[clip.frames]),
        "drift_of_mean": _range(drift.mean[clip.frames]),
        "drift_of_spread": _range(drift.spread[clip.frames]),
        "lab_mean": [round(float(each), 3) for each in series.mean.mean(axis=0)],
        "lab_spread": [round(float(each), 3) for each in series.spread.mean(axis=0)],
        "sharpness": _range(series.sharpness),
        "noise": _range(series.noise),
        "motion": _range(series.mean_motion),
    }


def _range(values: Floats) -> dict[str, float | None]:
    numbers = {"first": values[0], "median": np.median(values), "last": values[-1], "most": values.max()}
    return {name: _rounded(float(value)) for name, value in numbers.items()}


def _join_json(join: JoinReview, review: FilmReview) -> dict[str, Any]:
    seam = join.seam
    return {
        "clip": review.clips[join.clip].shot.id,
        "segment": join.segment,
        "frame": join.frame,
        "kind": join.kind,
        "step": _rounded(seam.step if seam else None),
        "least": _rounded(seam.least if seam else None),
        "colour_step": _rounded(seam.colour_step if seam else None),
        "other_picture": _rounded(seam.other_picture if seam else None),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else round(value, 3)


def _finding_json(finding: Finding, review: FilmReview) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "title": finding.threshold.title,
        "clip": review.clips[finding.clip].shot.id,
        "segment": finding.segment,
        "frame": finding.frame,
        "frame_in_clip": finding.within,
        "frames": finding.frames,
        "value": _rounded(finding.value),
        "threshold": finding.threshold.value,
        "unit": finding.threshold.unit,
        "cures": list(finding.remedies),
    }
