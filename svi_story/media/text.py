"""Text in any script as a picture. Same text, same style, same fonts: same pixels.

Typst lays the text out: shaping, Unicode's bidirectional order and line breaks (with dictionaries), all in
one library that needs nothing from the system. text.typ says how.
"""

from __future__ import annotations

import io
import json
import math
import re
import unicodedata
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import typst
from PIL import Image

from svi_story.media.fonts import FontChoice, choose_fonts, missing_characters

if TYPE_CHECKING:
    from numpy.typing import NDArray

Colour = tuple[int, int, int]

_LAYOUT = Path(__file__).with_name("text.typ")
_LINE_HEIGHT = 1.4
_KEPT_FORMATS = "\u00ad\u200c\u200d\u200e\u200f"
"""Invisible characters that steer how neighbours are drawn: soft hyphen, joiners, direction marks."""
_MOST_NAMED = 10
"""Missing characters that are named; the rest is counted."""
_MOST_PER_EM = 16
"""No em of a line ever shows more characters; what is longer than that is not even laid out."""


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
        """Room on all four sides for outlines and for letters that reach out of their line."""
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
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    named = ", ".join(map(_named, missing[:_MOST_NAMED]))
    return (
        f"no font on this machine can show {named}{more}: \ufffd is shown instead; "
        "install a font that has them (Noto fonts cover every script)"
    )


def _named(char: str) -> str:
    name = unicodedata.name(char, "")
    shown = f"{char} " if char.isprintable() else ""
    return f"{shown}(U+{ord(char):04X}{' ' + name if name else ''})"


def clean_text(text: str) -> str:
    """A text without what would steer the layout: controls go, white space becomes single spaces."""
    text = re.sub(r"\r\n?|[\u0085\u2028\u2029]", "\n", text)
    text = "".join(map(_harmless, text))
    lines = (" ".join(line.split(" ")).strip() for line in re.sub(r" +", " ", text).split("\n"))
    return "\n".join(lines).strip("\n")


def _harmless(char: str) -> str:
    category = unicodedata.category(char)
    if char == "\n" or char in _KEPT_FORMATS or 0xE0020 <= ord(char) <= 0xE007F:  # tags spell some flags
        return char
    if char == "\t" or (category == "Zs" and char not in "\u00a0\u202f\u3000"):
        return " "
    if category == "Cs":
        return "\ufffd"
    return "" if category in {"Cc", "Cf"} else char


def _compile(text: str, style: TextStyle, choice: FontChoice) -> bytes:
    block = {
        "text": _keep_korean_words(text[: _most_characters(style)]),
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


def _most_characters(style: TextStyle) -> int:
    return (style.max_width // style.size + 2) * style.max_lines * _MOST_PER_EM


def _keep_korean_words(text: str) -> str:
    """Korean breaks its lines between words, where Unicode's rules would break between any two syllables."""
    return re.sub(r"(?<=[\uac00-\ud7a3])(?=[\uac00-\ud7a3])", "\u2060", text)


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
