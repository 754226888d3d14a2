"""Words on the picture: legible on anything, inside the picture, in any script, and the same every time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svi_story.cut.captions import CAPTION, Overlay, caption_over, card, darken, fits

if TYPE_CHECKING:
    from fractions import Fraction

SIZES = [(832, 480), (480, 832), (1280, 720), (416, 240), (160, 96), (1024, 1024)]
SCRIPTS = {
    "Latin": "It has been raining since Tuesday.",
    "Arabic": "كان المطر ينهمر منذ يوم الثلاثاء",
    "Chinese": "猫坐在窗边，看着雨。",
    "Hindi": "बिल्ली खिड़की के पास बैठी है",
    "emoji": "🐈\u200d⬛☔",
}


def grounds(width: int, height: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    flat = {
        name: np.full((height, width, 3), level, np.uint8) for name, level in (("black", 0), ("white", 255))
    }
    return {**flat, "noise": noise}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_caption_can_be_told_from_any_ground(script: str, size: tuple[int, int]) -> None:
    drawn = caption_over(SCRIPTS[script], *size)
    for name, ground in grounds(*size).items():
        changed = drawn.over(ground)
        touched = np.argwhere((changed != ground).any(2))
        if name == "white":  # the edge shows
            assert (changed[tuple(touched.T)].max(1) < 60).mean() > 0.2
        else:
            assert (changed[tuple(touched.T)].min(1) > 200).mean() > 0.05
        top, left = touched.min(0)
        bottom, right = touched.max(0)
        assert size[1] / 2 < top <= bottom < size[1] - 2
        assert 0 < left <= right < size[0] - 1
        assert abs((left + right) / 2 - size[0] / 2) < size[0] * 0.02, "in the middle"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_long_caption_is_whole_and_leaves_most_of_the_picture(size: tuple[int, int]) -> None:
    words = "The cat jumps down and walks out of the frame while it rains. "
    rain, snow = ((words * 5)[:295].strip() + end for end in ("rain.", "snow."))
    black = np.zeros((size[1], size[0], 3), np.uint8)
    one, other = (caption_over(text, *size).over(black) for text in (rain, snow))
    assert fits(rain, CAPTION, *size) == (min(size) > 200)
    assert np.array_equal(one, other) == (min(size) <= 200), "the last word is there, where there is room"
    assert np.argwhere(one)[:, 0].min() > 0
    if min(size) > 200:
        assert np.argwhere(one)[:, 0].min() > size[1] * 0.4


def test_the_frame_itself_stays_as_it_is() -> None:
    ground = grounds(832, 480)["noise"]
    before = ground.copy()
    caption_over("Rain", 832, 480).over(ground)
    assert np.array_equal(ground, before)


def test_outside_the_words_nothing_changes() -> None:
    ground = grounds(832, 480)["noise"]
    assert np.array_equal(caption_over("Rain", 832, 480).over(ground)[:380], ground[:380])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("text", ["The end", "Rain\non the window", "word " * 119, "雨" * 200, "x" * 600])
def test_a_card_is_whole_and_in_the_middle(text: str, size: tuple[int, int]) -> None:
    picture = card(text, *size)
    assert picture.shape == (size[1], size[0], 3)
    ink = np.argwhere(picture.max(2) > 60)
    if min(size) > 200:
        for axis, side in ((0, size[1]), (1, size[0])):
            first, last = ink[:, axis].min(), ink[:, axis].max()
            assert 0 < first <= last < side - 1
            assert abs((first + last) / 2 - side / 2) < side * 0.06


@settings(max_examples=30)
@given(
    st.integers(-30, 60),
    st.integers(-30, 60),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
def test_an_overlay_is_alpha_blending_wherever_it_lies(
    top: int, left: int, height: int, width: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    drawn = random.integers(0, 256, (height, width, 4), np.uint8)
    ground = random.integers(0, 256, (40, 50, 3), np.uint8)
    written = Overlay(drawn, top, left).over(ground)
    for row, column in np.ndindex(40, 50):
        y, x = row - top, column - left
        due = ground[row, column].astype(float)
        if 0 <= y < height and 0 <= x < width:
            alpha = drawn[y, x, 3] / 255
            due = due * (1 - alpha) + drawn[y, x, :3] * alpha
        assert np.abs(written[row, column] - due).max() <= 0.5 + 1e-9


@given(st.fractions(0, 1, max_denominator=500))
def test_darkening_is_rounded_halves_up(level: Fraction) -> None:
    frame = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    due = [
        (value * level.numerator * 2 + level.denominator) // (2 * level.denominator) for value in range(256)
    ]
    assert darken(frame, level)[..., 0].ravel().tolist() == due
