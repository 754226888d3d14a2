"""What the page says, in words: times, settings, warnings by kind."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING, Any

import numpy as np

from svi_story.enginespec import spec_of
from svi_story.review.answer import seconds_spent
from svi_story.review.limits import REPEAT, STEP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.plan.model import Segment
    from svi_story.review.quality import ClipReview, FilmReview, Finding, Join

SEAM_TOP = 3.0
"""The seam plot's upper edge, in multiples of the motion around."""
MOST_SAID = 400
"""Characters that a line about versions and machines has at most."""


@dataclass(frozen=True)
class Clock:
    """Frames of the film as time."""

    fps: Fraction

    def __call__(self, frame: int) -> str:
        """As m:ss.cc, for people."""
        centis = floor(frame * 100 / self.fps + Fraction(1, 2))
        return f"{centis // 6000}:{centis // 100 % 60:02}.{centis % 100:02}"

    def seconds(self, frame: int) -> str:
        """In seconds, a little into the frame, for the player."""
        return f"{float((frame + 0.25) / self.fps):.3f}"


def clip_view(clip: ClipReview, review: FilmReview, clock: Clock) -> dict[str, Any]:
    """What a clip's card shows."""
    shot = clip.shot
    spent = seconds_spent(clip)
    return {
        "review": clip,
        "anchor": f"clip-{clip.number + 1}",
        "follows": _follows(clip),
        "seeds": ", ".join(dict.fromkeys(str(segment.seed) for segment in shot.segments)),
        "passes": " + ".join(str(segment.frames) for segment in shot.segments),
        "settings": list(_settings(shot.segments[0], review.plan.engine)),
        "spent": f"{_duration(sum(spent))}" if spent else "",
        "spent_on": f"{_duration(spent[0])} sampling, {_duration(spent[1])} decoding" if spent else "",
        "numbers": list(_numbers(clip)),
        "findings": [each for each in review.findings if each.clip == clip.number],
        "labels": _labels(len(clip.pictures)),
        "start": clock(clip.start),
        "stop": clock(clip.start + shot.frames),
    }


def _labels(count: int) -> tuple[str, ...]:
    return ("first", "middle", "last") if count == 3 else ("first", "last")[:count]


def _follows(clip: ClipReview) -> str:
    if clip.number == 0:
        return "starts the film"
    if clip.shot.fade:
        return f"fades in over {clip.shot.fade} frames"
    if clip.shot.dip:
        return f"through black, {clip.shot.dip} frames"
    return "cut" if clip.shot.starts_chain else "continues"


def _settings(segment: Segment, engine: str) -> Iterator[tuple[str, str]]:
    """What steered the sampling."""
    shown = spec_of(engine).describe(segment.options)
    if not shown:
        yield "engine", engine
        return
    yield from shown.items()
    for lora in segment.loras:
        yield "LoRA", f"{lora.path.name} {lora.high:g} / {lora.low:g}"


def _numbers(clip: ClipReview) -> Iterator[tuple[str, str]]:
    """What was measured, in short."""
    if clip.run is None:
        return
    drift, track = clip.run.drift.total[clip.frames], clip.run.track[clip.frames]
    yield "drift", f"{np.median(drift):.1f} ΔE, at most {drift.max():.1f}"
    yield "sharpness", f"{np.median(track.sharpness):.2f}"
    yield "motion", f"{np.median(track.moving) * float(clip.run.fps) / 10:.1f} %/s"
    spread = track.spread.mean(axis=0)
    mean = track.mean.mean(axis=0)
    yield "L* a* b*", " ".join(f"{m:.0f}±{s:.0f}" for m, s in zip(mean, spread, strict=True))


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def groups_of(review: FilmReview, clock: Clock) -> list[dict[str, Any]]:
    """The warnings by kind, the most frequent first: their places, and what helps."""
    kinds = list(dict.fromkeys(finding.kind for finding in review.findings))
    groups = []
    for kind in kinds:
        found = [each for each in review.findings if each.kind == kind]
        clips = list(dict.fromkeys(review.clips[each.clip].shot.id for each in found))
        groups.append(
            {
                "kind": kind,
                "title": found[0].title,
                "limit": found[0].limit,
                "places": [_place(each, review, clock) for each in found],
                "clips": clips,
                "force": "".join(f" --force {shlex.quote(clip)}" for clip in clips),
                "cures": list(dict.fromkeys(cure for each in found for cure in each.cures)),
            }
        )
    return sorted(groups, key=lambda group: -len(group["places"]))


def _place(finding: Finding, review: FilmReview, clock: Clock) -> dict[str, Any]:
    clip = review.clips[finding.clip]
    return {
        "id": clip.shot.id,
        "anchor": f"clip-{finding.clip + 1}",
        "time": clock(finding.frame),
        "seconds": clock.seconds(finding.frame),
        "within": finding.within,
        "frames": finding.frames,
        "value": number(finding.value),
    }


def number(value: float) -> str:
    """Three digits at most, and no needless zeros."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def seams_of(review: FilmReview, frames: int, clock: Clock) -> list[dict[str, Any]]:
    """Every join as a mark on the seam plot."""
    return [_seam(join, review, frames, clock) for join in review.joins]


def _seam(join: Join, review: FilmReview, frames: int, clock: Clock) -> dict[str, Any]:
    step = _told(join)
    flagged = any(each.frame == join.frame and each.clip == join.clip for each in _of_joins(review))
    return {
        "x": round(100 * join.frame / max(frames, 1), 3),
        "y": None if step is None else round(100 - 100 * min(step / SEAM_TOP, 1), 1),
        "kind": join.kind,
        "measured": join.seam is not None,
        "flagged": flagged,
        "seconds": clock.seconds(join.frame),
        "says": f"{clock(join.frame)}, into {review.clips[join.clip].shot.id}: {_in_words(join, step)}",
    }


def _of_joins(review: FilmReview) -> list[Finding]:
    kinds = ("jump", "duplicate", "colour-step", "other-picture")
    return [each for each in review.findings if each.kind in kinds]


def _told(join: Join) -> float | None:
    """The number that says most: nearly none where a frame is repeated, else the step; None at rest."""
    if join.seam is None or join.seam.step is None:
        return None
    step, least = join.seam.step, join.seam.least
    if least is not None and least < REPEAT.value:
        return least
    return None if step < REPEAT.value else step


def _in_words(join: Join, step: float | None) -> str:
    if join.kind != "continue":
        return f"a {join.kind}, not a join"
    if join.seam is None:
        return "not measured"
    if step is None:
        return "at rest, nothing to see"
    state = "a jump" if step > STEP.value else "a repeated frame" if step < REPEAT.value else "goes on"
    return f"{step:.2f} times the motion around, {state}"


def machines(review: FilmReview) -> list[tuple[str, str]]:
    """Versions and machines that made the clips, and which clips."""
    found: dict[str, list[str]] = {}
    for clip in review.clips:
        for entry in clip.entries:
            notes = entry.manifest.get("notes") if entry else None
            if entry is None or not isinstance(notes, dict):
                continue
            versions = notes.get("versions")
            said = {**(versions if isinstance(versions, dict) else {}), **entry.environment}
            line = _cut_short(" · ".join(f"{name} {_cut_short(str(value))}" for name, value in said.items()))
            clips = found.setdefault(line, [])
            if clip.shot.id not in clips:
                clips.append(clip.shot.id)
    everyone = len(review.clips)
    return [
        (line, "all clips" if len(clips) == everyone else ", ".join(clips)) for line, clips in found.items()
    ]


def gaps_of(review: FilmReview, frames: int) -> list[tuple[float, float]]:
    """Where passes are not made yet: percent of the film at which each starts, and how much of it it is."""
    gaps = []
    for clip in review.clips:
        place = clip.start
        for planned, entry in zip(clip.shot.segments, clip.entries, strict=True):
            if entry is None:
                gaps.append((round(100 * place / frames, 3), round(100 * planned.contributes / frames, 3)))
            place += planned.contributes
    return gaps


def _cut_short(text: str) -> str:
    """As much of what an entry says about itself as fits a line or two."""
    return text if len(text) <= MOST_SAID else f"{text[: MOST_SAID - 1]}…"
