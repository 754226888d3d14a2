"""Captions as an .srt file, which nothing in their text can break."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from svi_story.cut.extras import in_turn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from svi_story.cut.extras import Cue

_MARKUP = re.compile(r"<[^<>]*>|\{[^{}]*\}|-->|<(?=[A-Za-z/!?])|[{}]")
"""What players take for a tag, for an override of the style, or for the line that times a cue."""

_WIDE = {ord(mark): chr(ord(mark) + 0xFEE0) for mark in "<>{}"}
"""The same characters in full width."""


def srt(cues: Iterable[Cue], fps: Fraction) -> str:
    """The text of an .srt file: UTF-8, `\\n` line breaks, times rounded half up to milliseconds.

    Players find tags, style overrides and timing lines in the text, and the format has no way to quote them:
    what they would take for one is written with the full-width twins of `<`, `>`, `{` and `}`. Cues that
    would overlap end where the next begins.
    """
    shown = in_turn(replace(cue, text=harmless(cue.text)) for cue in cues)
    blocks = (
        f"{number}\n{_clock(cue.start, fps)} --> {_clock(cue.stop, fps)}\n{cue.text}\n"
        for number, cue in enumerate(shown, 1)
    )
    return "\n".join(blocks)


def harmless(text: str) -> str:
    """Text that every player shows as it is: no blank lines, no control characters, no markup."""
    lines = filter(None, map(_visible, text.splitlines()))
    return _MARKUP.sub(lambda found: found.group().translate(_WIDE), "\n".join(lines))


def _visible(line: str) -> str:
    """A line without control characters and halves of characters, which no file can hold."""
    return "".join(mark for mark in line if unicodedata.category(mark) not in ("Cc", "Cs")).strip()


def _clock(frame: int, fps: Fraction) -> str:
    seconds, milliseconds = divmod(int(frame * 1000 / fps + Fraction(1, 2)), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02},{milliseconds:03}"
