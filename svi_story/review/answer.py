"""A review as JSON, for scripts."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from svi_story.review.measure import Floats
    from svi_story.review.quality import ClipReview, FilmReview, Finding, Join

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
        "clips": [_clip(clip) for clip in review.clips],
        "joins": [_join(join, review) for join in review.joins],
        "cannot_judge": [clip.shot.id for clip in review.clips if clip.run and clip.run.anchor.empty],
        "warnings": [_finding(finding, review) for finding in review.findings],
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


def _clip(clip: ClipReview) -> dict[str, Any]:
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


def _join(join: Join, review: FilmReview) -> dict[str, Any]:
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


def _finding(finding: Finding, review: FilmReview) -> dict[str, Any]:
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
