"""Joins inside a chain: whether motion and colours go on over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from svi_story.review.limits import ACTIVE, ACTIVE_SHARE, NEAR, UNRELATED, UNRELATED_LEVELS

if TYPE_CHECKING:
    from svi_story.review.measure import Floats
    from svi_story.review.track import Flags, Track


@dataclass(frozen=True)
class Seam:
    """How the step over a join compares with the steps around it.

    Only blocks that move around the join count for motion, and both ratios are None where too few do for
    anybody to see a stop or a jump.
    """

    step: float | None
    """How far the picture moves over the join, as a multiple of the faster side: 1 is seamless, 2 is one
    frame too few."""
    least: float | None
    """The same as a multiple of the slower side: 0 is a frame shown twice."""
    pop: float
    """How far the colours of the whole picture step beyond what is usual around, in CIELAB units: the median
    of its blocks, which change any way when the picture moves, and one way when the light does."""
    other: float
    """The share of blocks that change as they only do between different pictures."""


def seam_at(track: Track, frame: int, bad: Flags) -> Seam | None:
    """The join before `frame` of a run's track; None where there are no sound frames around it."""
    before = _usual(track, range(max(frame - NEAR, 1), frame), bad)
    after = _usual(track, range(frame + 1, min(frame + 1 + NEAR, len(track))), bad)
    if before is None or after is None or frame < 1 or bad[frame - 1 : frame + 1].any():
        return None
    step, change = track.motion[frame], track.change[frame]
    usual = np.maximum(before[1], after[1])
    other = change > UNRELATED * usual + UNRELATED_LEVELS
    pop = _pop(track, frame)
    fast = np.maximum(before[0], after[0])
    # A picture that comes to rest at the join, and starts from rest, repeats nothing
    slow = np.minimum.reduce([before[0], after[0], *_beside(track, frame)])
    return Seam(_most(step, fast, before[0], after[0]), _middle(step, slow), pop, float(other.mean()))


def _pop(track: Track, frame: int) -> float:
    """The step of the blocks' median colour, beyond the larger of the usual ones on either side."""
    part = track.blocks[max(frame - 1 - NEAR, 0) : frame + 1 + NEAR]
    steps = np.linalg.norm(np.median(np.diff(part, axis=0), axis=1), axis=1)
    place = min(frame - 1, NEAR)
    usual = max(np.median(side) for side in (steps[:place], steps[place + 1 :]) if len(side))
    return max(float(steps[place] - usual), 0.0)


def _beside(track: Track, frame: int) -> list[Floats]:
    """How each block moves right before and right after the step over a join."""
    steps = (step for step in (frame - 1, frame + 1) if 0 < step < len(track))
    return [track.motion[step] for step in steps]


def _usual(track: Track, frames: range, bad: Flags) -> tuple[Floats, Floats] | None:
    """Each block's usual motion and change over some frames."""
    chosen = [frame for frame in frames if not bad[frame - 1 : frame + 1].any()]
    if not chosen:
        return None
    return np.median(track.motion[chosen], axis=0), np.median(track.change[chosen], axis=0)


def _middle(step: Floats, usual: Floats) -> float | None:
    """The median block's ratio."""
    active = usual > ACTIVE
    if active.mean() < ACTIVE_SHARE:
        return None
    return float(np.median(step[active] / usual[active]))


def _most(step: Floats, fast: Floats, before: Floats, after: Floats) -> float | None:
    """The median block's ratio or, for a subject that moves from block to block, the whole picture's."""
    middle = _middle(step, fast)
    if middle is None:
        return None
    active = fast > ACTIVE
    whole = float(step[active].sum() / max(before[active].sum(), after[active].sum()))
    return max(middle, whole)
