"""A run: consecutive finished segments of one chain, analysed as one sequence of frames.

Drift, steps and flashes of colour, swapped and frozen frames, continuity over joins.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from svi_story.review.measures import distance, drift_from
from svi_story.review.thresholds import (
    ACTIVE,
    ACTIVE_SHARE,
    AGREE,
    BLACK,
    FLASH,
    FLAT,
    NEAR,
    NOISE,
    POP,
    START,
    UNRELATED,
    UNRELATED_LEVELS,
)

if TYPE_CHECKING:
    from fractions import Fraction

    from svi_story.review.measures import Drift, Flags, Floats, Track


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


AROUND = 6
"""Steps on each side that say how the picture moves."""
PART = 0.05
"""Share of a picture's blocks that counts as a part of it."""


def swapped(track: Track, bad: Flags) -> list[int]:
    """The first of two neighbours that changed places: two ahead, one back, two ahead, in steady motion."""
    flow = track.flow.reshape(len(track), -1)
    with_next = np.einsum("ij,ij->i", flow[:-1], flow[1:])
    back = np.flatnonzero((with_next[1:-1] < 0) & (with_next[2:] < 0)) + 2
    return [
        place - 1 for place in back.tolist() if not bad[place - 1 : place + 2].any() and _turns(flow, place)
    ]


def _turns(flow: Floats, place: int) -> bool:
    """Whether the motion goes back in the step to `place` only, and goes too far before and after it."""
    before, after = flow[max(place - 1 - AROUND, 1) : place - 1], flow[place + 2 : place + 2 + AROUND]
    if min(len(before), len(after)) < AROUND // 2:
        return False
    around = np.concatenate([before, after])
    usual = np.median(around, axis=0)
    power = float(usual @ usual)
    if np.sqrt(power / len(usual) * 2) < ACTIVE:
        return False
    steady, odd = around @ usual / power, flow[place - 1 : place + 2] @ usual / power
    calm = steady.min() > 0.4 and steady.max() < 1.6
    return bool(calm and odd[0] > 1.4 and odd[1] < -0.4 and odd[2] > 1.4)


def held_blocks(track: Track, frames: slice, least: int) -> tuple[int, int]:
    """Where part of a moving picture stands still bit for bit: its first step, and how many; else 0, 0.

    Blocks that always do, as bars, and black ones do not count.
    """
    still = (track.change == 0) & (track.blocks[..., 0] > BLACK.value)
    still &= still[1:].mean(axis=0) < 0.8
    share = still[frames].mean(axis=1)
    place = 0
    for flag, length in runs((share > PART) & (share < 1 - PART)):
        start = frames.start + place
        if flag and length >= least and still[start : start + length].all(axis=0).mean() > PART:
            return start, length
        place += length
    return 0, 0


def runs(flags: Flags) -> list[tuple[bool, int]]:
    """Equal flags in a row, and how many."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8))) + 1
    bounds = [0, *edges.tolist(), len(flags)]
    return [(bool(flags[a]), b - a) for a, b in pairwise(bounds) if b > a]


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
    before = _usual_blocks(track, range(max(frame - NEAR, 1), frame), bad)
    after = _usual_blocks(track, range(frame + 1, min(frame + 1 + NEAR, len(track))), bad)
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


def _usual_blocks(track: Track, frames: range, bad: Flags) -> tuple[Floats, Floats] | None:
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


@dataclass(frozen=True)
class Part:
    """One segment's frames that reach the film, within a run."""

    shot: int
    """0-based number of its clip."""
    segment: int
    """0-based place within the clip."""
    key: str
    start: int
    """Its first frame in the run."""
    stop: int
    within: int
    """Its first frame's place within the clip."""


@dataclass(frozen=True)
class Anchor:
    """What a chain's reference picture measures, at the film's size."""

    mean: Floats
    cov: Floats
    noise: float
    floor: float
    sharpness: float

    @property
    def empty(self) -> bool:
        """Whether it is a picture of nothing: then so may the film be, and nobody can tell."""
        return float(np.sqrt(np.trace(self.cov))) < BLACK.value


@dataclass(frozen=True)
class Run:
    """Frames in a row, and what belongs to them."""

    track: Track
    parts: tuple[Part, ...]
    anchor: Anchor
    fps: Fraction
    rests: bool
    """Whether the camera rests on purpose, as an animatic's does around every join."""
    starts: bool = True
    """Whether its first frame is a chain's first, not one after a gap."""

    @cached_property
    def drift(self) -> Drift:
        """Every frame's distance from the anchor's colours."""
        return drift_from(self.track, self.anchor.mean, self.anchor.cov)

    @cached_property
    def moved(self) -> Floats:
        """Every frame's distance from the colours of the run's own beginning."""
        sound = np.flatnonzero(~self.bad)[:START]
        if not len(sound):
            return np.zeros(len(self.track), np.float32)
        mean, cov = self.track.mean[sound].mean(axis=0), self.track.cov[sound].mean(axis=0)
        return drift_from(self.track, mean, cov).total

    @cached_property
    def turned(self) -> Turned:
        """How far the colours of what stays in the picture have come."""
        return turned(self.track, self.bad)

    @cached_property
    def steps(self) -> Steps:
        """What the whole picture's colours do from frame to frame."""
        return steps_of(self.track, self.bad)

    @cached_property
    def swapped(self) -> list[int]:
        """First frames of neighbours that changed places."""
        return [] if self.rests else swapped(self.track, self.bad)

    @cached_property
    def rest(self) -> Floats:
        """What the motion leaves of every whole picture's change, in levels of 255; NaN for a first frame."""
        rest: Floats = self.track.rest.mean(axis=1)
        return rest

    @cached_property
    def total_spread(self) -> Floats:
        """The root of the colours' whole variance."""
        spread: Floats = np.sqrt(np.square(self.track.spread).sum(axis=1))
        return spread

    @cached_property
    def black(self) -> Flags:
        """Frames that show nothing but black."""
        flags: Flags = (self.track.mean[:, 0] < BLACK.value) & (self.total_spread < BLACK.value)
        dark = self.anchor.empty and self.anchor.mean[0] < BLACK.value
        return np.zeros_like(flags) if dark else flags

    @cached_property
    def flat(self) -> Flags:
        """Frames of one colour other than black."""
        flags: Flags = (self.total_spread < FLAT.value) & ~self.black
        return np.zeros_like(flags) if self.anchor.empty else flags

    @cached_property
    def noisy(self) -> Flags:
        """Frames with far more grain than the anchor."""
        flags: Flags = self.over_noise > NOISE.value
        return flags

    @property
    def over_noise(self) -> Floats:
        """Grain beyond what the anchor explains."""
        over: Floats = self.track.noise - np.float32(1.5 * self.anchor.noise)
        return over

    @cached_property
    def bad(self) -> Flags:
        """Frames whose motion and colours say nothing."""
        return self.black | self.flat | self.noisy

    @cached_property
    def start_sharpness(self) -> float:
        """How sharp the run's first sound frames are; 0 where none is."""
        sound = self.track.sharpness[~self.bad][:START]
        return float(np.median(sound)) if len(sound) else 0.0

    @property
    def judged(self) -> bool:
        """Whether its first frame should be the anchor."""
        return self.starts and not self.rests and not self.anchor.empty

    @cached_property
    def start_floor(self) -> float:
        """The grain of the run's first sound frames."""
        sound = self.track.floor[~self.bad][:START]
        return float(np.median(sound)) if len(sound) else 0.0

    @cached_property
    def seams(self) -> dict[int, Seam | None]:
        """Its joins by their first frame; None where nothing sound is around."""
        return {part.start: seam_at(self.track, part.start, self.bad) for part in self.parts[1:]}

    def clips(self) -> dict[int, slice]:
        """Each clip's frames in the run, by the clip's number."""
        found: dict[int, slice] = {}
        for part in self.parts:
            start = found[part.shot].start if part.shot in found else part.start
            found[part.shot] = slice(start, part.stop)
        return found
