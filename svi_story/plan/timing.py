"""Frame arithmetic, in integers and fractions only.

The model makes 4k+1 frames in one pass. Inside a chain the first `overlap` of them repeat the parent's last
ones and are dropped, so the first clip of a chain contributes 4k+1 frames and every later one 4k.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svi_story.plan.model import Variant

GRID = 4
"""Frames per latent: the VAE's temporal stride."""


def overlap_frames(variant: Variant, motion_latents: int) -> int:
    """Frames to drop at a join: the carried last one (2.0), or the motion latents' and one more (2.0-pro)."""
    return 1 if variant == "2.0" else 1 + GRID * motion_latents


def frames_of(seconds: Fraction, fps: Fraction) -> int:
    """Seconds in frames, rounded half up."""
    return floor(seconds * fps + Fraction(1, 2))


def on_grid(frames: int) -> bool:
    """Whether the model can make that many frames in one pass: 4k+1, at least 5."""
    return frames > GRID and frames % GRID == 1


def smallest_inside(overlap: int) -> int:
    """The fewest frames of a pass that continues from another: the overlap and one latent of its own."""
    return overlap + GRID


def nearest_contribution(frames: int, *, starts_chain: bool) -> int:
    """The nearest number of frames a clip can contribute, ties to the longer: 4k+1 or 4k, k >= 1."""
    first = 1 if starts_chain else 0
    steps = floor(Fraction(frames - first, GRID) + Fraction(1, 2))
    return GRID * max(steps, 1) + first


def split(contribution: int, *, starts_chain: bool, max_frames: int, overlap: int) -> tuple[int, ...]:
    """The passes that make a clip: the fewest that hold it, as equal as the grid allows, longer first.

    `contribution` is on the grid of `nearest_contribution`; returns what the model makes in each pass (4k+1).
    """
    repeated = overlap // GRID  # whole latents that every continuing pass makes again
    largest = max_frames // GRID
    own = contribution // GRID
    spared = repeated if starts_chain else 0  # a chain's first pass repeats nothing
    passes = max(1, ceil(Fraction(own - spared, largest - repeated)))
    share, longer = divmod(own - spared + passes * repeated, passes)
    return tuple(GRID * (share + (index < longer)) + 1 for index in range(passes))


def timecode(frame: int, fps: Fraction) -> str:
    """A film position as H:MM:SS.mmm, rounded to milliseconds."""
    milliseconds = floor(Fraction(frame * 1000) / fps + Fraction(1, 2))
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest:03}"
