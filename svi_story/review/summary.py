"""A film's review as `review --json` prints it."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from svi_story.fields import JsonModel

if TYPE_CHECKING:
    from svi_story.review.film import ClipReview, FilmReview, Finding, JoinReview
    from svi_story.review.measures import Floats


class Range(JsonModel):
    """A measure over the frames of a clip, as every measure here."""

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


class ReviewedClip(JsonModel):
    """A clip."""

    id: str
    start: int = Field(description="its first frame in the film")
    frames: int
    missing_segments: int
    sampling_seconds: float | None = Field(description="null where it was not recorded")
    decoding_seconds: float | None = Field(description="null where it was not recorded")
    measures: MeasuresSummary | None = Field(description="null where nothing is finished")


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
    title: str
    clip: str
    segment: int
    frame: int
    frame_in_clip: int
    frames: int = Field(description="how many have it")
    value: float | None
    threshold: int | float
    unit: str
    cures: tuple[str, ...] = Field(description="sentences")


class ReviewSummary(JsonModel):
    """What `review --json` prints about one board."""

    board: str
    title: str
    frames: int = Field(description="at the board's rate, without cards")
    fps: str
    width: int
    height: int
    engine: str
    clips: tuple[ReviewedClip, ...]
    joins: tuple[ReviewedJoin, ...]
    cannot_judge: tuple[str, ...] = Field(description="ids of clips whose anchor shows one colour only")
    warnings: tuple[ReviewWarning, ...]


def summarize(review: FilmReview) -> ReviewSummary:
    """A review in numbers; NaN never occurs, what was not measured is None."""
    plan = review.plan
    return ReviewSummary(
        board=str(plan.board),
        title=plan.title,
        frames=sum(shot.frames - shot.fade for shot in plan.shots),
        fps=str(plan.fps),
        width=plan.size.width,
        height=plan.size.height,
        engine=plan.engine,
        clips=tuple(_clip(clip) for clip in review.clips),
        joins=tuple(_join(join, review) for join in review.joins),
        cannot_judge=tuple(review.uniform_anchors),
        warnings=tuple(_warning(finding, review) for finding in review.findings),
    )


def _clip(clip: ClipReview) -> ReviewedClip:
    spent = clip.seconds_spent
    return ReviewedClip(
        id=clip.shot.id,
        start=clip.start,
        frames=clip.shot.frames,
        missing_segments=clip.missing,
        sampling_seconds=round(spent[0], 3) if spent else None,
        decoding_seconds=round(spent[1], 3) if spent else None,
        measures=_measures(clip),
    )


def _measures(clip: ClipReview) -> MeasuresSummary | None:
    """A clip's measures; None where none of its segments is finished."""
    if clip.run is None:
        return None
    series, drift = clip.run.series[clip.frames], clip.run.drift
    return MeasuresSummary(
        drift=_range(drift.total[clip.frames]),
        drift_of_mean=_range(drift.mean[clip.frames]),
        drift_of_spread=_range(drift.spread[clip.frames]),
        lab_mean=tuple(round(float(each), 3) for each in series.mean.mean(axis=0)),
        lab_spread=tuple(round(float(each), 3) for each in series.spread.mean(axis=0)),
        sharpness=_range(series.sharpness),
        noise=_range(series.noise),
        motion=_range(series.mean_motion),
    )


def _range(values: Floats) -> Range:
    numbers = {"first": values[0], "median": np.median(values), "last": values[-1], "most": values.max()}
    return Range(**{name: _rounded(float(value)) for name, value in numbers.items()})


def _join(join: JoinReview, review: FilmReview) -> ReviewedJoin:
    seam = join.seam
    return ReviewedJoin(
        clip=review.clips[join.clip].shot.id,
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
        clip=review.clips[finding.clip].shot.id,
        segment=finding.segment,
        frame=finding.frame,
        frame_in_clip=finding.within,
        frames=finding.frames,
        value=_rounded(finding.value),
        threshold=finding.threshold.value,
        unit=finding.threshold.unit,
        cures=finding.remedies,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else round(value, 3)
