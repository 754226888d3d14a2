"""What a segment hands to the next, when a stranger wrote it: an entry out of a bundle may be forged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.errors import RenderError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from svi_story.engines.base import Carry
    from svi_story.plan.model import Segment


def carried(carry: Carry, name: str, segment: Segment) -> NDArray[np.generic]:
    """An array that the segment before left: finite floats. Raises RenderError when there is none."""
    import numpy as np

    array = carry.latents.get(name)
    if array is None or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise not_ours(segment)
    return array


def not_ours(segment: Segment) -> RenderError:
    """The error for a carry that no engine of ours leaves."""
    return RenderError(
        f"what {segment.clip} continues from was not made by this engine: it is damaged or forged; "
        "make everything again, with --force all"
    )
