"""Small pictures for the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from svi_story.review.measure import Frame

QUALITY = 68


@dataclass(frozen=True)
class Picture:
    """One frame, small."""

    within: int
    """The frame's place within its clip."""
    width: int
    height: int
    webp: bytes

    @property
    def uri(self) -> str:
        """As a data URI."""
        return f"data:image/webp;base64,{base64.b64encode(self.webp).decode()}"


def thumbnail(frame: Frame, within: int, width: int) -> Picture:
    """A frame at most `width` wide, as WebP."""
    image = Image.fromarray(frame)
    image.thumbnail((width, width), Image.Resampling.BILINEAR, reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY, method=2)
    return Picture(within, image.width, image.height, file.getvalue())
