"""The measures of a run of frames, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from svi_story.review.measure import Floats, Measure

    Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Track:
    """What was measured on n frames in a row; see `Measure` for units."""

    mean: Floats
    """n x 3."""
    cov: Floats
    """n x 3 x 3."""
    sharpness: Floats
    noise: Floats
    floor: Floats
    motion: Floats
    """n x blocks."""
    flow: Floats
    """n x blocks x 2."""
    rest: Floats
    """n x blocks."""
    turn: Floats
    """n x 12."""
    change: Floats
    """n x blocks."""
    blocks: Floats
    """n x blocks x 3."""
    skip: Floats
    same: Flags

    @staticmethod
    def of(measures: Sequence[Measure]) -> Track:
        """At least one measure."""
        return Track(
            mean=np.stack([each.mean for each in measures]),
            cov=np.stack([each.cov for each in measures]),
            sharpness=np.array([each.sharpness for each in measures], np.float32),
            noise=np.array([each.noise for each in measures], np.float32),
            floor=np.array([each.floor for each in measures], np.float32),
            motion=np.stack([each.motion for each in measures]),
            flow=np.stack([each.flow for each in measures]),
            rest=np.stack([each.rest for each in measures]),
            turn=np.stack([each.turn for each in measures]),
            change=np.stack([each.change for each in measures]),
            blocks=np.stack([each.blocks for each in measures]),
            skip=np.array([each.skip for each in measures], np.float32),
            same=np.array([each.same for each in measures], bool),
        )

    @staticmethod
    def joined(tracks: Sequence[Track]) -> Track:
        """Several runs, one after another."""
        return Track(**{name: np.concatenate([getattr(t, name) for t in tracks]) for name in _NAMES})

    def __len__(self) -> int:
        return len(self.sharpness)

    def __getitem__(self, frames: slice) -> Track:
        """A part of it."""
        return Track(**{name: getattr(self, name)[frames] for name in _NAMES})

    @property
    def moving(self) -> Floats:
        """How far each whole picture moved, in thousandths of its width; 0 for a first frame."""
        moving: Floats = np.nan_to_num(self.motion.mean(axis=1), nan=0.0)
        return moving

    @property
    def changing(self) -> Floats:
        """How much each whole picture changed, in levels of 255; NaN for a first frame."""
        changing: Floats = self.change.mean(axis=1)
        return changing

    @property
    def spread(self) -> Floats:
        """n x 3: standard deviations of L*, a*, b*."""
        spread: Floats = np.sqrt(np.maximum(np.diagonal(self.cov, axis1=1, axis2=2), 0))
        return spread


_NAMES = tuple(Track.__dataclass_fields__)


@dataclass(frozen=True)
class Drift:
    """How far the colours of n frames are from an anchor's, in CIELAB units (Delta E 1976)."""

    total: Floats
    """The Wasserstein (Frechet) distance between both pictures' colours, taken as normal distributions."""
    mean: Floats
    """The part that is the distance of the means."""
    spread: Floats
    """The part that is the difference of the spreads and their directions."""


def drift_from(track: Track, mean: Floats, cov: Floats) -> Drift:
    """Every frame's distance from colours of this mean (3) and covariance (3 x 3)."""
    return distance(track.mean, track.cov, mean, cov)


def distance(
    means: NDArray[np.floating[Any]], covs: NDArray[np.floating[Any]], mean: Floats, cov: Floats
) -> Drift:
    """How far n means (n x 3) and covariances (n x 3 x 3) are from one of each."""
    moved = np.square(means - mean).sum(axis=1)
    root = _root(cov.astype(np.float64)[None])[0]
    between = _root(root @ covs.astype(np.float64) @ root)
    traces = np.trace(covs, axis1=1, axis2=2) + np.trace(cov) - 2 * np.trace(between, axis1=1, axis2=2)
    spread = np.maximum(traces, 0)
    return Drift(
        np.sqrt(moved + spread).astype(np.float32),
        np.sqrt(moved).astype(np.float32),
        np.sqrt(spread).astype(np.float32),
    )


def _root(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric square roots of covariance matrices."""
    values, vectors = np.linalg.eigh(matrices)
    scaled: NDArray[np.float64] = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
    roots: NDArray[np.float64] = scaled @ vectors.transpose(0, 2, 1)
    return roots
