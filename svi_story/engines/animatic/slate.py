"""What is burnt into an animatic: clip id, timecode and prompt, in a band over the top of the picture.

At the top because burnt-in captions belong at the bottom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from svi_story.enginespec.animatic import SlateSize
    from svi_story.media.text import TextStyle
    from svi_story.plan.model import Segment, Size

ID_COLOUR = (255, 204, 92)
PROMPT_COLOUR = (240, 240, 240)
BAND_OPACITY = 0.62
"""White under the band comes out at 38 %: white text on it keeps a contrast of 5.9 to 1."""
MAX_BAND = 0.42
"""Share of the picture's height that the band may take; a clip id alone may push it to MAX_ID_BAND."""
MAX_ID_BAND = 0.6
MIN_SIZE = 9
"""Letters of fewer pixels cannot be read."""
PROMPT_SCALES = (0.86, 0.77, 0.68)
"""The prompt's type, as shares of the clip id's: a prompt too long for one is set in the next, then cut."""
FEW_LINES = 3
"""With room for fewer, a picture is too small for anybody to expect the whole prompt in it."""


def timecode(frame: int, fps: Fraction) -> str:
    """HH:MM:SS:FF of a frame counted from 0; frames before 0 show 00:00:00:00.

    Seconds are real seconds, except that rates over 1001 count as the whole rate beside them, non-drop: at
    24000/1001 every 24 frames make a second of the code.
    """
    rate = Fraction(round(fps)) if fps.denominator == 1001 else fps
    frame = max(frame, 0)
    seconds = math.floor(frame / rate)
    rest = frame - math.ceil(seconds * rate)
    digits = max(2, len(str(math.ceil(rate) - 1)))
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}:{rest:0{digits}}"


@dataclass(frozen=True)
class SlateLayout:
    """Positions and sizes in pixels."""

    size: int
    """Height of the em of clip id and timecode."""
    pad: int
    code: slice
    """The part of the timecode that there is room for."""
    code_left: int
    code_top: int
    id_width: int
    """0 when there is no room for the clip id."""
    prompt_top: int
    prompt_room: int
    """Height for the prompt; 0 when not even a line has room."""


class Slate:
    """One segment's slate: drawn once, burnt into every frame."""

    def __init__(self, segment: Segment, size: SlateSize = "on") -> None:
        self._segment = segment
        self._layout = lay_out(segment.size, len(timecode(0, segment.fps)))
        if size == "small":
            self._layout = replace(self._layout, prompt_room=0)
        self._glyphs = _code_glyphs(self._layout.size)
        self._band = _draw_band(segment, self._layout)

    def burn(self, picture: Image.Image, frame: int) -> None:
        """Draw over a picture; `frame` counts within the segment."""
        picture.paste(self._band, (0, 0), self._band)
        layout = self._layout
        code = timecode(self._segment.first_frame + frame, self._segment.fps)[layout.code]
        margin = _code_style("0", layout.size).margin
        left = layout.code_left
        for char in code:
            glyph = self._glyphs[char]
            picture.paste(glyph, (left - margin, layout.code_top - margin), glyph)
            left += _cell(char, layout.size)


def lay_out(picture: Size, code_length: int) -> SlateLayout:
    """Fit the slate to a picture. For want of room first the prompt goes, then the id, then the hours."""
    size = max(MIN_SIZE, round(math.sqrt(picture.width * picture.height) / 34))
    pad, line = math.ceil(size * 0.6), _code_style("0", size).line_height
    width = max(picture.width - 2 * pad, 0)
    parts = [slice(start, code_length) for start in (0, 3, 6, code_length)]
    code = next(part for part in parts if _code_width(code_length, size, part) <= width)
    code_width = _code_width(code_length, size, code)
    id_width = picture.width - 2 * pad - code_width - size
    code_top = pad
    if id_width < 6 * size:  # the clip id needs a line of its own
        fits = 2 * pad + 2 * line <= picture.height * MAX_ID_BAND
        id_width = picture.width - 2 * pad if fits else 0
        code_top = pad + line if fits else pad
    prompt_top = code_top + line
    room = int(picture.height * MAX_BAND) - prompt_top - pad
    enough = room >= _prompt_style(size, PROMPT_SCALES[0], 1, 0).line_height
    left = picture.width - pad - code_width
    return SlateLayout(size, pad, code, left, code_top, id_width, prompt_top, room if enough else 0)


def prompt_is_cut(segment: Segment) -> bool:
    """Whether a picture that is large enough for a prompt shows only the beginning of this one."""
    layout = lay_out(segment.size, len(timecode(0, segment.fps)))
    if not layout.prompt_room:
        return False
    style, whole = _fit_prompt(segment, layout)
    return style.max_lines >= FEW_LINES and not whole


def _code_width(length: int, size: int, part: slice) -> int:
    return sum(_cell(char, size) for char in ("00:00:00:" + "0" * (length - 9))[part])


def _cell(char: str, size: int) -> int:
    return math.ceil(size * (0.34 if char == ":" else 0.6))


@lru_cache(maxsize=4)
def _code_glyphs(size: int) -> dict[str, Image.Image]:
    from PIL import Image

    from svi_story.media.text import draw_text

    return {char: Image.fromarray(draw_text(char, _code_style(char, size))) for char in "0123456789:"}


def _code_style(char: str, size: int) -> TextStyle:
    from svi_story.media.text import TextStyle

    return TextStyle(size, max_width=_cell(char, size), max_lines=1, align="center")


def _fit_prompt(segment: Segment, layout: SlateLayout) -> tuple[TextStyle, bool]:
    """The largest type that shows the whole prompt, else the smallest; and whether it is shown whole."""
    from svi_story.media.text import is_whole

    width = segment.size.width - 2 * layout.pad
    for scale in PROMPT_SCALES:
        style = _prompt_style(layout.size, scale, width, layout.prompt_room)
        if is_whole(_one_line(segment.prompt), style):
            return style, True
    return style, False


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _prompt_style(size: int, scale: float, width: int, room: int) -> TextStyle:
    """Type of this scale, with as many lines as there is room for."""
    from svi_story.media.text import TextStyle

    style = TextStyle(max(MIN_SIZE, round(size * scale)), width, 1, colour=PROMPT_COLOUR)
    return replace(style, max_lines=room // style.line_height)


def _draw_band(segment: Segment, layout: SlateLayout) -> Image.Image:
    from PIL import Image

    from svi_story.media.text import TextStyle, draw_text

    texts: list[tuple[str, TextStyle, int]] = []
    if layout.id_width:
        texts.append((segment.clip, TextStyle(layout.size, layout.id_width, 1, colour=ID_COLOUR), layout.pad))
    if layout.prompt_room:
        style, _ = _fit_prompt(segment, layout)
        texts.append((_one_line(segment.prompt), style, layout.prompt_top))
    drawn = [(Image.fromarray(draw_text(text, style)), style.margin, top) for text, style, top in texts]
    bottom = max([layout.prompt_top, *(top + image.height - 2 * margin for image, margin, top in drawn)])
    band = _shade(segment.size.width, bottom + layout.pad, layout.size)
    for image, margin, top in drawn:
        band.alpha_composite(image, (layout.pad - margin, top - margin))
    return band


def _shade(width: int, height: int, fade: int) -> Image.Image:
    """Black at BAND_OPACITY, fading out below the text."""
    import numpy as np
    from PIL import Image

    alpha = np.concatenate([np.ones(height), np.linspace(1, 0, fade + 2)[1:-1] ** 1.5]) * BAND_OPACITY * 255
    shade = np.zeros((alpha.size, width, 4), np.uint8)
    shade[..., 3] = np.rint(alpha)[:, None]
    return Image.fromarray(shade)
