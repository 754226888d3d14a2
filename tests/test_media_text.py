"""Text as pictures: every script shaped and broken right, nothing cut, nothing lost in silence."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import typst
from hypothesis import given, settings
from hypothesis import strategies as st

from svi_story.media import text as fonts
from svi_story.media.text import BUNDLED, FOLDER, TextStyle, clean_text, draw_text, missing_characters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

STYLE = TextStyle(size=20, max_width=300, max_lines=9)
ZERO_WIDTH_NON_JOINER = "\u200c"

SCRIPTS = {
    "latin": "Żółw w Łodzi; façade, office",
    "greek": "Γάτα στο παράθυρο",
    "cyrillic": "Кошка сидит у окна",
    "chinese": "一只虎斑猫坐在窗边",
    "traditional": "一隻虎斑貓坐在窗邊",
    "japanese": "窓辺に座るトラ猫",
    "korean": "창가에 앉은 고양이",
    "arabic": "قطة تجلس بجانب النافذة",
    "hebrew": "חתול יושב ליד החלון",
    "devanagari": "खिड़की के पास एक बिल्ली",
    "thai": "แมวลายนั่งอยู่ข้างหน้าต่าง",
    "bengali": "জানালার পাশে একটি বিড়াল",
    "tamil": "ஜன்னல் அருகே ஒரு பூனை",
    "emoji": "🐈‍⬛ 😀 👩‍👩‍👧 🇩🇪 👍🏽 ❤️ 1️⃣",
    "symbols": "→ ★ ✓ ½ € № ♪ ≠ ∞ …",
}


def ink(picture: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what was drawn."""
    rows, columns = (np.flatnonzero(picture[..., 3].any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def ink_width(text: str, style: TextStyle = STYLE) -> int:
    left, _, right, _ = ink(draw_text(text, style))
    return right - left


def lines(picture: NDArray[np.uint8], style: TextStyle) -> int:
    return int(picture.shape[0] - 2 * style.margin) // style.line_height


@pytest.mark.parametrize("script", SCRIPTS)
def test_bundled_fonts_show_every_promised_script(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())
    assert missing_characters(SCRIPTS[script]) == ()


@pytest.mark.parametrize("script", SCRIPTS)
def test_nothing_touches_the_edge(script: str) -> None:
    picture = draw_text(SCRIPTS[script] + " (qgjpy) Åfg", STYLE)
    alpha = picture[..., 3]
    assert not any(edge.any() for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]))


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_character_comes_out_as_a_box(script: str) -> None:
    box = draw_text("\ufffd", STYLE)
    for char in set(SCRIPTS[script]) - set(" \u200d\ufe0f"):
        assert not np.array_equal(draw_text(char, STYLE), box)


def test_every_bundled_file_is_there_and_named_right() -> None:
    found = {font.family for font in fonts._fonts(system=False).fonts()}
    assert found == set(BUNDLED)
    assert {path.name for path in FOLDER.iterdir() if path.suffix in {".ttf", ".otf"}} == set(
        BUNDLED.values()
    )
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 16_000_000


def test_the_size_of_the_picture_is_known_before() -> None:
    picture = draw_text("one\ntwo\nthree", STYLE)
    assert picture.shape == (3 * STYLE.line_height + 2 * STYLE.margin, 300 + 2 * STYLE.margin, 4)
    assert picture.dtype == np.uint8
    assert draw_text("", STYLE).shape == (2 * STYLE.margin, 300 + 2 * STYLE.margin, 4)
    assert not draw_text(" \n\t", STYLE).any()


def test_lines_break_between_words() -> None:
    style = replace(STYLE, max_width=ink_width("flicking tail") + 6)
    picture = draw_text("flicking tail window", style)
    assert lines(picture, style) == 2
    np.testing.assert_array_equal(picture, draw_text("flicking tail\nwindow", style))


def test_korean_breaks_between_words_too() -> None:
    style = replace(STYLE, max_width=ink_width("창가에 앉은 고") + 6)
    np.testing.assert_array_equal(
        draw_text("창가에 앉은 고양이", style), draw_text("창가에 앉은\n고양이", style)
    )


def test_chinese_breaks_anywhere_but_never_before_a_full_stop() -> None:
    style = replace(STYLE, max_width=100)  # five ideographs
    np.testing.assert_array_equal(
        draw_text("一只虎斑猫坐在窗边", style), draw_text("一只虎斑猫\n坐在窗边", style)
    )
    np.testing.assert_array_equal(
        draw_text("一只虎斑猫。坐在窗边", style), draw_text("一只虎斑\n猫。坐在窗\n边", style)
    )


def test_thai_breaks_between_words_though_it_has_no_spaces() -> None:
    style = replace(STYLE, max_width=ink_width("หันหน้าไป") - 4)
    np.testing.assert_array_equal(draw_text("หันหน้าไป", style), draw_text("หันหน้า\nไป", style))


@pytest.mark.parametrize(
    "word",
    ["w" * 90, "https:/" + "x" * 60, "고" * 90, "ب" * 90, "。" * 90],
    ids=["latin", "link", "korean", "arabic", "full stops"],
)
def test_a_word_wider_than_the_line_breaks_and_stays_inside(word: str) -> None:
    style = replace(STYLE, max_width=120, max_lines=40)
    picture = draw_text(word, style)
    assert lines(picture, style) > 3
    left, _, right, _ = ink(picture)
    assert left > 0
    assert right < picture.shape[1]


def test_a_long_text_ends_in_an_ellipsis() -> None:
    style = replace(STYLE, max_lines=3)
    prompt = "The camera glides over a quiet harbour at dawn. " * 110
    picture = draw_text(prompt, style)
    assert lines(picture, style) == 3
    np.testing.assert_array_equal(picture, draw_text(prompt * 3, style))
    shown = next(end for end in range(200) if np.array_equal(draw_text(prompt[:end] + "…", style), picture))
    assert shown > 60
    assert prompt[shown] in " .", "the ellipsis follows a whole word"


def test_arabic_letters_join_and_devanagari_ligatures_form() -> None:
    for word in ("كتب", "क्ष"):
        apart = word[0] + word[1:].replace("\u094d", "\u094d" + ZERO_WIDTH_NON_JOINER)
        apart = ZERO_WIDTH_NON_JOINER.join(word) if word[0] == "ك" else apart
        assert ink_width(word) < ink_width(apart)


def test_emoji_sequences_are_one_picture() -> None:
    family = "👩\u200d👩\u200d👧"
    assert ink_width(family) < 0.6 * ink_width(family.replace("\u200d", ""))
    assert ink_width("🇩🇪") < 0.8 * ink_width("🇩 🇪")


def test_right_to_left_starts_at_the_right() -> None:
    for text in (SCRIPTS["hebrew"], SCRIPTS["arabic"]):
        left, _, right, _ = ink(draw_text(text, STYLE))
        assert right > 300
        assert left > 20
    left, _, right, _ = ink(draw_text(SCRIPTS["latin"], STYLE))
    assert left < 12
    assert right < 300


def test_numbers_in_hebrew_run_left_to_right() -> None:
    mixed = draw_text("אבג 12", STYLE)
    left, *_ = ink(mixed)
    number = mixed[:, left : left + 22, 3].astype(int)
    distance = {}
    for digits in ("12", "21"):
        alone = draw_text(digits, STYLE)
        left, *_ = ink(alone)
        distance[digits] = np.abs(alone[:, left : left + 22, 3] - number).mean()
    assert distance["12"] < 0.3 * distance["21"]


def test_align() -> None:
    edges = {
        align: ink(draw_text("word", replace(STYLE, align=align))) for align in ("start", "center", "end")
    }
    width = 300 + 2 * STYLE.margin
    assert edges["start"][0] < 12
    assert width - edges["end"][2] < 12
    assert abs(edges["center"][0] - (width - edges["center"][2])) <= 3


def test_the_outline_is_around_the_letters_in_every_direction() -> None:
    style = replace(STYLE, outline=2, colour=(255, 255, 255), outline_colour=(255, 0, 0))
    for text in (SCRIPTS["latin"], SCRIPTS["hebrew"]):
        plain, outlined = draw_text(text, replace(style, outline=0)), draw_text(text, style)
        moved = style.margin - STYLE.margin
        inside = plain[..., 3] > 250
        core = outlined[moved : moved + plain.shape[0], moved : moved + plain.shape[1]][inside]
        assert core.min() > 235, "the letters lie over their outline"
        boxes = ink(plain), ink(outlined)
        grown = np.subtract(boxes[1], boxes[0]) - moved
        assert (np.abs(grown - (-2, -2, 2, 2)) <= 1).all()
        assert (outlined[..., 3] > 250).sum() > 1.5 * inside.sum()


@pytest.mark.parametrize("align", ["start", "center", "end"])
@pytest.mark.parametrize("text", ["Rain", "Rain on the window\nall day", "مطر"])
def test_the_outline_goes_where_the_letters_go(align: Literal["start", "center", "end"], text: str) -> None:
    style = replace(STYLE, outline=2, align=align, outline_colour=(0, 0, 0))
    outlined = draw_text(text, style)
    letters = np.argwhere((outlined[..., 0] > 200) & (outlined[..., 3] > 200))
    all_ink = np.argwhere(outlined[..., 3] > 128)
    assert np.abs(letters.min(0) - all_ink.min(0)).max() <= 4
    assert np.abs(letters.max(0) - all_ink.max(0)).max() <= 4


def test_text_is_never_markup() -> None:
    for text in (
        "*bold*",
        "_x_",
        "#set text(red)",
        "$x^2$",
        "<b>x</b>",
        "\\u{41}",
        '"); #panic()',
        "= Title",
        "- x",
    ):
        assert ink_width(text) > ink_width(text[1:])
        assert lines(draw_text(text, STYLE), STYLE) == 1


def test_control_characters_are_dropped() -> None:
    np.testing.assert_array_equal(
        draw_text("a\x00\x1b[31mb\x7f\u202e\ufeff c\ud800", STYLE), draw_text("a[31mb c\ufffd", STYLE)
    )
    assert clean_text(" a \t b\r\nc\u2028\x0b d \n\n") == "a b\nc\nd"
    assert clean_text("می\u200cخواهم 👩\u200d👧") == "می\u200cخواهم 👩\u200d👧"


def test_what_only_steers_its_neighbours_is_never_missing() -> None:
    selectors = "".join(map(chr, [*range(0xFE00, 0xFE10), 0xE0100, 0x34F, 0x200D, 0xE007F, 0x3164]))
    assert missing_characters("猫" + selectors + " \u3000\n\x1b") == ()
    np.testing.assert_array_equal(draw_text("葛\U000e0100\ufe00飾", STYLE), draw_text("葛飾", STYLE))


def test_missing_characters_are_named_and_replaced() -> None:
    text = "a \U000f0000 b \u200d\U000ffffd\n\U000f0000"
    assert missing_characters(text) == ("\U000f0000", "\U000ffffd")
    np.testing.assert_array_equal(draw_text("a \U000f0000 b", STYLE), draw_text("a \ufffd b", STYLE))


@pytest.fixture
def few_bundled_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine where only Noto Sans is bundled and the other fonts are the system's."""
    caches: list[Any] = [fonts._with_system_fonts, fonts._system_fonts]
    for cache in caches:
        cache.cache_clear()
    everything = typst.Fonts(
        include_system_fonts=False, include_embedded_fonts=False, font_paths=[str(FOLDER)]
    )
    monkeypatch.setattr(fonts, "BUNDLED", {"Noto Sans": BUNDLED["Noto Sans"]})
    monkeypatch.setattr(fonts, "_fonts", lambda *, system: everything)
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("few_bundled_fonts")
def test_system_fonts_stand_in() -> None:
    assert missing_characters("Кошка 窓 שלום \U000f0000") == ("\U000f0000",)
    families = fonts.choose_fonts("窓").families
    assert families == ("Noto Sans", "Noto Sans CJK Subset")
    assert not np.array_equal(draw_text("窓", STYLE), draw_text("\ufffd", STYLE))


@pytest.mark.usefixtures("few_bundled_fonts")
def test_a_broken_system_font_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    known = fonts._coverage

    def broken(path: str, index: int) -> frozenset[str]:
        return known(__file__ if "CJK" in path else path, index)

    monkeypatch.setattr(fonts, "_coverage", broken)
    assert missing_characters("窓 ש") == ("窓",)


SAMPLE = "\n".join(SCRIPTS.values())
DIGEST = """
import hashlib, sys
from svi_story.media.text import TextStyle, draw_text
draw_text("something else first", TextStyle(31, 90, 2, outline=1))
text = sys.stdin.buffer.read().decode()
print(hashlib.sha256(draw_text(text, TextStyle(20, 300, 40)).tobytes()).hexdigest())
"""


def test_another_process_with_a_bare_environment_draws_the_same_and_says_nothing() -> None:
    picture = draw_text(SAMPLE, TextStyle(20, 300, 40))
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", DIGEST],
        input=SAMPLE.encode(),
        capture_output=True,
        env=environment,
        check=True,
    )
    assert done.stderr == b""
    assert done.stdout.decode().strip() == hashlib.sha256(picture.tobytes()).hexdigest()


characters = st.characters(codec=None) | st.sampled_from(" \n\u200d\ufe0f…。अ्शกำسلا고窓👩🇩")


@given(
    text=st.text(characters, max_size=60),
    size=st.sampled_from([1, 9, 33]),
    width=st.sampled_from([1, 40, 500]),
    most=st.integers(1, 4),
    outline=st.sampled_from([0.0, 1.5]),
)
@settings(max_examples=200, deadline=None)
def test_any_text_fits_any_style(text: str, size: int, width: int, most: int, outline: float) -> None:
    style = TextStyle(size, width, most, outline=outline)
    picture = draw_text(text, style)
    assert picture.shape[1] == width + 2 * style.margin
    assert (picture.shape[0] - 2 * style.margin) % style.line_height == 0
    assert lines(picture, style) <= most
