"""Findings from differences between neighbouring frames of any film: re-timing, cuts, repeats, stills.

`change` is always the mean absolute difference of each frame's luma to the frame before, in levels of 255.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from svi_story.review.thresholds import (
    CUT_LEVELS,
    CUT_SIMILARITY,
    CUT_TIMES,
    FLASH_LEAST,
    FLASH_TIMES,
    FROZEN_AROUND,
    FROZEN_LEVELS,
    FROZEN_SECONDS,
    MOVING,
    REPEATED,
    RETIMED_SHARE,
    RETIMED_WINDOWS,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svi_story.review.measures import Flags, Floats

RATIOS = tuple(
    Fraction(ratio)
    for ratio in (
        *("16/25", "2/3", "8/15", "24/25", "4/5", "5/6", "1/2", "3/5"),
        *("12/25", "8/25", "2/5", "3/4", "5/8", "1/3"),
    )
)
"""Source frames for each frame of the film, in conversions between 8, 10, 12, 15, 16, 20, 24, 25, 30 fps."""
VOTE = 100
"""Frames of a window that votes for one ratio."""
LEAST_PERIOD, LEAST_REPEATS = 24, 3
"""Frames of the shortest clip, and the repeated frames that make a series."""


@dataclass(frozen=True)
class Retiming:
    """A film that was converted to a higher rate by repeating frames."""

    ratio: Fraction
    """Source frames for each frame of the film."""
    repeats: Flags
    """Frames that show the frame before again."""


def usual_change(change: Floats) -> Floats:
    """The 70th percentile of the changes in six frames on either side."""
    padded = np.pad(change.astype(np.float32), 6, constant_values=np.nan)
    usual: Floats = np.nanpercentile(sliding_window_view(padded, 13), 70, axis=1).astype(np.float32)
    return usual


def find_retiming(change: Floats) -> Retiming | None:
    """Whether repeated frames follow the pattern of a conversion to a higher rate."""
    usual = usual_change(change)
    moving = usual > MOVING
    repeated = (change < REPEATED * usual) & moving
    votes: Counter[Fraction] = Counter()
    windows = 0
    for start in range(0, len(change) - VOTE // 2, VOTE // 2):
        window = slice(start, start + VOTE)
        if moving[window].sum() >= VOTE // 3:
            windows += 1
            vote = _best_ratio(repeated[window], moving[window])
            if vote:
                votes[vote] += 1
    if not votes:
        return None
    ratio, count = votes.most_common(1)[0]
    if count < max(RETIMED_WINDOWS, RETIMED_SHARE * windows):
        return None
    return Retiming(ratio, repeated)


def _best_ratio(repeated: Flags, moving: Flags) -> Fraction | None:
    """The ratio whose pattern of repeats a window has; None for no pattern."""
    best: tuple[float, Fraction] | None = None
    places = np.arange(len(repeated) + 1)
    for ratio in RATIOS:
        for phase in range(ratio.denominator):
            expected = np.diff((places * ratio.numerator + phase) // ratio.denominator) == 0
            there, elsewhere = expected & moving, ~expected & moving
            if there.sum() < 2 or not elsewhere.any():
                continue
            hits, others = repeated[there].mean(), repeated[elsewhere].mean()
            if hits > 0.75 and others < 0.12 and (best is None or hits - others > best[0]):
                best = float(hits - others), ratio
    return best[1] if best else None


def find_cuts(change: Floats, similarity: Floats) -> list[int]:
    """First frames of new scenes: a large change, all at once, to a picture of another layout.

    `similarity` is the correlation of each frame's luma with the frame before.
    """
    padded = np.pad(change.astype(np.float32), 8, constant_values=np.nan)
    around = sliding_window_view(padded, 17).copy()
    around[:, 8] = np.nan
    with np.errstate(invalid="ignore"):
        usual = np.nan_to_num(np.nanmedian(around, axis=1)) if len(change) > 1 else np.zeros(len(change))
        beside = np.nan_to_num(np.nanmax(around[:, [7, 9]], axis=1)) if len(change) > 1 else usual
    large = (change > CUT_LEVELS) & (change > CUT_TIMES * np.maximum(usual, beside))
    found = np.flatnonzero(large & (similarity < CUT_SIMILARITY))
    return [int(each) for each in found if each > 0]


def find_frozen(change: Floats, rate: float, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """First step and number of steps of every time in which a moving picture stands still.

    A still picture that begins with a cut, such as a title, is not a frozen one.
    """
    still = change < FROZEN_LEVELS
    still[:1] = False
    edges = np.flatnonzero(np.diff(np.pad(still, 1).astype(np.int8)))
    found = []
    for start, stop in edges.reshape(-1, 2).tolist():
        before, after = change[max(start - 5, 1) : start], change[stop : stop + 5]
        enough = stop - start >= max(FROZEN_SECONDS * rate, 4)
        beside = min(len(before), len(after)) == 5 and min(np.median(before), np.median(after))
        if enough and beside > FROZEN_AROUND and start - 1 not in cuts:
            found.append((start, stop - start))
    return found


def find_series(change: Floats) -> tuple[list[int], float]:
    """Single repeated frames at regular distances, as at the joins of clips, and the distance; 0 for none."""
    usual = usual_change(change)
    repeated = (change < REPEATED * usual) & (usual > MOVING)
    repeated[0] = False
    alone = repeated & ~np.pad(repeated, (1, 0))[:-1] & ~np.pad(repeated, (0, 1))[1:]
    places = np.flatnonzero(alone)
    if len(places) < LEAST_REPEATS:
        return [], 0.0
    gaps = Counter(int(gap) for gap in np.diff(places) if gap >= LEAST_PERIOD).most_common(20)
    parts = (gap / part for gap, _ in gaps for part in (1, 2, 3))
    periods = dict.fromkeys(period for period in parts if period >= LEAST_PERIOD)
    firsts = places[:20].tolist()
    followed = [_follow(places.tolist(), first, period) for first in firsts for period in periods]
    hits, period = max(followed, key=lambda each: (len(each[0]), each[1]), default=([], 0.0))
    possible = (len(change) - 1 - hits[0]) / period + 1 if hits else 0
    # If frames are repeated everywhere, repeats can be found at any distance
    enough = len(hits) >= max(LEAST_REPEATS, 0.4 * possible, 0.5 * len(places))
    return (hits, period) if enough else ([], 0.0)


def _follow(places: list[int], first: int, period: float) -> tuple[list[int], float]:
    """Those places that are whole periods from the first one; and the period, made exact on the way."""
    hits, periods = [first], 0
    for place in places:
        count = round((place - hits[-1]) / period)
        if count >= 1 and abs(place - hits[-1] - count * period) <= 1:
            hits.append(place)
            periods += count
            period = (place - first) / periods
    return hits, period


def find_flashes(change: Floats, over_two: Floats) -> list[int]:
    """Single frames that differ from both neighbours, which are alike.

    `over_two` is the difference of each frame to the one two before.
    """
    if len(change) < 3:
        return []
    there, back = change[1:-1], change[2:]
    least = np.minimum(there, back)
    usual = usual_change(change)[1:-1]
    found = (least > FLASH_LEAST) & (least > FLASH_TIMES * usual) & (over_two[2:] < least / 4)
    return [int(each) + 1 for each in np.flatnonzero(found)]
