"""Frame arithmetic, in integers and fractions only.

An engine renders `grid` * k + 1 frames in one pass. In a chain the first `overlap` of them, `grid` * n + 1
frames, repeat the parent's last ones and are dropped. So the first clip of a chain contributes `grid` * k + 1
frames and every later one `grid` * k.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor


def frames_of(seconds: Fraction, fps: Fraction) -> int:
    """Seconds in frames, rounded half up."""
    return floor(seconds * fps + Fraction(1, 2))


def smallest_inside(overlap: int, grid: int) -> int:
    """The fewest frames of a pass that continues from another: the overlap and one grid step of its own."""
    return overlap + grid


def nearest_contribution(frames: int, *, starts_chain: bool, grid: int, at_least: bool = False) -> int:
    """The nearest number of frames a clip can contribute, ties to the longer: grid * k + 1 or grid * k.

    `at_least`: the smallest one that is not less than `frames`.
    """
    first = 1 if starts_chain else 0
    steps = Fraction(frames - first, grid)
    return grid * max(ceil(steps) if at_least else floor(steps + Fraction(1, 2)), 1) + first


def split(
    contribution: int, *, starts_chain: bool, max_frames: int, overlap: int, grid: int
) -> tuple[int, ...]:
    """The passes of a clip: as few as possible, as equal as the grid allows, longer ones first.

    `contribution` is on the grid of `nearest_contribution`; returns the frames of each pass.
    """
    repeated = overlap // grid  # grid steps that every continuing pass repeats
    largest = max_frames // grid
    own = contribution // grid
    not_repeated = repeated if starts_chain else 0  # by a chain's first pass
    passes = max(1, ceil(Fraction(own - not_repeated, largest - repeated)))
    share, longer = divmod(own - not_repeated + passes * repeated, passes)
    return tuple(grid * (share + (index < longer)) + 1 for index in range(passes))


def timecode(frame: int, fps: Fraction) -> str:
    """A film position as H:MM:SS.mmm, rounded to milliseconds."""
    milliseconds = floor(Fraction(frame * 1000) / fps + Fraction(1, 2))
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest:03}"
