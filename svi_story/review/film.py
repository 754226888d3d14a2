"""A film's review: every finished frame measured once, in order, and what is wrong with it; as JSON too."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from svi_story.engines import implementation_of
from svi_story.engines.anchor import open_anchor
from svi_story.enginespec import spec_of
from svi_story.errors import RenderError
from svi_story.events import ClipReviewed, Warned
from svi_story.review.analysis import Anchor, Part, Run
from svi_story.review.findings import TITLES, Fault, cures, faults_of
from svi_story.review.graphics import Picture, thumbnail
from svi_story.review.measures import Track, colours, look_of, measured, noise, sharpness
from svi_story.review.thresholds import Limit

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from svi_story.cache.entry import Entry
    from svi_story.cache.frames import Frames
    from svi_story.events import Reporter
    from svi_story.plan.model import FilmPlan, Segment, Shot
    from svi_story.review.analysis import Seam
    from svi_story.review.measures import Floats, Frame, Look, Measure

    FindEntry = Callable[[str], Entry | None]
    """A finished, verified segment by its key; None when it is not there."""


NAN = Limit(0, "numbers", "one that is not finite spoils what the VAE makes of it")
SHEET = 24
"""Pictures on the contact sheet, where a film has fewer clips."""
SHEET_WIDTH = 144
FEW_CLIPS = 60
"""Films of more clips get smaller pictures, so that the page stays below 15 MB."""


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
    limit: Limit
    cures: tuple[str, ...]

    @property
    def title(self) -> str:
        """Its name for people."""
        return TITLES[self.kind]


@dataclass(frozen=True)
class Join:
    """Where a segment follows another."""

    clip: int
    segment: int
    frame: int
    """The first frame after it, in the film."""
    kind: str
    """continue, cut, fade or dip; continue also between the segments of a clip."""
    seam: Seam | None
    """None where nothing can be said, and where a new chain starts."""


@dataclass(frozen=True)
class ClipReview:
    """One clip: what was made of it, and how."""

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
    sheet: tuple[Picture, ...]
    """A few small ones, evenly spaced, for the contact sheet."""

    @property
    def missing(self) -> int:
        """Segments that are not finished."""
        return sum(entry is None for entry in self.entries)


@dataclass(frozen=True)
class FilmReview:
    """All that is known of a film's frames."""

    plan: FilmPlan
    clips: tuple[ClipReview, ...]
    joins: tuple[Join, ...]
    findings: tuple[Finding, ...]


@dataclass
class _Reading:
    """What grows while a film is read."""

    plan: FilmPlan
    width: int
    """Of the pictures."""
    sheets: int
    """Pictures of each clip on the contact sheet."""
    top: int
    """Rows at the top of every picture that are not looked at."""
    report: Reporter
    done: int = 0
    anchors: dict[str, Anchor] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    pictures: dict[int, list[Picture]] = field(default_factory=dict)
    sheet: dict[int, list[Picture]] = field(default_factory=dict)
    spoilt: list[tuple[int, int, int]] = field(default_factory=list)
    """Clip, segment, and how many of its latents are not finite."""


def review_film(plan: FilmPlan, find: FindEntry, report: Reporter) -> FilmReview:
    """Measure all finished frames of a film. Each entry is opened once; memory holds no frames.

    The plan's segments have keys. RenderError when a verified entry cannot be read.
    """
    entries = [[find(segment.key) for segment in shot.segments] for shot in plan.shots]
    sheets = min(max(round(SHEET / len(plan.shots)), 1), 6)
    reading = _Reading(
        plan,
        320 if len(plan.shots) <= FEW_CLIPS else 224,
        sheets,
        implementation_of(plan.engine).overlay_rows(plan.size, plan.fps),
        report,
    )
    starts = clip_starts(plan)
    for parts in _runs(plan, entries):
        _read_run(parts, entries, reading)
    clips = tuple(
        _clip(number, shot, starts[number], entries[number], reading)
        for number, shot in enumerate(plan.shots)
    )
    return FilmReview(plan, clips, tuple(_joins(clips)), tuple(_findings(clips, reading)))


def clip_starts(plan: FilmPlan) -> list[int]:
    """Every clip's first frame in the film, at the board's rate; fades overlap, a title card comes before."""
    starts, place = [], plan.cut.title_card.frames if plan.cut.title_card else 0
    for shot in plan.shots:
        place -= shot.fade
        starts.append(place)
        place += shot.frames
    return starts


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


def _read_run(
    places: Sequence[tuple[int, int]], entries: Sequence[Sequence[Entry | None]], reading: _Reading
) -> None:
    """Measure a run's frames, clip by clip, and keep pictures of them."""
    measures: list[Measure] = []
    parts: list[Part] = []
    looks: tuple[Look, ...] = ()
    for clip, group in groupby(places, key=lambda place: place[0]):
        segments = [segment for _, segment in group]
        shot = reading.plan.shots[clip]
        total, shown = sum(shot.segments[each].contributes for each in segments), len(measures)
        sheet = {(2 * each + 1) * total // (2 * reading.sheets) for each in range(reading.sheets)}
        for segment in segments:
            start, entry = len(measures), entries[clip][segment]
            assert entry is not None, "runs hold what is finished"
            _look_at_latents(entry, clip, segment, reading)
            before = sum(each.contributes for each in shot.segments[:segment])
            for frame, (measure, look) in _measured(entry, shot.segments[segment], looks, reading.top):
                place, within = len(measures) - shown, before + len(measures) - start
                if place in (0, total // 2, total - 1):
                    reading.pictures.setdefault(clip, []).append(thumbnail(frame, within, reading.width))
                if place in sheet:
                    reading.sheet.setdefault(clip, []).append(thumbnail(frame, within, SHEET_WIDTH))
                measures.append(measure)
                looks = (*looks[-1:], look)
            parts.append(Part(clip, segment, entry.key, start, len(measures), before))
        reading.done += 1
        reading.report(ClipReviewed(reading.plan.board, shot.id, reading.done, len(reading.plan.shots)))
    anchor = _anchor(reading, places[0][0], measures[0])
    rests = spec_of(reading.plan.engine).still_subject
    starts = reading.plan.shots[places[0][0]].starts_chain and places[0][1] == 0
    reading.runs.append(Run(Track.of(measures), tuple(parts), anchor, reading.plan.fps, rests, starts))


def _measured(
    entry: Entry, segment: Segment, looks: tuple[Look, ...], top: int
) -> Iterator[tuple[Frame, tuple[Measure, Look]]]:
    """The frames that reach the film, with their numbers."""
    kept: list[Frame] = []

    def each(read: Iterator[Frame]) -> Iterator[Frame]:
        for frame in read:
            kept[:] = [frame]
            yield frame

    with entry.frames() as frames, closing(_read_ahead(frames, segment.overlap)) as read:
        for numbers in measured(each(read), looks, top):
            yield kept[0], numbers


def _read_ahead(frames: Frames, start: int) -> Generator[Frame, None, None]:
    """Frames from `start` on, each decoded by a second thread while the one before is measured."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(frames.__getitem__, start)
        for place in range(start + 1, len(frames) + 1):
            frame = coming.result()
            if place < len(frames):
                coming = pool.submit(frames.__getitem__, place)
            yield frame


def _look_at_latents(entry: Entry, clip: int, segment: int, reading: _Reading) -> None:
    floats = [each for each in entry.latents().values() if np.issubdtype(each.dtype, np.inexact)]
    spoilt = sum(int(np.count_nonzero(~np.isfinite(each))) for each in floats)
    if spoilt:
        reading.spoilt.append((clip, segment, spoilt))


def _anchor(reading: _Reading, clip: int, first: Measure) -> Anchor:
    """The numbers of a chain's anchor; where its file is gone, of the run's first frame."""
    planned = reading.plan.shots[clip].segments[0].anchor
    if planned.pixels not in reading.anchors:
        try:
            look, grey = look_of(open_anchor(planned), reading.top)
        except RenderError as error:
            reading.report(Warned(f"{reading.plan.board}: compared with the first frame instead: {error}"))
            return Anchor(first.mean, first.cov, first.noise, first.floor, first.sharpness)
        reading.anchors[planned.pixels] = Anchor(*colours(look.lab), *noise(grey), sharpness(grey))
    return reading.anchors[planned.pixels]


def _clip(
    number: int, shot: Shot, start: int, entries: Sequence[Entry | None], reading: _Reading
) -> ClipReview:
    found = [(run, run.clips()[number]) for run in reading.runs if number in run.clips()]
    run, frames = found[0] if found else (None, slice(0, 0))
    pictures, sheet = (tuple(each.get(number, ())) for each in (reading.pictures, reading.sheet))
    return ClipReview(number, shot, start, tuple(entries), run, frames, pictures, sheet)


def _joins(clips: Sequence[ClipReview]) -> Iterator[Join]:
    """Every place where a segment follows another, in film order."""
    for clip in clips:
        within = 0
        for segment, planned in enumerate(clip.shot.segments):
            if clip.number or segment:
                new = segment == 0 and clip.shot.starts_chain
                kind = _transition(clip.shot) if new else "continue"
                yield Join(clip.number, segment, clip.start + within, kind, _seam(clip, segment))
            within += planned.contributes


def _transition(shot: Shot) -> str:
    if shot.fade:
        return "fade"
    return "dip" if shot.dip else "cut"


def _seam(clip: ClipReview, segment: int) -> Seam | None:
    for part in clip.run.parts[1:] if clip.run else ():
        if (part.shot, part.segment) == (clip.number, segment):
            return clip.run.seams[part.start] if clip.run else None
    return None


def _findings(clips: Sequence[ClipReview], reading: _Reading) -> Iterator[Finding]:
    """Every warning, in film order."""
    found = [
        _finding(clips[clip], segment, Fault("nan", -1, 1, float(count), NAN), 0, reading.plan)
        for clip, segment, count in reading.spoilt
    ]
    for run in reading.runs:
        for shot, fault in faults_of(run):
            part = next(part for part in run.parts if part.start <= fault.frame < part.stop)
            within = part.within + fault.frame - part.start
            found.append(_finding(clips[shot], part.segment, fault, within, reading.plan))
    yield from sorted(found, key=lambda each: (each.frame, each.kind))


def _finding(clip: ClipReview, segment: int, fault: Fault, within: int, plan: FilmPlan) -> Finding:
    planned = clip.shot.segments[segment]
    if fault.kind == "nan":
        within = sum(each.contributes for each in clip.shot.segments[:segment])
    return Finding(
        kind=fault.kind,
        clip=clip.number,
        segment=segment,
        frame=clip.start + within,
        within=within,
        frames=fault.frames,
        value=fault.value,
        limit=fault.limit,
        cures=cures(fault.kind, planned, plan.engine),
    )


LONGEST = 366 * 24 * 3600
"""Seconds that a segment may have taken: a year."""


def as_json(review: FilmReview) -> dict[str, Any]:
    """Measures of every clip, joins and warnings; NaN never occurs, what was not measured is null."""
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
        "cannot_judge": [clip.shot.id for clip in review.clips if clip.run and clip.run.anchor.empty],
        "warnings": [_finding_json(finding, review) for finding in review.findings],
    }


def seconds_spent(clip: ClipReview) -> tuple[float, float] | None:
    """Seconds of sampling and of decoding, over a clip's finished segments; None where nothing was noted.

    What no clock can have shown counts as not noted: an entry may come from anybody.
    """
    notes = [entry.manifest.get("notes") for entry in clip.entries if entry is not None]
    spent = [
        tuple(_seconds(note.get(name)) for name in ("sampling_seconds", "decoding_seconds"))
        for note in notes
        if isinstance(note, dict)
    ]
    pairs = [(a, b) for a, b in spent if a is not None and b is not None]
    return (sum(a for a, _ in pairs), sum(b for _, b in pairs)) if pairs else None


def _seconds(noted: object) -> float | None:
    known = isinstance(noted, int | float) and not isinstance(noted, bool) and 0 <= noted <= LONGEST
    return float(noted) if known and isinstance(noted, int | float) else None


def measures(clip: ClipReview) -> dict[str, Any] | None:
    """A clip's numbers; None where nothing of it is finished."""
    if clip.run is None:
        return None
    track, drift = clip.run.track[clip.frames], clip.run.drift
    return {
        "drift": _range(drift.total[clip.frames]),
        "drift_of_mean": _range(drift.mean[clip.frames]),
        "drift_of_spread": _range(drift.spread[clip.frames]),
        "lab_mean": [round(float(each), 3) for each in track.mean.mean(axis=0)],
        "lab_spread": [round(float(each), 3) for each in track.spread.mean(axis=0)],
        "sharpness": _range(track.sharpness),
        "noise": _range(track.noise),
        "motion": _range(track.moving),
    }


def _range(values: Floats) -> dict[str, float | None]:
    numbers = {"first": values[0], "median": np.median(values), "last": values[-1], "most": values.max()}
    return {name: _rounded(float(value)) for name, value in numbers.items()}


def _clip_json(clip: ClipReview) -> dict[str, Any]:
    spent = seconds_spent(clip)
    return {
        "id": clip.shot.id,
        "start": clip.start,
        "frames": clip.shot.frames,
        "missing_segments": clip.missing,
        "sampling_seconds": round(spent[0], 3) if spent else None,
        "decoding_seconds": round(spent[1], 3) if spent else None,
        "measures": measures(clip),
    }


def _join_json(join: Join, review: FilmReview) -> dict[str, Any]:
    seam = join.seam
    return {
        "clip": review.clips[join.clip].shot.id,
        "segment": join.segment,
        "frame": join.frame,
        "kind": join.kind,
        "step": _rounded(seam.step if seam else None),
        "least": _rounded(seam.least if seam else None),
        "colour_step": _rounded(seam.pop if seam else None),
        "other_picture": _rounded(seam.other if seam else None),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else round(value, 3)


def _finding_json(finding: Finding, review: FilmReview) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "title": finding.title,
        "clip": review.clips[finding.clip].shot.id,
        "segment": finding.segment,
        "frame": finding.frame,
        "frame_in_clip": finding.within,
        "frames": finding.frames,
        "value": _rounded(finding.value),
        "threshold": finding.limit.value,
        "unit": finding.limit.unit,
        "cures": list(finding.cures),
    }
