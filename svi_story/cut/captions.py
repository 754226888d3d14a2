"""Captions and cards: drawn onto frames, and captions as an .srt file."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from svi_story.cut.extras import ordered_cues
from svi_story.media.text import TextStyle, draw_text, is_whole

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from svi_story.cut.extras import Cue

    Frame = NDArray[np.uint8]
    """One picture: height x width x 3, RGB."""


SMALLEST = 10
"""Letters of fewer pixels cannot be read."""
SHRINKING = 0.92
"""Ratio of one type size to the next larger one, for texts that are too long."""


@dataclass(frozen=True)
class Typography:
    """How text is sized. Fractions of the picture, which may be wide or tall."""

    height: float
    """The em, of the picture's height; a tall picture takes as much of its width."""
    width: float
    """The longest line, of the picture's width."""
    max_height: float
    """All lines together, of the picture's height."""
    lines: int
    """Preferred number of lines; the type gets smaller before there are more."""
    outline: float
    """Of the em."""


CAPTION = Typography(height=1 / 17, width=0.88, max_height=0.4, lines=3, outline=0.11)
CARD = Typography(height=1 / 11, width=0.84, max_height=0.84, lines=7, outline=0.0)
LAST_MAX_HEIGHT = 0.86
"""The largest fraction of the picture's height, for text that does not fit otherwise."""
MARGIN = 0.055
"""From the lowest line of a caption to the picture's edge, of its height."""


@lru_cache(maxsize=8)
def caption_over(text: str, width: int, height: int) -> Overlay:
    """A caption at the bottom of a picture: white with a black outline, readable on any background."""
    drawn, margin = _draw(text, CAPTION, width, height)
    top = height - round(MARGIN * height) - (drawn.shape[0] - margin)
    return Overlay(drawn, top, (width - drawn.shape[1]) // 2)


@lru_cache(maxsize=8)
def card(text: str, width: int, height: int) -> Frame:
    """White text in the middle of a black picture."""
    drawn, _ = _draw(text, CARD, width, height)
    black = np.zeros((height, width, 3), np.uint8)
    return Overlay(drawn, (height - drawn.shape[0]) // 2, (width - drawn.shape[1]) // 2).over(black)


def _draw(text: str, kind: Typography, width: int, height: int) -> tuple[NDArray[np.uint8], int]:
    """The text in the largest type in which it fits, and the margin around it."""
    style = _style_for(text, kind, width, height)
    return draw_text(text, style), style.margin


def fits(text: str, kind: Typography, width: int, height: int) -> bool:
    """Whether a text fits completely; otherwise it ends in an ellipsis."""
    return is_whole(text, _style_for(text, kind, width, height))


def _style_for(text: str, kind: Typography, width: int, height: int) -> TextStyle:
    """The first style in which a text fits; the last one fills the picture with lines."""
    size = max(SMALLEST, round(min(height, width * 9 / 16) * kind.height))
    sizes = [size]
    while sizes[-1] > max(SMALLEST, size // 2):
        sizes.append(max(SMALLEST, min(sizes[-1] - 1, int(sizes[-1] * SHRINKING))))
    styles = [
        TextStyle(em, int(width * kind.width), kind.lines, align="center", outline=em * kind.outline)
        for em in sizes
    ]
    styles += [
        replace(style, max_lines=max(1, int(max_height * height) // style.line_height))
        for max_height in (kind.max_height, LAST_MAX_HEIGHT)
        for style in styles
    ]
    return next((style for style in styles if is_whole(text, style)), styles[-1])


def darken(frame: Frame, level: Fraction) -> Frame:
    """A frame scaled to `level` of its brightness, in integers, halves rounded up."""
    part, total = level.numerator, level.denominator
    levels = (np.arange(256, dtype=np.uint32) * np.uint32(part) + np.uint32(total // 2)) // np.uint32(total)
    return levels.astype(np.uint8)[frame]


class Overlay:
    """A drawing that is laid over one region of every frame."""

    def __init__(self, drawn: NDArray[np.uint8], top: int, left: int) -> None:
        """`drawn` is height x width x 4, RGBA, not premultiplied; parts outside the frame are cut off."""
        self._top, self._left = top, left
        alpha = drawn[..., 3:].astype(np.uint16)
        self._colour = drawn[..., :3] * alpha + np.uint16(127)
        self._kept = np.uint16(255) - alpha

    def over(self, frame: Frame) -> Frame:
        """A copy of the frame with the drawing on it."""
        rows, cut_rows = _overlap(self._top, self._kept.shape[0], frame.shape[0])
        columns, cut_columns = _overlap(self._left, self._kept.shape[1], frame.shape[1])
        region = frame[rows, columns]
        under = self._kept[cut_rows, cut_columns] * region
        written = frame.copy()
        written[rows, columns] = (under + self._colour[cut_rows, cut_columns]) // np.uint16(255)
        return written


def _overlap(start: int, length: int, limit: int) -> tuple[slice, slice]:
    """Where a run lies within [0, limit), and which part of the run that is."""
    first, last = (min(max(end, 0), limit) for end in (start, start + length))
    return slice(first, last), slice(first - start, last - start)


_MARKUP = re.compile(r"<[^<>]*>|\{[^{}]*\}|-->|<(?=[A-Za-z/!?])|[{}]")
"""Text that players take for a tag, a style override, or the line with a cue's times."""

_WIDE = {ord(mark): chr(ord(mark) + 0xFEE0) for mark in "<>{}"}
"""The same characters in full width."""


def srt(cues: Iterable[Cue], fps: Fraction) -> str:
    """The text of an .srt file: UTF-8, `\\n` line breaks, times rounded half up to milliseconds.

    Players interpret tags, style overrides and timing lines in the text, and the format has no way to escape
    them: their `<`, `>`, `{` and `}` are written as full-width characters. Cues that would overlap end where
    the next begins.
    """
    ordered = ordered_cues(replace(cue, text=escape_markup(cue.text)) for cue in cues)
    blocks = (
        f"{number}\n{_clock(cue.start, fps)} --> {_clock(cue.stop, fps)}\n{cue.text}\n"
        for number, cue in enumerate(ordered, 1)
    )
    return "\n".join(blocks)


def escape_markup(text: str) -> str:
    """Text that every player shows literally: no blank lines, no control characters, no markup."""
    lines = (
        # without control characters and halves of characters, which no file can hold
        "".join(mark for mark in line if unicodedata.category(mark) not in ("Cc", "Cs")).strip()
        for line in text.splitlines()
    )
    return _MARKUP.sub(lambda found: found.group().translate(_WIDE), "\n".join(filter(None, lines)))


def _clock(frame: int, fps: Fraction) -> str:
    seconds, milliseconds = divmod(int(frame * 1000 / fps + Fraction(1, 2)), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02},{milliseconds:03}"
