"""A run: consecutive finished segments of one chain, analysed as one sequence of frames.

Colour drift, steps and flashes, swapped and frozen frames, continuity over joins.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from svi_story.review.measures import colour_distance, drift_from
from svi_story.review.thresholds import (
    ACTIVE,
    ACTIVE_SHARE,
    BLACK,
    CONTEXT_FRAMES,
    FLASH_FRAMES,
    FLAT,
    FROZEN_SHARE,
    NOISE,
    ORDER_CONTEXT,
    SAME_DIRECTION,
    START_FRAMES,
    STOOD_STILL,
    TABLE,
    UNRELATED,
    UNRELATED_LEVELS,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    from svi_story.review.measures import Drift, Flags, Floats, MeasureSeries

LIGHTNESS_OFFSET = 16
"""CIELAB: light that grows k times multiplies L* + 16, a* and b* by the cube root of k."""


@dataclass(frozen=True)
class RunSegment:
    """One segment's frames that reach the film, within a run."""

    clip: int
    """0-based."""
    segment: int
    """0-based place within the clip."""
    start: int
    """Its first frame in the run."""
    stop: int
    within: int
    """Its first frame's place within the clip."""


@dataclass(frozen=True)
class AnchorMeasures:
    """The measures of a chain's reference picture, at the film's size."""

    mean: Floats
    cov: Floats
    noise: float
    noise_floor: float
    sharpness: float

    @property
    def is_uniform(self) -> bool:
        """Whether it shows one colour only; the film may do so too, and nothing can be compared with it."""
        return float(np.sqrt(np.trace(self.cov))) < BLACK


@dataclass(frozen=True)
class Run:
    """Measures of consecutive frames, the segments they belong to, and what follows from them."""

    series: MeasureSeries
    segments: tuple[RunSegment, ...]
    anchor: AnchorMeasures
    fps: Fraction
    may_rest: bool
    """Whether the camera rests on purpose, as an animatic's does around every join."""
    starts_chain: bool = True
    """Whether its first frame is a chain's first, not one after a gap."""
    same_scene: bool = True
    """Whether it is to keep its scene and light, so that a distance from the anchor is a fault."""
    softened: tuple[float, ...] = ()
    """Seconds of the run at which the same content had clearly more fine detail before."""

    @cached_property
    def drift(self) -> Drift:
        """Every frame's distance from the anchor's colours."""
        return drift_from(self.series, self.anchor.mean, self.anchor.cov)

    @cached_property
    def drift_from_start(self) -> Floats:
        """Every frame's distance from the colours of the run's own start."""
        start = np.flatnonzero(~self.bad)[:START_FRAMES]
        if not len(start):
            return np.zeros(len(self.series), np.float32)
        mean, cov = self.series.mean[start].mean(axis=0), self.series.cov[start].mean(axis=0)
        return drift_from(self.series, mean, cov).total

    @cached_property
    def compensated_drift(self) -> CompensatedDrift:
        """How far the colours of what stays in the picture have changed."""
        return compensated_drift(self.series, self.bad)

    @cached_property
    def colour_steps(self) -> ColourSteps:
        """How the whole picture's colours change from frame to frame."""
        return colour_steps(self.series, self.bad)

    @cached_property
    def swapped(self) -> list[int]:
        """First frames of swapped neighbours."""
        return [] if self.may_rest else swapped_frames(self.series, self.bad)

    @cached_property
    def residual(self) -> Floats:
        """The change that motion compensation leaves of each frame, in levels; NaN for a first frame."""
        residual: Floats = self.series.residual.mean(axis=1)
        return residual

    @cached_property
    def total_spread(self) -> Floats:
        """The root of the colours' whole variance."""
        spread: Floats = np.sqrt(np.square(self.series.spread).sum(axis=1))
        return spread

    @cached_property
    def black(self) -> Flags:
        """Frames that show nothing but black."""
        flags: Flags = (self.series.mean[:, 0] < BLACK) & (self.total_spread < BLACK)
        black_anchor = self.anchor.is_uniform and self.anchor.mean[0] < BLACK
        return np.zeros_like(flags) if black_anchor else flags

    @cached_property
    def flat(self) -> Flags:
        """Frames of one colour other than black."""
        flags: Flags = (self.total_spread < FLAT) & ~self.black
        return np.zeros_like(flags) if self.anchor.is_uniform else flags

    @cached_property
    def noisy(self) -> Flags:
        """Frames with far more grain than the anchor."""
        flags: Flags = self.excess_noise > NOISE
        return flags

    @property
    def excess_noise(self) -> Floats:
        """Noise that the anchor's does not explain."""
        excess: Floats = self.series.noise - np.float32(1.5 * self.anchor.noise)
        return excess

    @cached_property
    def bad(self) -> Flags:
        """Black, flat and noisy frames: their motion and colours mean nothing."""
        return self.black | self.flat | self.noisy

    @cached_property
    def start_sharpness(self) -> float:
        """Sharpness of the run's first good frames; 0 where there are none."""
        start = self.series.sharpness[~self.bad][:START_FRAMES]
        return float(np.median(start)) if len(start) else 0.0

    @cached_property
    def start_noise_floor(self) -> float:
        """Noise floor of the run's first good frames; 0 where there are none."""
        start = self.series.noise_floor[~self.bad][:START_FRAMES]
        return float(np.median(start)) if len(start) else 0.0

    @property
    def starts_with_anchor(self) -> bool:
        """Whether its first frame should be the anchor, and can be compared with it."""
        return self.starts_chain and not self.may_rest and not self.anchor.is_uniform

    @cached_property
    def seams(self) -> dict[int, Seam | None]:
        """Its joins by their first frame; None where there are no good frames around it."""
        return {each.start: seam_at(self.series, each.start, self.bad) for each in self.segments[1:]}

    def clips(self) -> dict[int, slice]:
        """Each clip's frames in the run, by the clip's number."""
        clips: dict[int, slice] = {}
        for each in self.segments:
            start = clips[each.clip].start if each.clip in clips else each.start
            clips[each.clip] = slice(start, each.stop)
        return clips


@dataclass(frozen=True)
class CompensatedDrift:
    """How far the colours of what stays in the picture have changed since a run's start, in CIELAB units.

    Summed from frame to frame with the motion compensated: a camera that moves on adds nothing.
    """

    total: Floats
    colour: Floats
    """The part that more or less light does not explain."""


def compensated_drift(series: MeasureSeries, bad: Flags) -> CompensatedDrift:
    """The sum of a run's changes of colour, leaving out those from and to bad frames."""
    start = int(np.argmin(bad))
    steps = np.where(_beside_bad(bad)[:, None], 0, series.colour_change.astype(np.float64)).cumsum(axis=0)
    mean = series.mean[start] + steps[:, :3]
    cov = series.cov[start] + steps[:, 3:].reshape(-1, 3, 3)
    offset = np.array([LIGHTNESS_OFFSET, 0, 0])
    light = np.clip((mean[:, :1] + LIGHTNESS_OFFSET) / (series.mean[start, 0] + LIGHTNESS_OFFSET), 0.4, 2.5)
    relit = (mean + offset) / light - offset
    return CompensatedDrift(
        colour_distance(mean, cov, series.mean[start], series.cov[start]).total,
        colour_distance(relit, cov / light[:, :, None] ** 2, series.mean[start], series.cov[start]).total,
    )


def _beside_bad(bad: Flags) -> Flags:
    """Steps from or to a bad frame."""
    steps = bad.copy()
    steps[1:] |= bad[:-1]
    return steps


@dataclass(frozen=True)
class ColourSteps:
    """The steps of the whole picture's colours: what its blocks have in common."""

    step: Floats
    """n x 3: the blocks' median step into each frame; zeros for the first."""
    excess: Floats
    """How much larger each is than the usual step around, in CIELAB units."""
    sudden: Flags
    """Steps that the whole picture takes in one direction, far larger than usual."""


def colour_steps(series: MeasureSeries, bad: Flags) -> ColourSteps:
    """The step of the colours into each frame."""
    blocks = np.diff(series.blocks, axis=0, prepend=series.blocks[:1])
    step = np.median(blocks, axis=1)
    size = np.linalg.norm(step, axis=1)
    in_common = size / np.maximum(np.linalg.norm(blocks, axis=2).mean(axis=1), 1e-3)
    usual = np.zeros(len(size), np.float32)
    for frame in range(len(size)):
        around = np.concatenate(
            [size[max(frame - CONTEXT_FRAMES, 1) : frame], size[frame + 1 : frame + 1 + CONTEXT_FRAMES]]
        )
        usual[frame] = np.median(around) if len(around) else 0
    large = (size - usual > TABLE["colour-step"].value) & (size > 3 * usual)
    sudden = large & (in_common > SAME_DIRECTION) & ~_beside_bad(bad)
    return ColourSteps(step, np.maximum(size - usual, 0), sudden)


def flashes(steps: ColourSteps) -> Flags:
    """Frames, up to FLASH_FRAMES in a row, whose light or colour comes and goes."""
    flags = np.zeros(len(steps.excess), bool)
    frames = np.flatnonzero(steps.sudden)
    for first, second in pairwise(frames.tolist()):
        there, back = steps.step[first], steps.step[second]
        opposite = there @ back < -0.5 * np.linalg.norm(there) * np.linalg.norm(back)
        if opposite and second - first <= FLASH_FRAMES and not flags[first - 1]:
            flags[first:second] = True
    return flags


def lasting_steps(steps: ColourSteps, series: MeasureSeries) -> list[int]:
    """Frames from which on the whole picture has other colours, and keeps them; of a ramp, the first."""
    found = []
    for frame in np.flatnonzero(steps.sudden).tolist():
        if steps.sudden[max(frame - FLASH_FRAMES, 0) : frame].any() or len(series) - frame < FLASH_FRAMES:
            continue
        before = np.median(series.mean[max(frame - 4, 0) : frame], axis=0)
        after = np.median(series.mean[frame : frame + 4], axis=0)
        if np.linalg.norm(after - before) > np.linalg.norm(steps.step[frame]) / 2:
            found.append(frame)
    return found


def swapped_frames(series: MeasureSeries, bad: Flags) -> list[int]:
    """The first of two swapped neighbours: in steady motion, two steps ahead, one back, two ahead."""
    flow = series.flow.reshape(len(series), -1)
    with_next = np.einsum("ij,ij->i", flow[:-1], flow[1:])
    found = []
    for frame in (np.flatnonzero((with_next[1:-1] < 0) & (with_next[2:] < 0)) + 2).tolist():
        before = flow[max(frame - 1 - ORDER_CONTEXT, 1) : frame - 1]
        after = flow[frame + 2 : frame + 2 + ORDER_CONTEXT]
        if bad[frame - 1 : frame + 2].any() or min(len(before), len(after)) < ORDER_CONTEXT // 2:
            continue
        around = np.concatenate([before, after])
        usual = np.median(around, axis=0)
        power = float(usual @ usual)
        if np.sqrt(power / len(usual) * 2) < ACTIVE:
            continue
        context, steps = around @ usual / power, flow[frame - 1 : frame + 2] @ usual / power
        steady = context.min() > 0.4 and context.max() < 1.6
        if steady and steps[0] > 1.4 and steps[1] < -0.4 and steps[2] > 1.4:
            found.append(frame - 1)
    return found


def frozen_blocks(series: MeasureSeries, frames: slice, least: int) -> tuple[int, int]:
    """Where part of a moving picture stands still bit for bit: its first step and their number, else 0, 0.

    Black blocks, those that never change, as bars, and those that hardly moved before do not count.
    """
    still = (series.change == 0) & (series.blocks[..., 0] > BLACK)
    still &= still[1:].mean(axis=0) < 0.8
    share = still[frames].mean(axis=1)
    start = frames.start
    for flag, length in run_lengths((share > FROZEN_SHARE) & (share < 1 - FROZEN_SHARE)):
        frozen = still[start : start + length].all(axis=0)
        beside = slice(start - 5, start) if start > 5 else slice(start + length, start + length + 5)
        if flag and length >= least and len(series.change[beside]):
            frozen &= series.change[beside].mean(axis=0) > STOOD_STILL
            if frozen.mean() > FROZEN_SHARE:
                return start, length
        start += length
    return 0, 0


def run_lengths(flags: Flags) -> list[tuple[bool, int]]:
    """Runs of equal flags, and their lengths."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8))) + 1
    bounds = [0, *edges.tolist(), len(flags)]
    return [(bool(flags[a]), b - a) for a, b in pairwise(bounds) if b > a]


def longest_run(flags: Flags) -> tuple[int, int]:
    """Where the longest run of set flags starts, and its length; 0, 0 where none is set."""
    best, place = (0, 0), 0
    for flag, length in run_lengths(flags):
        if flag and length > best[1]:
            best = place, length
        place += length
    return best


@dataclass(frozen=True)
class Seam:
    """How the step over a join compares with the steps around it.

    Only blocks that move around the join count for motion. Both ratios are None where too few do for anybody
    to see a stop or a jump.
    """

    step: float | None
    """How far the picture moves over the join, as a multiple of the faster side: 1 is seamless, 2 is one
    frame missing."""
    least: float | None
    """The same as a multiple of the slower side: 0 is a repeated frame."""
    colour_step: float
    """How much larger the step of the whole picture's colours is than usual around, in CIELAB units: of the
    blocks' median, as motion changes them in all directions, and light in one."""
    other_picture: float
    """The share of blocks that change as they only do between different pictures."""


def seam_at(series: MeasureSeries, frame: int, bad: Flags) -> Seam | None:
    """The join before `frame` of a run; None where there are no good frames around it."""
    last = len(series)
    before = _usual(series, range(max(frame - CONTEXT_FRAMES, 1), frame), bad)
    after = _usual(series, range(frame + 1, min(frame + 1 + CONTEXT_FRAMES, last)), bad)
    if before is None or after is None or frame < 1 or bad[frame - 1 : frame + 1].any():
        return None
    step, change = series.motion[frame], series.change[frame]
    other = change > UNRELATED * np.maximum(before[1], after[1]) + UNRELATED_LEVELS
    # A picture that comes to rest at the join, and starts from rest, repeats nothing; what starts fast at the
    # join, and slows down, leaves nothing out
    beside = [series.motion[each] for each in (frame - 1, frame + 1) if 0 < each < last]
    slower = np.minimum.reduce([before[0], after[0], *beside])
    return Seam(
        _step_ratio(step, [before[0], after[0], *beside]),
        _median_ratio(step, slower),
        _colour_step(series, frame),
        float(other.mean()),
    )


def _usual(series: MeasureSeries, frames: range, bad: Flags) -> tuple[Floats, Floats] | None:
    """Each block's median motion and change over some frames."""
    good = [frame for frame in frames if not bad[frame - 1 : frame + 1].any()]
    if not good:
        return None
    return np.median(series.motion[good], axis=0), np.median(series.change[good], axis=0)


def _median_ratio(step: Floats, usual: Floats) -> float | None:
    """The median block's ratio, of the blocks that move."""
    active = usual > ACTIVE
    if active.mean() < ACTIVE_SHARE:
        return None
    return float(np.median(step[active] / usual[active]))


def _step_ratio(step: Floats, around: Sequence[Floats]) -> float | None:
    """The median block's ratio or, for a subject that moves from block to block, the whole picture's."""
    faster = np.maximum.reduce(around)
    median = _median_ratio(step, faster)
    if median is None:
        return None
    active = faster > ACTIVE
    whole = float(step[active].sum() / max(each[active].sum() for each in around))
    return max(median, whole)


def _colour_step(series: MeasureSeries, frame: int) -> float:
    """By how much the blocks' median step exceeds the larger of the usual ones on either side."""
    around = series.blocks[max(frame - 1 - CONTEXT_FRAMES, 0) : frame + 1 + CONTEXT_FRAMES]
    steps = np.linalg.norm(np.median(np.diff(around, axis=0), axis=1), axis=1)
    place = min(frame - 1, CONTEXT_FRAMES)
    usual = max(np.median(side) for side in (steps[:place], steps[place + 1 :]) if len(side))
    return max(float(steps[place] - usual), 0.0)
