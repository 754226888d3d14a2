"""The kinds of value a board holds, over their whole range."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from svi_story.enginespec import spec_of
from svi_story.enginespec.sampling import GuidanceSettings
from svi_story.fields import (
    blank,
    duration,
    format_path,
    format_value,
    frame_rate,
    joined_surrogates,
    nearest,
    text_problem,
)
from svi_story.storyboard.schema import Clip, EngineSettings, Resolution, Storyboard
from svi_story.storyboard.yaml12 import NOTHING, Refused, scalar


def story(**fields: object) -> Storyboard:
    return Storyboard.model_validate(
        {"version": 1, "reference": "a.png", "clips": [{"prompt": "A"}], **fields}
    )


def clip(**fields: object) -> Clip:
    return Clip.model_validate({"prompt": "A", **fields})


@pytest.mark.parametrize(
    ("written", "rate"),
    [
        (1, Fraction(1)),
        (240, Fraction(240)),
        (15.0, Fraction(15)),
        (12.5, Fraction(25, 2)),
        ("24000/1001", Fraction(24000, 1001)),
        ("48/2", Fraction(24)),
        (Fraction(30000, 1001), Fraction(30000, 1001)),
    ],
)
def test_frame_rates_are_exact(written: object, rate: Fraction) -> None:
    assert story(fps=written).fps == rate


@settings(deadline=None)
@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_fraction_between_1_and_240_is_a_frame_rate(numerator: int, denominator: int) -> None:
    rate = Fraction(numerator, denominator)
    if 1 <= rate <= 240:
        assert frame_rate(f"{numerator}/{denominator}") == rate
    else:
        with pytest.raises(PydanticCustomError, match="is not from 1 to 240"):
            frame_rate(f"{numerator}/{denominator}")


@settings(deadline=None)
@given(st.floats(1, 240))
def test_a_number_is_a_frame_rate_or_gets_one_that_is(number: float) -> None:
    try:
        assert frame_rate(number) == Fraction(repr(number))
    except PydanticCustomError as error:
        cure = re.search(r"use (\S+)$", str(error))
        assert cure
        meant = frame_rate(cure[1] if "/" in cure[1] else int(cure[1]))
        assert meant.denominator <= 1001
        assert abs(meant - Fraction(number)) < Fraction(1, 100)


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (23.976, "24000/1001"),
        (23.98, "24000/1001"),
        (29.97, "30000/1001"),
        (47.95, "48000/1001"),
        (47.952, "48000/1001"),
        (59.94, "60000/1001"),
        (119.88, "120000/1001"),
        (239.76, "240000/1001"),
    ],
)
def test_a_rounded_rate_is_refused_with_the_one_it_means(number: float, cure: str) -> None:
    with pytest.raises(ValidationError, match=f"{number} is a rounded frame rate.*; use {cure}"):
        story(fps=number)
    assert story(fps=cure).fps == Fraction(cure)


@pytest.mark.parametrize("number", [23.9, 24.0, 29.9, 30, 47.9, 48, 60, 119.5, 120])
def test_a_rate_beside_those_is_taken(number: float) -> None:
    assert story(fps=number).fps == Fraction(str(number))


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (5, Fraction(5)),
        (0.1, Fraction(1, 10)),
        ("5s", Fraction(5)),
        ("2.5 s", Fraction(5, 2)),
        ("400ms", Fraction(2, 5)),
        ("1.5m", Fraction(90)),
        ("1h", Fraction(3600)),
        (3600, Fraction(3600)),
        (Fraction(1, 3), Fraction(1, 3)),
    ],
)
def test_durations_are_exact(written: object, seconds: Fraction) -> None:
    assert clip(duration=written).duration == seconds


@settings(deadline=None)
@given(st.decimals(0, 3600, places=3, allow_nan=False))
def test_decimals_mean_what_they_say(number: object) -> None:
    seconds = Fraction(str(number))
    if seconds:
        assert duration(f"{number}s") == duration(float(str(number))) == seconds


@pytest.mark.parametrize(
    "written", ["", "s", "5", "5S", "5sec", "1e3s", "٥s", "5s\n", "--5s", "1/2s", "0x5s", "9" * 99 + "s"]
)
def test_what_is_no_duration_is_refused(written: str) -> None:
    with pytest.raises(ValidationError, match="is not a duration"):
        clip(duration=written)


@settings(deadline=None)
@given(st.integers(5, 10**6))
def test_frames_are_4k_plus_1_or_the_nearest_are_named(frames: int) -> None:
    engine = spec_of("svi")
    assert engine.makes(frames) == (frames % 4 == 1)
    if engine.makes(frames):
        return
    first, second = engine.nearest(frames)
    assert {first % 4, second % 4} == {1}
    assert abs(first - second) == 4
    assert abs(first - frames) <= abs(second - frames)
    assert min(first, second) < frames < max(first, second)
    assert first > second or abs(first - frames) < abs(second - frames)


@settings(deadline=None)
@given(st.integers(1, 256), st.integers(1, 256))
def test_sizes_in_multiples_of_16_are_taken(width: int, height: int) -> None:
    written = story(resolution=f"{width * 16}x{height * 16}").resolution
    assert written == Resolution(width=width * 16, height=height * 16)


@settings(deadline=None)
@given(st.integers(0, 99999), st.integers(0, 99999))
def test_other_sizes_get_one_that_is_taken(width: int, height: int) -> None:
    try:
        story(resolution=f"{width}x{height}")
    except ValidationError as error:
        cure = re.search(r"use (\d+x\d+)", str(error))
        assert cure
        assert str(story(resolution=cure[1]).resolution)


def test_sizes_have_names() -> None:
    assert story(resolution="480p").resolution == Resolution(width=832, height=480)
    assert story(resolution="720p").resolution == Resolution(width=1280, height=720)


@pytest.mark.parametrize(
    "written", ["832X480", "832 x 480", "832x480x3", "-16x16", "832x", "٨٣٢x٤٨٠", "832x480\n"]
)
def test_sizes_are_written_one_way(written: str) -> None:
    with pytest.raises(ValidationError, match="is not a size"):
        story(resolution=written)


def test_a_bare_number_of_guidance_means_both_experts() -> None:
    assert clip(guidance=6).guidance == GuidanceSettings(high=6.0, low=6.0)
    assert clip(guidance={"high": 4, "low": 3.5}).guidance == GuidanceSettings(high=4.0, low=3.5)


@pytest.mark.parametrize(("written", "variant"), [(2.0, "2.0"), ("2.0", "2.0"), ("2.0-pro", "2.0-pro")])
def test_a_variant_without_quotes_is_one(written: object, variant: str) -> None:
    assert EngineSettings.model_validate({"variant": written}).variant == variant


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", "1"),
        ("seed", 1.0),
        ("seed", True),
        ("title", 5),
        ("version", True),
        ("version", 1.0),
        ("version", "1"),
        ("fps", True),
        ("fps", "15"),
        ("resolution", [832, 480]),
        ("resolution", {"width": 832, "height": 480}),
        ("allow_repeated_seeds", 1),
        ("allow_repeated_seeds", "true"),
        ("clips", ({"prompt": 5},)),
        ("clips", "A cat sits."),
        ("engine", {"steps": "50"}),
        ("engine", {"variant": 2}),
        ("engine", {"guidance": True}),
        ("engine", {"guidance": [4, 3]}),
        ("cut", {"crf": 18.0}),
    ],
)
def test_nothing_is_taken_for_something_else(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        story(**{field: value})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("off", "off"),
        ("tRue", "tRue"),
        ("12", 12),
        ("-012", -12),
        ("0o17", 15),
        ("0x1F", 31),
        ("-0x1F", "-0x1F"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2001-01-01", "2001-01-01"),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1e", "1e"),
        (".", "."),
        ("+", "+"),
        ("-.inf", float("-inf")),
        (".Inf", float("inf")),
        ("inf", "inf"),
        ("nan", "nan"),
        ("", NOTHING),
        ("~", NOTHING),
        ("Null", NOTHING),
        ("none", "none"),
        ("1e999", Refused("1e999 is too large a number; write a smaller one")),
        ("9" * 101, Refused("a number of 101 characters; write a shorter one")),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


@settings(deadline=None)
@given(st.one_of(st.text(), st.integers(), st.floats(), st.lists(st.none()), st.binary(), st.booleans()))
def test_whatever_is_shown_is_short_and_harmless(value: object) -> None:
    text = format_value(value)
    assert text.isprintable()
    assert len(text) < 700


@settings(deadline=None)
@given(st.lists(st.one_of(st.text(), st.integers(0))))
def test_whatever_place_is_spelled_is_harmless(loc: list[str | int]) -> None:
    assert format_path(tuple(loc)).isprintable()


def test_places_are_spelled_as_authors_read_them() -> None:
    assert format_path(("clips", 3, "transition", "fade")) == "clips[3].transition.fade"
    assert format_path(()) == ""
    assert format_path(("two words",)) == '"two words"'


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8")))
def test_pairs_of_surrogates_are_joined_and_halves_are_found(text: str) -> None:
    raw = text.encode("utf-16-le")
    pairs = "".join(chr(int.from_bytes(raw[n : n + 2], "little")) for n in range(0, len(raw), 2))
    assert joined_surrogates(pairs) == text
    assert "an unpaired surrogate" in text_problem("\ud83d" + "a")


def test_text_may_hold_every_script_and_no_control_characters() -> None:
    assert not text_problem("猫 🐱 قطة\n\tनमस्ते \u200d \u2028")
    assert "U+001B" in text_problem("\x1b[2J")
    assert "a line break" in text_problem("a\nb", one_line=True)


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u200b", "\u00a0", "\u2028"])
def test_blank_is_what_nobody_sees(text: str) -> None:
    assert blank(text)
    assert not blank(text + ".")


@pytest.mark.parametrize(
    ("word", "meant"), [("promt", "prompt"), ("Duration", "duration"), ("stile", "style"), ("xyz", "")]
)
def test_typos_find_their_field(word: str, meant: str) -> None:
    assert nearest(word, ["title", "style", "prompt", "duration"]) == meant
    assert nearest(word * 50, ["title", "style", "prompt", "duration"]) == ""
