"""Text in any script as a picture. Same text, same style, same fonts: same pixels.

Typst lays the text out: shaping, Unicode's bidirectional order and line breaks (with dictionaries), all in
one library that needs nothing from the system. text.typ says how. Fonts are the bundled ones first, then the
system's; they are read only when a text needs them.
"""

from __future__ import annotations

import io
import json
import math
import re
import unicodedata
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import typst
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


FOLDER = Path(__file__).with_name("fonts")
BUNDLED = {
    "Noto Sans": "NotoSans-Medium.ttf",
    "Noto Sans Arabic": "NotoSansArabic-Medium.ttf",
    "Noto Sans Hebrew": "NotoSansHebrew-Medium.ttf",
    "Noto Sans Devanagari": "NotoSansDevanagari-Medium.ttf",
    "Noto Sans Thai": "NotoSansThai-Medium.ttf",
    "Noto Sans Bengali": "NotoSansBengali-Medium.ttf",
    "Noto Sans Tamil": "NotoSansTamil-Medium.ttf",
    "Noto Sans Telugu": "NotoSansTelugu-Medium.ttf",
    "Noto Sans Gujarati": "NotoSansGujarati-Medium.ttf",
    "Noto Sans Gurmukhi": "NotoSansGurmukhi-Medium.ttf",
    "Noto Sans Kannada": "NotoSansKannada-Medium.ttf",
    "Noto Sans Malayalam": "NotoSansMalayalam-Medium.ttf",
    "Noto Sans Oriya": "NotoSansOriya-Medium.ttf",
    "Noto Sans Sinhala": "NotoSansSinhala-Medium.ttf",
    "Noto Sans Armenian": "NotoSansArmenian-Medium.ttf",
    "Noto Sans Georgian": "NotoSansGeorgian-Medium.ttf",
    "Noto Sans Ethiopic": "NotoSansEthiopic-Medium.ttf",
    "Noto Sans Khmer": "NotoSansKhmer-Medium.ttf",
    "Noto Sans Lao": "NotoSansLao-Medium.ttf",
    "Noto Sans Myanmar": "NotoSansMyanmar-Medium.ttf",
    "Noto Emoji": "NotoEmoji-Medium.ttf",
    "Noto Sans Symbols": "NotoSansSymbols-Medium.ttf",
    "Noto Sans CJK Subset": "NotoSansCJKSubset-Medium.otf",
    "Noto Sans Symbols 2": "NotoSansSymbols2-Regular.ttf",
}
"""Family name and file, in the order in which a character is looked for."""

_WEIGHT = 500
_PLACEHOLDERS = ("lastresort", "last resort", "adobe blank")
"""System fonts that claim every character and show a box for each."""


@dataclass(frozen=True)
class FontChoice:
    """The fonts for one text."""

    fonts: typst.Fonts
    families: tuple[str, ...]
    """In the order in which a character is looked for."""
    missing: frozenset[str]
    """Characters of the text that none of them shows."""


def missing_characters(text: str) -> tuple[str, ...]:
    """The characters of a text that no bundled or system font can show, in order of code point."""
    return tuple(sorted(choose_fonts(text).missing))


def choose_fonts(text: str) -> FontChoice:
    """The bundled fonts, and system fonts for characters that the bundled ones are missing.

    The choice depends on this text and the installed fonts only, not on what was drawn before.
    """
    wanted = {char for char in text if _needs_glyph(char)}
    for name in BUNDLED.values():
        if not wanted:
            break
        wanted -= _coverage(str(FOLDER / name), 0)
    if not wanted:
        return FontChoice(_fonts(system=False), tuple(BUNDLED), frozenset())
    return _with_system_fonts(frozenset(wanted))


@lru_cache(maxsize=64)
def _with_system_fonts(wanted: frozenset[str]) -> FontChoice:
    families = list(BUNDLED)
    missing = wanted
    for font in _system_fonts():
        if not missing:
            break
        covered = missing & _coverage(font.path or "", font.index)
        if covered:
            families.append(font.family)
            missing -= covered
    return FontChoice(_fonts(system=True), tuple(families), missing)


def _needs_glyph(char: str) -> bool:
    """Whether a character is visible by itself: no space, control, joiner or variation selector."""
    code = ord(char)
    if 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF or char in "\u034f\u115f\u1160\u3164\uffa0":
        return False
    return unicodedata.category(char) not in {"Zs", "Zl", "Zp", "Cc", "Cf", "Cs"}


@cache
def _coverage(path: str, index: int) -> frozenset[str]:
    """The characters that a font file has glyphs for; none if the file cannot be read."""
    from fontTools.ttLib import TTFont  # type: ignore[import-untyped]  # fontTools ships no types

    try:
        with Path(path).open("rb") as file, TTFont(file, fontNumber=index, lazy=True) as font:
            return frozenset(map(chr, font.getBestCmap() or ()))
    except Exception:  # noqa: BLE001 - a broken system font is ignored
        return frozenset()


@cache
def _fonts(*, system: bool) -> typst.Fonts:
    """The bundled fonts, and maybe the system's."""
    return typst.Fonts(include_system_fonts=system, include_embedded_fonts=False, font_paths=[str(FOLDER)])


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[typst.FontInfo, ...]:
    """One upright font of each family that is not bundled, the nearest in weight, by family name."""
    found: dict[str, typst.FontInfo] = {}
    fonts = _fonts(system=True).fonts()
    for font in sorted(fonts, key=lambda font: (abs(font.weight - _WEIGHT), font.path or "")):
        is_placeholder = font.family.lower().replace(".", "").startswith(_PLACEHOLDERS)
        if font.path and font.style == "normal" and font.family not in BUNDLED and not is_placeholder:
            found.setdefault(font.family, font)
    return tuple(found[family] for family in sorted(found))


Colour = tuple[int, int, int]

_LAYOUT = Path(__file__).with_name("text.typ")
_LINE_HEIGHT = 1.4
_KEPT_FORMATS = "\u00ad\u200c\u200d\u200e\u200f"
"""Invisible characters that change how neighbours are drawn: soft hyphen, joiners, direction marks."""
_MAX_NAMED = 10
"""Missing characters that a message names; the others are counted."""
_MAX_PER_EM = 16
"""Characters per em of a line, at most; the rest of a longer text is not laid out."""


@dataclass(frozen=True)
class TextStyle:
    """How a block of text looks; lengths in pixels."""

    size: int
    """Height of the em."""
    max_width: int
    """Lines are broken at this width."""
    max_lines: int
    """A longer text ends in an ellipsis."""
    align: Literal["start", "center", "end"] = "start"
    """start is left for Latin and right for Arabic."""
    colour: Colour = (255, 255, 255)
    outline: float = 0.0
    """Width of the line around every letter."""
    outline_colour: Colour = (0, 0, 0)

    @property
    def line_height(self) -> int:
        """From one base line to the next, the same in every script."""
        return math.ceil(self.size * _LINE_HEIGHT)

    @property
    def margin(self) -> int:
        """Space on all four sides for outlines and for glyphs that extend beyond their line."""
        return math.ceil(self.size / 4 + self.outline)


def draw_text(text: str, style: TextStyle) -> NDArray[np.uint8]:
    """Draw a text: height x width x 4, RGBA, not premultiplied.

    The width is max_width + 2 margin, the height line_height for each line + 2 margin. A line feed starts a
    new line; other control characters are dropped; a character that no font shows becomes U+FFFD.
    """
    text = clean_text(text)
    if not text:
        return np.zeros((2 * style.margin, style.max_width + 2 * style.margin, 4), np.uint8)
    choice = choose_fonts(text)
    for char in choice.missing:
        text = text.replace(char, "\ufffd")
    png = _compile(text, style, choice)
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.array(image.convert("RGBA"), dtype=np.uint8)


@lru_cache(maxsize=256)
def is_whole(text: str, style: TextStyle) -> bool:
    """Whether a text is drawn without an ellipsis."""
    # Two lines more: an ellipsis drops the word it falls into, which can be all of one line.
    height = len(draw_text(text, replace(style, max_lines=style.max_lines + 2)))
    return height - 2 * style.margin <= style.max_lines * style.line_height


def unseen(text: str) -> str:
    """A sentence about the characters of a text that no font can show; empty when all can be seen."""
    missing = missing_characters(clean_text(text))
    if not missing:
        return ""
    more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
    named = ", ".join(map(_named, missing[:_MAX_NAMED]))
    return (
        f"no font on this machine can show {named}{more}: \ufffd is shown instead; "
        "install a font that has them (Noto fonts cover every script)"
    )


def _named(char: str) -> str:
    name = unicodedata.name(char, "")
    printable = f"{char} " if char.isprintable() else ""
    return f"{printable}(U+{ord(char):04X}{' ' + name if name else ''})"


def clean_text(text: str) -> str:
    """A text without control characters; white space becomes single spaces."""
    text = re.sub(r"\r\n?|[\u0085\u2028\u2029]", "\n", text)
    text = "".join(map(_cleaned, text))
    lines = (" ".join(line.split(" ")).strip() for line in re.sub(r" +", " ", text).split("\n"))
    return "\n".join(lines).strip("\n")


def _cleaned(char: str) -> str:
    category = unicodedata.category(char)
    if char == "\n" or char in _KEPT_FORMATS or 0xE0020 <= ord(char) <= 0xE007F:  # tags make up some flags
        return char
    if char == "\t" or (category == "Zs" and char not in "\u00a0\u202f\u3000"):
        return " "
    if category == "Cs":
        return "\ufffd"
    return "" if category in {"Cc", "Cf"} else char


def _compile(text: str, style: TextStyle, choice: FontChoice) -> bytes:
    most = (style.max_width // style.size + 2) * style.max_lines * _MAX_PER_EM
    # Korean breaks its lines between words, where Unicode's rules would break between any two syllables
    laid_out = re.sub(r"(?<=[\uac00-\ud7a3])(?=[\uac00-\ud7a3])", "\u2060", text[:most])
    block = {
        "text": laid_out,
        "lang": _language(text),
        "families": choice.families,
        "size": style.size,
        "width": style.max_width,
        "line_height": style.line_height,
        "max_lines": style.max_lines,
        "margin": style.margin,
        "align": style.align,
        "colour": _hex(style.colour),
        "outline": style.outline,
        "outline_colour": _hex(style.outline_colour),
    }
    return typst.compile(
        _layout(),
        font_paths=choice.fonts,
        ignore_system_fonts=True,
        format="png",
        ppi=72,
        sys_inputs={"block": json.dumps(block)},
    )


@lru_cache(maxsize=1)
def _layout() -> bytes:
    return _LAYOUT.read_bytes()


def _language(text: str) -> str:
    """What a text with Han characters is most likely written in; it decides their shapes.

    Typst breaks Chinese and Japanese lines by rules that leave Thai, Lao, Khmer and Burmese unbroken: a text
    with both goes without.
    """
    if re.search(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]", text):
        return "en"
    if re.search(r"[\u3040-\u30ff]", text):
        return "ja"
    if re.search(r"[\u1100-\u11ff\uac00-\ud7a3]", text):
        return "ko"
    return "zh" if re.search(r"[\u3400-\u9fff]", text) else "en"


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
