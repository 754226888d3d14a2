"""Frames in a wrong order, and frames or parts of them that stand still bit for bit."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from svi_story.review.limits import ACTIVE, BLACK

if TYPE_CHECKING:
    from svi_story.review.measure import Floats
    from svi_story.review.track import Flags, Track

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
