"""How colours change of what stays in the picture: slowly, at once, and for a moment."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from svi_story.review.limits import AGREE, FLASH, NEAR, POP
from svi_story.review.track import distance

if TYPE_CHECKING:
    from svi_story.review.measure import Floats
    from svi_story.review.track import Flags, Track

PAPER = 16
"""CIELAB: light that grows k times multiplies L* + 16, a* and b* by the cube root of k."""


@dataclass(frozen=True)
class Turned:
    """How far colours of what stays in the picture have come since a run's start, in CIELAB units.

    Frame by frame, with the motion taken out: a camera that moves on adds nothing.
    """

    total: Floats
    colour: Floats
    """The part that more or less light does not explain."""


def turned(track: Track, bad: Flags) -> Turned:
    """What a run's steps come to; steps from and to bad frames say nothing."""
    start = int(np.argmin(bad))
    spoilt = bad.copy()
    spoilt[1:] |= bad[:-1]
    steps = np.where(spoilt[:, None], 0, track.turn.astype(np.float64)).cumsum(axis=0)
    mean = track.mean[start] + steps[:, :3]
    cov = track.cov[start] + steps[:, 3:].reshape(-1, 3, 3)
    paper = np.array([PAPER, 0, 0])
    light = np.clip((mean[:, :1] + PAPER) / (track.mean[start, 0] + PAPER), 0.4, 2.5)
    plain = (mean + paper) / light - paper
    return Turned(
        distance(mean, cov, track.mean[start], track.cov[start]).total,
        distance(plain, cov / light[:, :, None] ** 2, track.mean[start], track.cov[start]).total,
    )


@dataclass(frozen=True)
class Steps:
    """The steps of the whole picture's colours: what its blocks do in common."""

    way: Floats
    """n x 3: the blocks' median step into each frame; zeros for the first."""
    beyond: Floats
    """How far each goes beyond what is usual around, in CIELAB units."""
    sudden: Flags
    """Steps that the whole picture takes, all of it the same way, and far beyond the usual."""


def steps_of(track: Track, bad: Flags) -> Steps:
    """Every step's size and direction."""
    blocks = np.diff(track.blocks, axis=0, prepend=track.blocks[:1])
    way = np.median(blocks, axis=1)
    size = np.linalg.norm(way, axis=1)
    agree = size / np.maximum(np.linalg.norm(blocks, axis=2).mean(axis=1), 1e-3)
    usual = np.array([_usual(size, place) for place in range(len(size))], np.float32)
    spoilt = bad.copy()
    spoilt[1:] |= bad[:-1]
    sudden = (size - usual > POP.value) & (size > 3 * usual) & (agree > AGREE) & ~spoilt
    return Steps(way, np.maximum(size - usual, 0), sudden)


def _usual(size: Floats, place: int) -> float:
    beside = np.concatenate([size[max(place - NEAR, 1) : place], size[place + 1 : place + 1 + NEAR]])
    return float(np.median(beside)) if len(beside) else 0.0


def flashes(steps: Steps) -> Flags:
    """Frames, up to FLASH in a row, whose light or colour comes and goes."""
    flags = np.zeros(len(steps.beyond), bool)
    places = np.flatnonzero(steps.sudden)
    for first, second in pairwise(places.tolist()):
        there, back = steps.way[first], steps.way[second]
        opposite = there @ back < -0.5 * np.linalg.norm(there) * np.linalg.norm(back)
        if opposite and second - first <= FLASH and not flags[first - 1]:
            flags[first:second] = True
    return flags


def changes(steps: Steps, track: Track) -> list[int]:
    """Frames from which on the whole picture has other colours, and keeps them: a ramp's first."""
    first = [
        place
        for place in np.flatnonzero(steps.sudden).tolist()
        if not steps.sudden[max(place - FLASH, 0) : place].any()
    ]
    return [place for place in first if _stays(track, place, steps)]


def _stays(track: Track, place: int, steps: Steps) -> bool:
    before = np.median(track.mean[max(place - 4, 0) : place], axis=0)
    after = np.median(track.mean[place : place + 4], axis=0)
    size = np.linalg.norm(steps.way[place])
    return bool(len(track) - place >= FLASH and np.linalg.norm(after - before) > size / 2)
