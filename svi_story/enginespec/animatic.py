"""The preview for machines without a GPU: a moving camera over the anchor, in the timing of the real film."""

from __future__ import annotations

from svi_story.enginespec import svi
from svi_story.enginespec.base import EngineSpec
from svi_story.enginespec.sampling import SamplingSettings

SPEC = EngineSpec(
    name="animatic",
    summary="is a quick preview on any machine",
    implementation="svi_story.engines.animatic",
    grid=svi.GRID,
    settings=SamplingSettings,
    size=svi.STANDARD,
    fps=svi.SPEC.fps,
    overlap=svi.overlap,
    continued=svi.continued,
    options=svi.options,
    preset_size=svi.preset_size,
    follows_board=True,
    still_subject=True,
)
