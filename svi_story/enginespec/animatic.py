"""The preview for machines without a GPU: a moving camera over the anchor, in the timing of the real film."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from svi_story.enginespec import svi
from svi_story.enginespec.base import EngineSpec
from svi_story.enginespec.sampling import Sampler, SamplingSettings

if TYPE_CHECKING:
    from svi_story.enginespec.base import OpenFile
    from svi_story.enginespec.sampling import ClipSampling

SlateSize = Literal["on", "small", "off"]


class AnimaticSettings(SamplingSettings):
    """Under `engine:` for the animatic: the timing of the film, and what is drawn over it."""

    slate: SlateSize = Field(
        "on",
        examples=["small"],
        description="What the animatic draws over the picture: clip id, time code and prompt (on); the first "
        "two (small); nothing (off).",
    )


@dataclass(frozen=True)
class AnimaticOptions(Sampler):
    """The sampler that the real film would have, and the slate."""

    slate: SlateSize = "on"


def options(settings: AnimaticSettings, clip: ClipSampling, open_file: OpenFile) -> AnimaticOptions:
    """What the real film's engine would get, and the slate."""
    sampler = svi.options(settings, clip, open_file)
    return AnimaticOptions(
        **{field.name: getattr(sampler, field.name) for field in fields(sampler)}, slate=settings.slate
    )


SPEC = EngineSpec(
    name="animatic",
    summary="is a quick preview on any machine",
    implementation="svi_story.engines.animatic",
    grid=svi.GRID,
    settings=AnimaticSettings,
    size=svi.STANDARD,
    fps=svi.SPEC.fps,
    overlap=svi.overlap,
    continued=svi.continued,
    options=options,
    preset_size=svi.preset_size,
    follows_board=True,
    still_subject=True,
)
