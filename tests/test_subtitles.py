"""The .srt: every player reads the same words at the same time, whatever is in them."""

from __future__ import annotations

import re
import subprocess
import unicodedata
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svi_story.cut.captions import escape_markup, srt
from svi_story.cut.extras import Cue
from svi_story.cut.ffmpeg import ffmpeg_path

if TYPE_CHECKING:
    from pathlib import Path

FPS = Fraction(24000, 1001)
BLOCK = re.compile(
    r"(?P<number>\d+)\n(?P<start>\d\d+:\d\d:\d\d,\d\d\d) --> (?P<stop>\d\d+:\d\d:\d\d,\d\d\d)\n(?P<text>.+)",
    re.DOTALL,
)


def blocks(text: str) -> list[tuple[str, str, str]]:
    """Start, stop and words of every cue, read as strictly as any player."""
    found = [BLOCK.fullmatch(block) for block in text.removesuffix("\n").split("\n\n")] if text else []
    assert all(found)
    told = [match for match in found if match]
    assert [match["number"] for match in told] == [str(number) for number in range(1, len(told) + 1)]
    return [(match["start"], match["stop"], match["text"]) for match in told]


def test_two_cues() -> None:
    cues = [Cue("Rain on\nthe window", 0, 48), Cue("مرحبا", 48, 24_000 * 3600)]
    assert srt(cues, Fraction(24)) == (
        "1\n00:00:00,000 --> 00:00:02,000\nRain on\nthe window\n\n2\n00:00:02,000 --> 1000:00:00,000\nمرحبا\n"
    )
    assert srt([], FPS) == srt([Cue("  \n\t", 0, 9)], FPS) == ""


@pytest.mark.parametrize(
    ("frame", "fps", "clock"),
    [
        (1, Fraction(15), "00:00:00,067"),
        (1, Fraction(16), "00:00:00,063"),  # 62.5 ms
        (1, FPS, "00:00:00,042"),
        (24 * 3600, FPS, "01:00:03,600"),
        (999, Fraction(1000, 999), "00:16:38,001"),
    ],
)
def test_times_are_rounded_to_the_nearest_millisecond(frame: int, fps: Fraction, clock: str) -> None:
    assert blocks(srt([Cue("x", frame, frame + 999)], fps))[0][0] == clock


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n\n\nb\n", "a\nb"),
        ("a\r\n\r\nb\x0b\x0cc\x1d\x85d\u2028e\u2029f", "a\nb\nc\nd\ne\nf"),
        ("x\n\n2\n00:00:00,000 --> 00:00:09,000\nforged", "x\n2\n00:00:00,000 --＞ 00:00:09,000\nforged"),
        ("<i>so</i> it <b", "＜i＞so＜/i＞ it ＜b"),
        ('<font color="red">', '＜font color="red"＞'),
        ("{\\an8}up {y:i}", "｛\\an8｝up ｛y:i｝"),
        ("2 > 1 -> 1 < 2 &amp; <3", "2 > 1 -> 1 < 2 &amp; <3"),
        ("---->", "----＞"),
        ("bell\x07 \x1b[31mred\x00\ud800", "bell [31mred"),
        ("猫 👩‍👩‍👧 हिन्दी", "猫 👩‍👩‍👧 हिन्दी"),
    ],
)
def test_text_stays_text(text: str, shown: str) -> None:
    assert escape_markup(text) == shown
    assert blocks(srt([Cue(text, 0, 9), Cue("next", 9, 12)], FPS))[0][2] == shown


@given(st.lists(st.tuples(st.text(max_size=30), st.integers(0, 99), st.integers(1, 50)), max_size=6))
def test_nothing_breaks_a_file(written: list[tuple[str, int, int]]) -> None:
    cues = [Cue(text, start, start + frames) for text, start, frames in written]
    told = blocks(srt(cues, FPS))
    assert len(told) <= len(cues)
    assert all(start < stop for start, stop, _ in told)
    assert all(stop <= start for (_, stop, _), (start, _, _) in pairwise(told))
    assert not any("-->" in text or "\n\n" in text or re.search(r"<[A-Za-z/]", text) for _, _, text in told)


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=40))
def test_the_words_stay_the_same_characters(text: str) -> None:
    """Full width is a matter of looks: Unicode's compatibility form gives the author's text back."""
    assert unicodedata.normalize("NFKC", escape_markup(text)) == unicodedata.normalize("NFKC", text)


def test_a_player_reads_it(tmp_path: Path) -> None:
    """ffmpeg's own reader, which strips tags and obeys braces, finds every word at its time."""
    path = tmp_path / "film.srt"
    texts = ["<i>one</i> {\\an8}two", "three\n\n--> four", "5\n00:00:00,000 --> 00:00:01,000\nsix"]
    cues = [Cue(text, 10 * number, 10 * number + 9) for number, text in enumerate(texts)]
    path.write_text(srt(cues, Fraction(10)), "utf-8")
    command = [ffmpeg_path(), "-v", "warning", "-i", str(path), "-f", "ass", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stderr == b""
    events = [line.split(",", 9) for line in done.stdout.decode().splitlines() if line.startswith("Dialogue")]
    assert [(event[1], event[2]) for event in events] == [
        ("0:00:00.00", "0:00:00.90"),
        ("0:00:01.00", "0:00:01.90"),
        ("0:00:02.00", "0:00:02.90"),
    ]
    assert [event[9] for event in events] == [
        "＜i＞one＜/i＞ ｛\\an8｝two",
        "three\\N--＞ four",
        "5\\N00:00:00,000 --＞ 00:00:01,000\\Nsix",
    ]
