"""A film's review as `review --json` prints it."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from svi_story.fields import JsonModel
from svi_story.review.degradation import WINDOW

if TYPE_CHECKING:
    from svi_story.review.measures import Floats
    from svi_story.review.results import ClipReview, Facts, FilmReview, Finding, JoinReview, RunReview


class Range(JsonModel):
    """A measure over the frames of a clip or of a film."""

    first: float | None
    median: float | None
    last: float | None
    most: float | None


class MeasuresSummary(JsonModel):
    """The measures of a clip; colours are CIELAB."""

    drift: Range = Field(description="distance of the colours from the anchor's")
    drift_of_mean: Range = Field(description="of their mean alone")
    drift_of_spread: Range = Field(description="of their spread alone")
    lab_mean: tuple[float, ...] = Field(description="L*, a*, b*")
    lab_spread: tuple[float, ...] = Field(description="L*, a*, b*")
    sharpness: Range
    noise: Range
    motion: Range = Field(description="thousandths of the width a frame")


class ReviewedTake(JsonModel):
    """One of several takes of a clip, measured as if the film used it, but for its joins."""

    number: int
    seed: int
    picked: bool = Field(description="whether the film uses it")
    missing_segments: int
    measures: MeasuresSummary | None = Field(description="null where nothing is finished")
    warnings: tuple[str, ...] = Field(description="their kinds; degradation by how it degrades")


class ReviewedClip(JsonModel):
    """A clip. Its measures are null in the review of a film file, as are the seconds spent."""

    id: str
    start: int = Field(description="its first frame in the film")
    frames: int
    missing_segments: int
    sampling_seconds: float | None = Field(description="null where it was not recorded")
    decoding_seconds: float | None = Field(description="null where it was not recorded")
    measures: MeasuresSummary | None = Field(description="null where nothing is finished")
    takes: tuple[ReviewedTake, ...] = Field(description="none where it has one only")


class ReviewedJoin(JsonModel):
    """A join. Its numbers are null where nothing was measured, and for other kinds than `continue`."""

    clip: str
    segment: int
    frame: int = Field(description="the first one after it")
    kind: Literal["continue", "cut", "fade", "dip"]
    step: float | None = Field(description="the step in multiples of the faster side; null without motion")
    least: float | None = Field(description="the step in multiples of the slower side; null without motion")
    colour_step: float | None = Field(description="CIELAB")
    other_picture: float | None = Field(description="share of the picture")


class ReviewWarning(JsonModel):
    """A warning."""

    kind: str = Field(description="see [review.md](review.md)")
    what: Literal["colour", "softening", "melting"] | None = Field(
        description="how it degrades; null for other kinds than `degradation`"
    )
    since: float | None = Field(description="seconds from which on it degrades; null for other kinds")
    title: str
    clip: str
    segment: int
    frame: int
    frame_in_clip: int
    frames: int = Field(description="how many have it")
    value: float | None
    threshold: int | float
    unit: str
    remedies: tuple[str, ...] = Field(description="sentences")
    cures: tuple[str, ...] = Field(description="the old name of `remedies`")


class JudgedWindow(JsonModel):
    """A few seconds, judged by what stayed in the picture. Null: too little stayed, or time passed."""

    start: float = Field(description="seconds")
    seconds: float = Field(description="its length; windows overlap")
    judged: bool = Field(description="whether enough stayed to tell anything")
    colour: float | None = Field(description="CIELAB by which what stayed changed, other light apart")
    detail_lost: float | None = Field(description="share of its fine detail that what stayed lost in 10 s")
    edges_lost: float | None = Field(description="share of the strongest edges at the start, lost for 15 s")
    stayed: float | None = Field(description="share of the picture that was there 5 s before")


class ReviewedRun(JsonModel):
    """Consecutive clips without a cut, or a whole film file: what can be compared between takes and films."""

    clips: tuple[str, ...] = Field(description="ids")
    start: float = Field(description="seconds")
    stop: float = Field(description="seconds")
    verdict: Literal["degraded", "not degraded", "cannot tell"]
    judged_share: float = Field(description="share of its windows that could be judged")
    colour: float | None = Field(description="the largest of its windows")
    detail_lost: float | None = Field(description="the largest of its windows")
    edges_lost: float | None = Field(description="the largest of its windows")
    windows: tuple[JudgedWindow, ...]


class FilmFile(JsonModel):
    """What is known about a film file."""

    codec: str
    rotation: int = Field(description="degrees counter-clockwise by which players turn the pictures")
    pixel_aspect: str = Field(description="width : height of a pixel; the size is that with square pixels")
    variable_rate: bool = Field(description="frames are counted at the mean rate, and joins are not judged")
    source_fps: str | None = Field(description="the rate before frames were repeated; null: none were")
    repeated_frames: int = Field(description="frames that the re-timing added, which were left out")
    damage: str = Field(description="what could not be read; empty where all could")
    distance: Range = Field(description="CIELAB, of the colours from the reference or else the first frame")
    sharpness: Range = Field(description="gradient of edges a pixel, relative to their contrast")


class ReviewSummary(JsonModel):
    """What `review --json` prints about a board or a film file."""

    board: str | None = Field(description="null for a film file")
    film: str | None = Field(description="the name of a film file; null for a board")
    title: str
    film_frames: int = Field(description="of the film, as `plan --json` says")
    film_fps: str = Field(description="of the film")
    frames: int = Field(description="at the board's rate, without cards")
    fps: str = Field(description="the board's rate: that of all frames and starts below")
    width: int
    height: int
    engine: str | None = Field(description="null for a film file")
    file: FilmFile | None = Field(description="null for a board")
    verdict: Literal["degraded", "not degraded", "cannot tell"] = Field(description="over all runs")
    judged_share: float = Field(description="share of all windows that could be judged")
    runs: tuple[ReviewedRun, ...]
    clips: tuple[ReviewedClip, ...]
    joins: tuple[ReviewedJoin, ...]
    cannot_judge: tuple[str, ...] = Field(description="ids of clips whose anchor shows one colour only")
    warnings: tuple[ReviewWarning, ...]


def summarize(review: FilmReview) -> ReviewSummary:
    """A review in numbers; NaN never occurs, what was not measured is None."""
    plan = review.plan
    frames = sum(shot.frames - shot.fade for shot in plan.shots) if plan else review.frames
    return ReviewSummary(
        board=str(plan.board) if plan else None,
        film=None if plan else review.name,
        title=review.title,
        film_frames=plan.frames if plan else review.frames,
        film_fps=str(plan.cut.fps if plan else review.fps),
        frames=frames,
        fps=str(review.fps),
        width=review.width,
        height=review.height,
        engine=plan.engine if plan else None,
        file=_file(review.facts, review) if review.facts else None,
        verdict=review.verdict,
        judged_share=round(review.judged_share, 3),
        runs=tuple(_run(run, review) for run in review.runs),
        clips=tuple(_clip(clip) for clip in review.clips),
        joins=tuple(_join(join, review) for join in review.joins),
        cannot_judge=tuple(review.uniform_anchors),
        warnings=tuple(_warning(finding, review) for finding in review.findings),
    )


def _file(facts: Facts, review: FilmReview) -> FilmFile:
    retiming = facts.retiming
    return FilmFile(
        codec=facts.info.codec,
        rotation=facts.info.rotation,
        pixel_aspect=facts.info.pixel_aspect,
        variable_rate=facts.is_variable,
        source_fps=str(review.fps * retiming.ratio) if retiming else None,
        repeated_frames=int(retiming.repeats.sum()) if retiming else 0,
        damage=facts.damage,
        distance=_range(facts.sampled["distance"]),
        sharpness=_range(facts.sampled["sharpness"]),
    )


def _run(run: RunReview, review: FilmReview) -> ReviewedRun:
    windows = tuple(
        JudgedWindow(
            start=round(window.start, 3),
            seconds=WINDOW,
            judged=window.judged,
            colour=_rounded(window.drift),
            detail_lost=_rounded(1 - np.exp(window.detail)),
            edges_lost=_rounded(1 - window.edges),
            stayed=_rounded(window.stayed),
        )
        for window in run.degradation.windows
    )

    def largest(name: str) -> float | None:
        return max((value for each in windows if (value := getattr(each, name)) is not None), default=None)

    return ReviewedRun(
        clips=tuple(review.clips[number].id for number in run.clips),
        start=round(run.start, 3),
        stop=round(run.stop, 3),
        verdict=run.degradation.verdict,
        judged_share=round(run.degradation.judged_share, 3),
        colour=largest("colour"),
        detail_lost=largest("detail_lost"),
        edges_lost=largest("edges_lost"),
        windows=windows,
    )


def _clip(clip: ClipReview) -> ReviewedClip:
    spent = clip.seconds_spent
    return ReviewedClip(
        id=clip.id,
        start=clip.start,
        frames=clip.frames,
        missing_segments=clip.missing,
        sampling_seconds=round(spent[0], 3) if spent else None,
        decoding_seconds=round(spent[1], 3) if spent else None,
        measures=_measures(clip),
        takes=tuple(
            ReviewedTake(
                number=take.number,
                seed=take.clip.shot.seed if take.clip.shot else 0,
                picked=take.picked,
                missing_segments=take.clip.missing,
                measures=_measures(take.clip),
                warnings=tuple(dict.fromkeys(each.what or each.kind for each in take.findings)),
            )
            for take in clip.takes
        ),
    )


def _measures(clip: ClipReview) -> MeasuresSummary | None:
    """A clip's measures; None where none of its segments is finished."""
    if clip.run is None:
        return None
    series, drift = clip.run.series[clip.in_run], clip.run.drift
    return MeasuresSummary(
        drift=_range(drift.total[clip.in_run]),
        drift_of_mean=_range(drift.mean[clip.in_run]),
        drift_of_spread=_range(drift.spread[clip.in_run]),
        lab_mean=tuple(round(float(each), 3) for each in series.mean.mean(axis=0)),
        lab_spread=tuple(round(float(each), 3) for each in series.spread.mean(axis=0)),
        sharpness=_range(series.sharpness),
        noise=_range(series.noise),
        motion=_range(series.mean_motion),
    )


def _range(values: Floats) -> Range:
    middle, most = (
        float(f(values)) if np.isfinite(values).any() else None for f in (np.nanmedian, np.nanmax)
    )
    first, last = _rounded(float(values[0])), _rounded(float(values[-1]))
    return Range(first=first, median=_rounded(middle), last=last, most=_rounded(most))


def _join(join: JoinReview, review: FilmReview) -> ReviewedJoin:
    seam = join.seam
    return ReviewedJoin(
        clip=review.clips[join.clip].id,
        segment=join.segment,
        frame=join.frame,
        kind=join.kind,
        step=_rounded(seam.step if seam else None),
        least=_rounded(seam.least if seam else None),
        colour_step=_rounded(seam.colour_step if seam else None),
        other_picture=_rounded(seam.other_picture if seam else None),
    )


def _warning(finding: Finding, review: FilmReview) -> ReviewWarning:
    return ReviewWarning(
        kind=finding.kind,
        title=finding.threshold.title,
        clip=review.clips[finding.clip].id,
        segment=finding.segment,
        frame=finding.frame,
        frame_in_clip=finding.within,
        frames=finding.frames,
        value=_rounded(finding.value),
        threshold=finding.threshold.value,
        unit=finding.threshold.unit,
        what=finding.what,
        since=_rounded(finding.since),
        remedies=finding.remedies,
        cures=finding.remedies,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else round(value, 3)
