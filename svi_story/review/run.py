"""A run: consecutive finished segments of one chain, measured as one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from svi_story.review.colour import steps_of, turned
from svi_story.review.joins import seam_at
from svi_story.review.limits import BLACK, FLAT, NOISE, START
from svi_story.review.order import swapped
from svi_story.review.track import drift_from

if TYPE_CHECKING:
    from fractions import Fraction

    from svi_story.review.colour import Steps, Turned
    from svi_story.review.joins import Seam
    from svi_story.review.measure import Floats
    from svi_story.review.track import Drift, Flags, Track


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
