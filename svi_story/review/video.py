"""The review of any film file: read once, in order, with the memory of 20 seconds."""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple, cast

import cv2
import numpy as np

from svi_story.events import Measured
from svi_story.media.video import VideoError, VideoReader
from svi_story.review.analysis import AnchorMeasures, Run, RunSegment
from svi_story.review.degradation import RATE, WINDOW, DegradationMeter
from svi_story.review.findings import against_in_film, broken_seam
from svi_story.review.graphics import Gallery, smaller
from svi_story.review.measures import (
    LEVELS,
    MeasureSeries,
    colour_distance,
    colours,
    downscale,
    measure_frames,
)
from svi_story.review.results import ClipReview, Facts, FilmReview, Finding, JoinReview, RunReview
from svi_story.review.steps import find_cuts, find_flashes, find_frozen, find_retiming, find_series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from svi_story.events import Reporter
    from svi_story.media.video import VideoInfo
    from svi_story.review.degradation import Degradation
    from svi_story.review.findings import Defect
    from svi_story.review.graphics import Picture
    from svi_story.review.measures import Floats, Frame

    Places = NDArray[np.int64]
    """Numbers of frames."""

PICTURES, PICTURE_WIDTH = 240, 320
"""Pictures that are kept of a film."""
STRIP_PICTURES, STRIP_WIDTH = 24, 144
REPORT_EVERY = 50
"""Frames."""
AROUND = 8
"""Frames on either side of a join that are measured."""


class _Frames(NamedTuple):
    """What one reading of a film gives."""

    info: VideoInfo
    damage: str
    times: Floats
    change: Floats
    over_two: Floats
    similarity: Floats
    sampled: dict[str, Floats]
    """Measures at RATE."""
    degradation: Degradation
    gallery: Gallery


def review_video(
    path: Path, reference: Frame | None, clip_frames: int | None, report: Reporter
) -> FilmReview:
    """Everything about a film; `clip_frames` is the length of its clips, in frames before any re-timing.

    Raises VideoError for what is no film, RenderError when it cannot be read.
    """
    read = _read(path, reference, report)
    fps, is_variable = _rate(read)
    retiming = None if is_variable else find_retiming(read.change)
    kept = np.flatnonzero(~retiming.repeats) if retiming else np.arange(len(read.times))
    cuts = [int(kept[each]) for each in find_cuts(read.change[kept], read.similarity[kept])]
    starts, titles = _clip_starts(read, cuts, clip_frames, retiming.ratio if retiming else Fraction(1))
    count = len(read.times)
    if is_variable:  # from here on, frames are counted on a timeline of a constant rate
        at = np.round(read.times.astype(np.float64) * float(fps)).astype(np.int64)
        starts, cuts, count = (
            [int(at[each]) for each in starts],
            [int(at[each]) for each in cuts],
            int(at[-1]) + 1,
        )
        read.gallery.renumber(at)
        read.sampled["change"] = _evenly(read.sampled["change"], at)
    clips = tuple(_clips(starts, titles, set(cuts), count, read.gallery))
    findings, joins = _degradation(read, clips, fps), list[JoinReview]()
    if not is_variable:
        findings += _steps(read, kept, fps, clips)
        if clip_frames or read.info.chapters:
            joins, broken = _joins(path, starts, kept, fps, set(cuts))
            findings += [_finding(clips, each, frame) for frame, each in broken]
    worst = read.degradation.found[0].worst + WINDOW / 2 if read.degradation.found else None
    run = RunReview(
        tuple(range(len(clips))),
        0.0,
        count / float(fps),
        read.degradation,
        read.gallery.nearest(0) if worst else None,
        read.gallery.nearest(round(worst * float(fps))) if worst else None,
    )
    # a repeated frame at a join is found in two ways
    once = {(each.kind, each.what, each.frame): each for each in findings}
    return FilmReview(
        path.name,
        path.name,
        fps,
        read.info.width,
        read.info.height,
        count,
        clips,
        tuple(joins),
        tuple(sorted(once.values(), key=lambda each: (each.frame, each.kind))),
        (run,),
        facts=Facts(read.info, retiming, is_variable, read.damage, read.sampled),
    )


def _read(path: Path, reference: Frame | None, report: Reporter) -> _Frames:
    """Read the film to its end."""
    meter, gallery = DegradationMeter(), Gallery(PICTURE_WIDTH, PICTURES)
    rows = {name: array("f") for name in ("times", "change", "over_two", "similarity")}
    distance = array("f")
    recent: deque[Frame] = deque(maxlen=2)
    anchor = colours(downscale(reference)[0].lab) if reference is not None else None
    with VideoReader(path, 1 / RATE) as film:
        declared = film.info.frames or round(film.info.seconds * float(Fraction(film.info.rate)))
        for number, shown in enumerate(film):
            luma = cast("Frame", cv2.cvtColor(shown.small, cv2.COLOR_RGB2GRAY))
            rows["times"].append(shown.seconds)
            for name, back in (("change", 1), ("over_two", 2)):
                far = len(recent) >= back
                rows[name].append(float(cv2.absdiff(luma, recent[-back]).mean()) if far else 0.0)
            rows["similarity"].append(_similarity(recent[-1], luma) if recent else 1.0)
            recent.append(luma)
            if shown.full is not None:
                meter.add(shown.seconds, shown.full)
                gallery.add(number, shown.full)
                mean, cov = colours(downscale(shown.full)[0].lab)
                anchor = anchor or (mean, cov)
                distance.append(float(colour_distance(mean[None], cov[None], *anchor).total[0]))
            if number % REPORT_EVERY == 0:
                report(Measured(path, "frames", number, max(declared, number)))
        report(Measured(path, "frames", len(rows["times"]), len(rows["times"])))
        if len(rows["times"]) < 2:
            raise VideoError(path, "is a single picture; name a film")
        series = {name: np.array(values, np.float32) for name, values in rows.items()}
        lines = {
            "distance": np.array(distance, np.float32),
            "sharpness": meter.sharpness,
            "change": series["change"],
        }
        return _Frames(
            film.info, film.damage, **series, sampled=lines, degradation=meter.result(), gallery=gallery
        )


def _evenly(values: Floats, at: Places) -> Floats:
    """Values of the frames at these places, on a timeline on which frames are missing."""
    line = np.full(int(at[-1]) + 1, np.nan, np.float32)
    line[at] = values
    return line


def _similarity(old: Frame, new: Frame) -> float:
    """The correlation of two pictures' luma, much smaller."""
    one, other = (
        cv2.resize(each, (26, 16), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
        for each in (old, new)
    )
    one, other = one - one.mean(), other - other.mean()
    return float((one @ other) / np.sqrt((one @ one + 100) * (other @ other + 100)))


def _rate(read: _Frames) -> tuple[Fraction, bool]:
    """The film's rate, and whether the time between its frames varies."""
    times = read.times.astype(np.float64)
    steps = np.diff(times)
    usual = float(np.median(steps))
    irregular = int((np.abs(steps - usual) > 0.25 * usual + 2e-3).sum())
    fps = Fraction(read.info.rate)
    for rate in (fps, Fraction(len(steps) / times[-1]).limit_denominator(1001)):
        fps, off = rate, np.abs(times - np.arange(len(times)) / float(rate)).max()
        if off <= 0.25:
            break
    return fps, bool(irregular > max(2, 0.01 * len(steps)) or off > 0.25)


def _clip_starts(
    read: _Frames, cuts: Sequence[int], clip_frames: int | None, ratio: Fraction
) -> tuple[list[int], list[str]]:
    """First frames of the clips, and their titles where they have any."""
    count, chapters = len(read.times), read.info.chapters
    if len(chapters) > 1:
        found = {int(np.searchsorted(read.times, each.start - 1e-3)): each.title for each in chapters}
        found = {0: chapters[0].title} | {at: title for at, title in found.items() if at < count}
        starts = sorted(found)
        return starts, [found[at] for at in starts]
    if clip_frames:
        clips = range(-(-int(count * ratio) // clip_frames))
        starts = [int(-(-clip * clip_frames // ratio)) for clip in clips]
        return starts, [""] * len(starts)
    return [0, *cuts], [""] * (len(cuts) + 1)


def _clips(
    starts: Sequence[int], titles: Sequence[str], cuts: set[int], count: int, gallery: Gallery
) -> Iterator[ClipReview]:
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], count], strict=True)):
        inside = [each for each in gallery.pictures if start <= each.within < stop]
        chosen = (
            {inside[place].within: inside[place] for place in (0, len(inside) // 2, -1)} if inside else {}
        )
        wanted = max(round(STRIP_PICTURES / len(starts)), 1)
        strip = [inside[(2 * n + 1) * len(inside) // (2 * wanted)] for n in range(wanted)] if inside else []
        name = titles[number] or f"clip-{number + 1:02d}"
        pictures = tuple(_within(each, start) for _, each in sorted(chosen.items()))
        small = {each.within: _within(smaller(each, STRIP_WIDTH), start) for each in strip}
        yield ClipReview(
            number, name, start, stop - start, number == 0 or start in cuts, pictures, tuple(small.values())
        )


def _within(picture: Picture, start: int) -> Picture:
    return replace(picture, within=picture.within - start)


def _degradation(read: _Frames, clips: Sequence[ClipReview], fps: Fraction) -> list[Finding]:
    found = []
    for each in read.degradation.found:
        count = clips[-1].start + clips[-1].frames
        frame = min(round(each.since * float(fps)), count - 1)
        clip = _clip_at(clips, frame)
        found.append(
            Finding(
                "degradation",
                clip.number,
                0,
                frame,
                frame - clip.start,
                count - frame,
                each.value,
                against_in_film("degradation"),
                each.what,
                each.since,
            )
        )
    return found


def _clip_at(clips: Sequence[ClipReview], frame: int) -> ClipReview:
    return next(clip for clip in reversed(clips) if clip.start <= frame)


def _steps(read: _Frames, kept: Places, fps: Fraction, clips: Sequence[ClipReview]) -> list[Finding]:
    """Frozen pictures, flashes, and repeated frames at regular distances; re-timing is taken out."""
    change = read.change[kept]
    # The frame two before a frame that follows a repeat is another one than what was compared
    over_two = np.where(np.diff(kept, n=2, prepend=[-2, -1]) == 0, read.over_two[kept], np.inf)
    over_two[np.diff(kept, prepend=-1) > 1] = np.inf
    places, period = find_series(change)
    frozen = find_frozen(change, float(fps), find_cuts(change, read.similarity[kept]))
    usual = {place: float(np.median(change[max(place - 5, 1) : place + 6])) for place in places}
    found = [
        *(("frozen", start - 1, steps + 1, steps + 1.0) for start, steps in frozen),
        *(("flash", each, 1, float(change[each]) / LEVELS) for each in find_flashes(change, over_two)),
        *(("duplicate", each, 1, float(change[each]) / max(usual[each], 1e-6)) for each in places),
    ]
    findings = []
    for kind, frame, frames, value in found:
        at = int(kept[frame])
        clip = _clip_at(clips, at)
        remedies = against_in_film(kind, period)
        findings.append(Finding(kind, clip.number, 0, at, at - clip.start, frames, value, remedies))
    return findings


def _finding(clips: Sequence[ClipReview], defect: Defect, frame: int) -> Finding:
    clip = _clip_at(clips, frame)
    remedies = against_in_film(defect.kind)
    return Finding(defect.kind, clip.number, 0, frame, frame - clip.start, 1, defect.value, remedies)


def _joins(
    path: Path, starts: Sequence[int], kept: Places, fps: Fraction, cuts: set[int]
) -> tuple[list[JoinReview], list[tuple[int, Defect]]]:
    """The steps over the joins of clips, for which the film is read again; with what is wrong with them."""
    place = {int(frame): index for index, frame in enumerate(kept)}
    joins: list[JoinReview] = []
    wanted: dict[int, range] = {}
    """Places in `kept` around the joins that are measured."""
    for clip, start in enumerate(starts[1:], 1):
        first = next((place[each] for each in range(start, start + 3) if each in place), 0)
        around = range(max(first - AROUND, 0), min(first + AROUND, len(kept)))
        if any(abs(start - cut) <= 1 for cut in cuts):
            joins.append(JoinReview(clip, 0, start, "cut", None))
        elif len(around) == 2 * AROUND and not any(around.start < each.stop for each in wanted.values()):
            wanted[clip] = around
        else:
            joins.append(JoinReview(clip, 0, start, "continue", None))
    broken = []
    for clip, frames in _read_around(
        path, {clip: [int(kept[n]) for n in each] for clip, each in wanted.items()}
    ):
        series = MeasureSeries.of([measure for measure, _ in measure_frames(frames)])
        parts = (RunSegment(0, 0, 0, AROUND, 0), RunSegment(1, 0, AROUND, len(series), 0))
        anchor = AnchorMeasures(series.mean[0], series.cov[0], float(series.noise[0]), 0.0, 0.0)
        run = Run(series, parts, anchor, fps, may_rest=False, starts_chain=False)
        seam, frame = run.seams[AROUND], int(kept[wanted[clip].start + AROUND])
        joins.append(JoinReview(clip, 0, frame, "continue", seam))
        if seam is not None:
            broken += [(frame, defect) for defect in broken_seam(run, parts[1], seam)]
    return sorted(joins, key=lambda each: each.frame), broken


def _read_around(path: Path, wanted: dict[int, list[int]]) -> Iterator[tuple[int, list[Frame]]]:
    """The small frames of each clip's join, in order; the frames of different joins do not overlap."""
    if not wanted:
        return
    joins = iter(wanted.items())
    clip, numbers = next(joins)
    frames: list[Frame] = []
    with VideoReader(path, 1e9) as film:
        for number, shown in enumerate(film):
            if number in numbers:
                frames.append(shown.small)
            if number == numbers[-1]:
                yield clip, frames
                clip, numbers = next(joins, (0, []))
                frames = []
                if not numbers:
                    return
