"""Which fonts show a text: the bundled ones first, then the system's. Read only when a text needs them."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import typst

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
    """The bundled fonts, and those of the system's that show what the bundled ones lack.

    The choice depends on this text and the installed fonts only, never on what was drawn before.
    """
    wanted = {char for char in text if _needs_glyph(char)}
    for name in BUNDLED.values():
        if not wanted:
            break
        wanted -= _coverage(str(FOLDER / name), 0)
    if not wanted:
        return FontChoice(_bundled_fonts(), tuple(BUNDLED), frozenset())
    return _with_system_fonts(frozenset(wanted))


@lru_cache(maxsize=64)
def _with_system_fonts(wanted: frozenset[str]) -> FontChoice:
    families = list(BUNDLED)
    missing = wanted
    for font in _system_fonts():
        if not missing:
            break
        shown = missing & _coverage(font.path or "", font.index)
        if shown:
            families.append(font.family)
            missing -= shown
    return FontChoice(_all_fonts(), tuple(families), missing)


def _needs_glyph(char: str) -> bool:
    """Whether a character shows anything by itself: no space, control, joiner or variation selector."""
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
    except Exception:  # noqa: BLE001 - a broken font of the system is as good as none
        return frozenset()


@lru_cache(maxsize=1)
def _bundled_fonts() -> typst.Fonts:
    return typst.Fonts(include_system_fonts=False, include_embedded_fonts=False, font_paths=[str(FOLDER)])


@lru_cache(maxsize=1)
def _all_fonts() -> typst.Fonts:
    return typst.Fonts(include_system_fonts=True, include_embedded_fonts=False, font_paths=[str(FOLDER)])


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[typst.FontInfo, ...]:
    """One upright font of each family that is not bundled, the nearest in weight, by family name."""
    found: dict[str, typst.FontInfo] = {}
    for font in sorted(_all_fonts().fonts(), key=lambda font: (abs(font.weight - _WEIGHT), font.path or "")):
        if font.path and font.style == "normal" and font.family not in BUNDLED and not _is_placeholder(font):
            found.setdefault(font.family, font)
    return tuple(found[family] for family in sorted(found))


def _is_placeholder(font: typst.FontInfo) -> bool:
    return font.family.lower().replace(".", "").startswith(_PLACEHOLDERS)
