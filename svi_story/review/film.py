"""The review of a board: measures every finished frame once, in order, and finds faults."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import groupby, takewhile
from typing import TYPE_CHECKING

import numpy as np

from svi_story.engines import implementation_of
from svi_story.engines.base import open_anchor
from svi_story.enginespec import spec_of
from svi_story.errors import RenderError
from svi_story.events import Measured, Warned
from svi_story.review.analysis import AnchorMeasures, Run, RunSegment
from svi_story.review.contact_sheet import clip_starts
from svi_story.review.degradation import WINDOW, DegradationMeter
from svi_story.review.findings import Defect, against_degradation, defects_of, remedies
from svi_story.review.graphics import Gallery, Picture, loop_of, thumbnail
from svi_story.review.measures import (
    MeasureSeries,
    colours,
    downscale,
    measure_frames,
    noise,
    sharpness,
)
from svi_story.review.results import ClipReview, FilmReview, Finding, JoinReview, RunReview, TakeReview
from svi_story.review.thresholds import ALIKE_PROMPTS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from svi_story.cache.entry import Entry
    from svi_story.cache.frames import Frames
    from svi_story.events import Reporter
    from svi_story.plan.model import FilmPlan, Segment, Shot
    from svi_story.review.measures import Downscaled, Frame, Measure
    from svi_story.review.results import JoinKind

    FindEntry = Callable[[str], Entry | None]
    """A finished, verified segment by its key; None when it is not in the cache."""

STRIP_PICTURES = 24
"""Pictures on the page's contact sheet, where a film has fewer clips."""
STRIP_WIDTH = 144
FEW_CLIPS = 60
"""Films of more clips get smaller pictures, so that the page stays below 15 MB."""
LOOP_MOST, LOOP_LEAST, LOOP_PICTURES = 60, 6, 2000
"""Pictures of a take's animation, and of all on a page together (about 8 MB)."""
PAIR_PICTURES = 60
"""Pictures of a run that are kept until its worst window is known."""


def review_film(plan: FilmPlan, find: FindEntry, report: Reporter) -> FilmReview:
    """Measure all finished frames of a film. Each entry is opened once; memory holds no frames.

    The plan's segments have keys. RenderError when a verified entry cannot be read.
    """
    entries = [[find(segment.key) for segment in shot.segments] for shot in plan.shots]
    clips, runs, reader = _measure(plan, entries, report)
    findings = _findings(clips, runs, reader)
    loops = _loop_frames(plan)
    clips = [replace(clip, takes=tuple(_takes(plan, clip, findings, find, loops))) for clip in clips]
    cards = plan.cut.end_card.frames if plan.cut.end_card else 0
    return FilmReview(
        plan.title,
        plan.board.name,
        plan.fps,
        plan.size.width,
        plan.size.height,
        clips[-1].start + clips[-1].frames + cards,
        tuple(clips),
        tuple(_joins(clips)),
        findings,
        tuple(reader.runs),
        plan,
    )


def _measure(
    plan: FilmPlan, entries: Sequence[Sequence[Entry | None]], report: Reporter
) -> tuple[list[ClipReview], list[Run], ChainReader]:
    """All clips of a film with the measures of what is finished."""
    starts = clip_starts(plan)
    reader = ChainReader(plan, entries, report)
    runs = [reader.read(places) for places in _runs(plan, entries)]
    of_clip = {clip: (run, frames) for run in reversed(runs) for clip, frames in run.clips().items()}
    clips = []
    for number, (shot, start) in enumerate(zip(plan.shots, starts, strict=True)):
        run, frames = of_clip.get(number, (None, slice(0, 0)))
        pictures, strip = (tuple(each.get(number, ())) for each in (reader.pictures, reader.strips))
        clips.append(
            ClipReview(
                number,
                shot.id,
                start,
                shot.frames,
                shot.starts_chain,
                pictures,
                strip,
                shot,
                tuple(entries[number]),
                run,
                frames,
            )
        )
    return clips, runs, reader


def _loop_frames(plan: FilmPlan) -> int:
    """How many pictures each take's animation may have, so that the page stays small; 0 for none."""
    takes = sum(len(shot.takes) for shot in plan.shots if shot.other_takes)
    most = min(LOOP_MOST, LOOP_PICTURES // max(takes, 1))
    return most if most >= LOOP_LEAST else 0


def _takes(
    plan: FilmPlan, clip: ClipReview, findings: Sequence[Finding], find: FindEntry, loop: int
) -> Iterator[TakeReview]:
    """The takes of a clip that has several."""
    shot = _shot(clip)
    for take in shot.takes if shot.other_takes else ():
        measured, found = clip, [each for each in findings if each.clip == clip.number]
        if take.number != shot.pick:
            alone = shot.only(take)
            shots = (*plan.shots[: clip.number], alone, *plan.shots[clip.number + 1 :])
            entries: list[list[Entry | None]] = [[None] * len(each.segments) for each in shots]
            entries[clip.number] = [find(segment.key) for segment in alone.segments]
            clips, runs, reader = _measure(replace(plan, shots=shots), entries, lambda _event: None)
            measured, found = clips[clip.number], list(_findings(clips, runs, reader))
        finished = zip(_shot(measured).segments, measured.entries, strict=True)
        parts = [(entry.frames, planned.overlap) for planned, entry in finished if entry is not None]
        picture = loop_of(parts, plan.fps, loop)
        yield TakeReview(take.number, take.number == shot.pick, measured, tuple(found), picture)


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


class ChainReader:
    """Reads the entries of a film, run by run: measures, pictures, and NaN or Inf in latents."""

    def __init__(self, plan: FilmPlan, entries: Sequence[Sequence[Entry | None]], report: Reporter) -> None:
        self._plan, self._entries, self._report = plan, entries, report
        self._starts = clip_starts(plan)
        self._width = 320 if len(plan.shots) <= FEW_CLIPS else 224
        self._strip = min(max(round(STRIP_PICTURES / len(plan.shots)), 1), 6)
        self._top = implementation_of(plan.engine).overlay_rows(plan.size, plan.fps)
        self._done = 0
        self._anchors: dict[str, tuple[AnchorMeasures, Frame]] = {}
        self.pictures: dict[int, list[Picture]] = {}
        self.strips: dict[int, list[Picture]] = {}
        self.not_finite: list[tuple[int, int, int]] = []
        """Clip, segment, and how many values of its latents are not finite."""
        self.runs: list[RunReview] = []

    def read(self, places: Sequence[tuple[int, int]]) -> Run:
        """Measure a run's frames, clip by clip, and keep pictures of them."""
        measures: list[Measure] = []
        parts: list[RunSegment] = []
        previous: tuple[Downscaled, ...] = ()
        clip, segment = places[0]
        anchor, picture = self._anchor(clip)
        meter, gallery = DegradationMeter(), Gallery(self._width, PAIR_PICTURES)
        in_film = self._first_frame(clip, segment)
        for clip, group in groupby(places, key=lambda place: place[0]):
            segments = [segment for _, segment in group]
            shot, first = self._plan.shots[clip], len(measures)
            total = sum(shot.segments[each].contributes for each in segments)
            in_strip = {(2 * each + 1) * total // (2 * self._strip) for each in range(self._strip)}
            for segment in segments:
                start, entry = len(measures), self._entries[clip][segment]
                assert entry is not None, "runs contain finished segments only"
                self._check_latents(entry, clip, segment)
                before = sum(each.contributes for each in shot.segments[:segment])
                for frame, (measure, small) in _measured(entry, shot.segments[segment], previous, self._top):
                    place, within = len(measures) - first, before + len(measures) - start
                    if place in (0, total // 2, total - 1):
                        self.pictures.setdefault(clip, []).append(thumbnail(frame, within, self._width))
                    if place in in_strip:
                        self.strips.setdefault(clip, []).append(thumbnail(frame, within, STRIP_WIDTH))
                    seconds = float((in_film + len(measures)) / self._plan.fps)
                    if meter.wants(seconds):
                        meter.add(seconds, frame[self._top :])
                        gallery.add(in_film + len(measures), frame)
                    measures.append(measure)
                    previous = (*previous[-1:], small)
                parts.append(RunSegment(clip, segment, start, len(measures), before))
            self._done += 1
            self._report(Measured(self._plan.board, "clips", self._done, len(self._plan.shots)))
        clip, segment = places[0]
        starts_chain = self._plan.shots[clip].starts_chain and segment == 0
        if anchor is None:
            one = measures[0]
            anchor = AnchorMeasures(one.mean, one.cov, one.noise, one.noise_floor, one.sharpness)
        if picture is not None and starts_chain:
            meter.add_reference(picture)
        self._keep(places, in_film, len(measures), meter, gallery)
        return Run(
            MeasureSeries.of(measures),
            tuple(parts),
            anchor,
            self._plan.fps,
            may_rest=spec_of(self._plan.engine).still_subject,
            starts_chain=starts_chain,
            same_scene=_same_scene(self._plan, {clip for clip, _ in places}),
            softened=tuple(seconds - in_film / float(self._plan.fps) for seconds in meter.softened()),
        )

    def _first_frame(self, clip: int, segment: int) -> int:
        before = self._plan.shots[clip].segments[:segment]
        return self._starts[clip] + sum(each.contributes for each in before)

    def _keep(
        self,
        places: Sequence[tuple[int, int]],
        first: int,
        frames: int,
        meter: DegradationMeter,
        gallery: Gallery,
    ) -> None:
        """The result of a run."""
        fps, degradation = float(self._plan.fps), meter.result()
        pair: tuple[Picture | None, Picture | None] = (None, None)
        if degradation.found:
            worst = degradation.found[0].worst + WINDOW / 2
            pair = gallery.nearest(first), gallery.nearest(round(worst * fps))
        clips = tuple(dict.fromkeys(clip for clip, _ in places))
        self.runs.append(RunReview(clips, first / fps, (first + frames) / fps, degradation, *pair))

    def _check_latents(self, entry: Entry, clip: int, segment: int) -> None:
        floats = [each for each in entry.latents().values() if np.issubdtype(each.dtype, np.inexact)]
        count = sum(int(np.count_nonzero(~np.isfinite(each))) for each in floats)
        if count:
            self.not_finite.append((clip, segment, count))

    def _anchor(self, clip: int) -> tuple[AnchorMeasures | None, Frame | None]:
        """A chain's anchor, and its measures; nothing where its file is gone."""
        planned = self._plan.shots[clip].segments[0].anchor
        if planned.pixels not in self._anchors:
            try:
                small, grey = downscale(open_anchor(planned), self._top)
            except RenderError as error:
                what = f"{self._plan.board}: compared with the first frame instead: {error}"
                self._report(Warned(what))
                return None, None
            measures = AnchorMeasures(*colours(small.lab), *noise(grey), sharpness(grey))
            self._anchors[planned.pixels] = measures, small.frame[self._top :]
        return self._anchors[planned.pixels]


def _same_scene(plan: FilmPlan, clips: Iterable[int]) -> bool:
    """Whether a run should keep its scene and light: the board says so, or its prompts are nearly alike.

    The text that all prompts of a board end with is its style, which is not about the scene.
    """
    if plan.same_scene is not None:
        return plan.same_scene
    prompts = [shot.prompt for shot in plan.shots]
    letters = zip(*(reversed(prompt) for prompt in prompts), strict=False)
    style = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, letters)) if prompts[1:] else 0
    words = [
        set(re.findall(r"\w+", prompts[clip][: len(prompts[clip]) - style].lower())) for clip in sorted(clips)
    ]
    return all(len(words[0] & each) >= ALIKE_PROMPTS * len(words[0] | each) for each in words[1:])


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
        for segment, planned in enumerate(_shot(clip).segments):
            if clip.number or segment:
                kind: JoinKind = "continue"
                if segment == 0 and _shot(clip).starts_chain:
                    kind = "fade" if _shot(clip).fade else "dip" if _shot(clip).dip else "cut"
                start = measured.get((clip.number, segment))
                seam = run.seams[start] if run and start is not None else None
                yield JoinReview(clip.number, segment, frame, kind, seam)
            frame += planned.contributes


def _findings(clips: Sequence[ClipReview], runs: Sequence[Run], reader: ChainReader) -> tuple[Finding, ...]:
    """Every warning, in film order."""
    found = []
    for number, segment, count in reader.not_finite:
        within = sum(each.contributes for each in _shot(clips[number]).segments[:segment])
        found.append(_finding(clips[number], segment, Defect("nan", -1, 1, float(count)), within))
    for run in runs:
        for number, defect in defects_of(run):
            part = next(each for each in run.segments if each.start <= defect.frame < each.stop)
            within = part.within + defect.frame - part.start
            found.append(_finding(clips[number], part.segment, defect, within))
    for reviewed in reader.runs:
        found += _degradation(clips, reviewed)
    return tuple(sorted(found, key=lambda each: (each.frame, each.kind)))


def _degradation(clips: Sequence[ClipReview], run: RunReview) -> Iterator[Finding]:
    """How a run degrades, at the clip in which it begins."""
    for each in run.degradation.found:
        within_run = (clips[number] for number in reversed(run.clips))
        clip = next(
            (found for found in within_run if found.start / _fps(found) <= each.since), clips[run.clips[0]]
        )
        shot = _shot(clip)
        within = min(max(round(each.since * _fps(clip)) - clip.start, 0), clip.frames - 1)
        ends = np.cumsum([planned.contributes for planned in shot.segments])
        segment = int(np.searchsorted(ends, within, side="right"))
        defect = Defect("degradation", -1, round((run.stop - each.since) * _fps(clip)), each.value)
        finding = _finding(clip, segment, defect, within)
        texts = against_degradation(each.what, clip.id, clip.number == run.clips[0], shot.segments[segment])
        yield replace(finding, what=each.what, since=each.since, remedies=texts)


def _fps(clip: ClipReview) -> float:
    return float(_shot(clip).segments[0].fps)


def _shot(clip: ClipReview) -> Shot:
    assert clip.shot is not None, "the clip of a board"
    return clip.shot


def _finding(clip: ClipReview, segment: int, defect: Defect, within: int) -> Finding:
    planned = _shot(clip).segments[segment]
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
