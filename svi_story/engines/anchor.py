"""The anchor's picture, as it was when the plan was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.errors import InputError, RenderError

if TYPE_CHECKING:
    from svi_story.engines.base import Frame
    from svi_story.plan.model import Anchor


def open_anchor(anchor: Anchor) -> Frame:
    """The picture after fit, [height, width, 3].

    Raises RenderError when the file is gone, or no longer holds the planned pixels.
    """
    from svi_story.media.guard import fitted_picture
    from svi_story.media.images import pixels_digest

    try:
        pixels = fitted_picture(anchor.path, anchor.size.width, anchor.size.height, anchor.fit)
    except InputError as error:
        raise RenderError(*error.problems) from error
    if pixels_digest(pixels) != anchor.pixels:
        raise RenderError(
            f"the image {anchor.path} changed while the film was being made; "
            "run the same command again, it goes on with the image as it is now"
        )
    return pixels
