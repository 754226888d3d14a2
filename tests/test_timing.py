"""Frame arithmetic: exact, on the model's grid, and nothing lost between clips and passes."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svi_story.enginespec.sampling import SamplingSettings
from svi_story.enginespec.svi import overlap as overlap_frames
from svi_story.plan.timing import (
    frames_of,
    nearest_contribution,
    smallest_inside,
    split,
    timecode,
)

RATES = [Fraction(n) for n in (1, 15, 16, 24, 25, 30, 60, 240)] + [
    Fraction(24000, 1001),
    Fraction(30000, 1001),
]


@pytest.mark.parametrize(
    ("variant", "motion_latents", "overlap"),
    [("2.0", 1, 1), ("2.0", 3, 1), ("2.0-pro", 1, 5), ("2.0-pro", 2, 9)],
)
def test_overlap_is_one_frame_or_the_motion_latents_and_one_more(
    variant: str, motion_latents: int, overlap: int
) -> None:
    settings = SamplingSettings.model_validate({"variant": variant, "motion_latents": motion_latents})
    assert overlap_frames(settings) == overlap


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"),
    [("5", "15", 75), ("0.5", "15", 8), ("5", "24000/1001", 120), ("1/30", "15", 1), ("0.49/15", "15", 0)],
)
def test_seconds_become_frames_rounded_half_up(seconds: str, fps: str, frames: int) -> None:
    numerator, _, denominator = seconds.partition("/")
    value = Fraction(numerator) / Fraction(denominator or 1)
    assert frames_of(value, Fraction(fps)) == frames


@given(st.integers(0, 10**6), st.sampled_from(RATES))
def test_frames_are_the_nearest_to_the_seconds(milliseconds: int, fps: Fraction) -> None:
    seconds = Fraction(milliseconds, 1000)
    assert abs(frames_of(seconds, fps) - seconds * fps) <= Fraction(1, 2)


@pytest.mark.parametrize(
    ("frames", "starts_chain", "contribution"),
    [
        (75, True, 77), (75, False, 76), (180, True, 181), (180, False, 180), (0, True, 5), (1, False, 4),
        (79, True, 81), (78, True, 77), (82, False, 84), (81, False, 80),
    ],
)  # fmt: skip
def test_contribution_is_the_nearest_the_model_can_make_ties_to_the_longer(
    frames: int, starts_chain: bool, contribution: int
) -> None:
    assert nearest_contribution(frames, starts_chain=starts_chain, grid=4) == contribution


GRIDS = st.sampled_from([4, 8])


@given(st.integers(0, 10**6), st.booleans(), GRIDS)
def test_no_other_contribution_is_nearer(frames: int, starts_chain: bool, grid: int) -> None:
    made = nearest_contribution(frames, starts_chain=starts_chain, grid=grid)
    first = 1 if starts_chain else 0
    assert made % grid == first
    assert made >= grid
    assert made == grid + first or made - grid / 2 <= frames < made + grid / 2


@st.composite
def long_clips(draw: st.DrawFn) -> tuple[int, bool, int, int, int]:
    grid = draw(GRIDS)
    overlap = grid * draw(st.integers(0, 4)) + 1
    max_frames = grid * draw(st.integers(overlap // grid + 1, 60)) + 1
    starts_chain = draw(st.booleans())
    frames = draw(st.integers(1, 5000))
    contribution = nearest_contribution(frames, starts_chain=starts_chain, grid=grid)
    return contribution, starts_chain, max_frames, overlap, grid


@given(long_clips())
def test_passes_make_exactly_the_contribution_and_are_few_and_equal(
    clip: tuple[int, bool, int, int, int],
) -> None:
    contribution, starts_chain, max_frames, overlap, grid = clip
    passes = split(contribution, starts_chain=starts_chain, max_frames=max_frames, overlap=overlap, grid=grid)
    joins = len(passes) - 1 if starts_chain else len(passes)
    assert sum(passes) - joins * overlap == contribution
    assert all(frames > grid and frames % grid == 1 and frames <= max_frames for frames in passes)
    inside = passes[1 if starts_chain else 0 :]
    assert all(frames >= smallest_inside(overlap, grid) for frames in inside)
    assert list(passes) == sorted(passes, reverse=True)
    assert max(passes) - min(passes) <= grid
    fewer = len(passes) - 1
    held = fewer * max_frames - (fewer - 1 if starts_chain else fewer) * overlap
    assert fewer == 0 or held < contribution


@pytest.mark.parametrize(
    ("contribution", "starts_chain", "overlap", "passes"),
    [
        (81, True, 1, (81,)),
        (181, True, 1, (61, 61, 61)),
        (180, False, 5, (65, 65, 65)),
        (181, True, 5, (65, 65, 61)),
        (84, False, 1, (45, 41)),
    ],
)
def test_a_long_clip_is_split_evenly(
    contribution: int, starts_chain: bool, overlap: int, passes: tuple[int, ...]
) -> None:
    found = split(contribution, starts_chain=starts_chain, max_frames=81, overlap=overlap, grid=4)
    assert found == passes


def test_timecode_counts_in_milliseconds() -> None:
    assert timecode(0, Fraction(15)) == "0:00:00.000"
    assert timecode(24000, Fraction(24000, 1001)) == "0:16:41.000"
    assert timecode(15 * 3661 + 1, Fraction(15)) == "1:01:01.067"
