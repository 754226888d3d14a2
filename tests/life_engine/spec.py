"""What the program needs to know about the `life` engine: 8k+1 frames in a pass, 24 of them in a second."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import Field

from svi_story.enginespec import EngineSpec
from svi_story.fields import Part, PassFrames


class LifeSettings(Part):
    """Its part of `engine:`."""

    max_frames: PassFrames = Field(81, description="The most frames of one pass.")
    cell: int = Field(8, ge=1, le=16, description="Pixels of a cell's side.")


@dataclass(frozen=True)
class LifeOptions:
    """Of one segment."""

    cell: int


def options(settings: Any, _guidance: object, _open_file: object) -> LifeOptions:
    """The same for every segment."""
    return LifeOptions(settings.cell)


SPEC = EngineSpec(
    name="life",
    summary="plays Conway's game of life",
    implementation="life_engine",
    grid=8,
    settings=LifeSettings,
    size=(128, 64),
    fps=Fraction(24),
    overlap=lambda _settings: 9,
    continued=lambda _settings: 9,
    options=options,
    describe=lambda life: {"cell": str(life.cell)},
)
