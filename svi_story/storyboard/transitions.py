"""How a clip follows the one before it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from svi_story.fields import Duration, Part, nearest


class Fade(Part):
    """A cross-fade from the clip before, into a new chain."""

    fade: Duration = Field(examples=["0.5s"], description="How long both clips are seen, as 0.5s.")


class Dip(Part):
    """Through black into a new chain: the clip before darkens, this one brightens; none overlaps."""

    dip: Duration = Field(
        examples=["1s"], description="Half of it at the end of the clip before, half at the start of this."
    )


def _kind_of_transition(value: object) -> str:
    names = value if isinstance(value, dict) else ()
    if isinstance(value, Dip) or any(nearest(str(name), ("fade", "dip")) == "dip" for name in names):
        return "<dip>"
    return "<fade>" if isinstance(value, dict | Fade) else "<word>"


Transition = Annotated[
    Annotated[Literal["continue", "cut"], Tag("<word>")]
    | Annotated[Fade, Tag("<fade>")]
    | Annotated[Dip, Tag("<dip>")],
    Discriminator(_kind_of_transition),
]
