"""The engine for people without a GPU: a moving camera over the anchor, with a burnt-in slate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.engines.animatic.engine import Animatic, AnimaticIdentity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from fractions import Fraction

    from svi_story.engines import Digest, Keep, MemoryNeed
    from svi_story.engines.base import Phase
    from svi_story.enginespec import EngineOptions
    from svi_story.events import Reporter
    from svi_story.plan.model import Segment, Size

__all__ = ["Animatic", "AnimaticIdentity"]


def identity_of(_options: EngineOptions, _digest: Digest) -> AnimaticIdentity:
    """What the frames depend on."""
    return AnimaticIdentity()


def create_engine(_options: EngineOptions, _digest: Digest, _keep: Keep, _report: Reporter) -> Animatic:
    """The engine."""
    return Animatic()


def phases_of(_options: EngineOptions, segment: Segment) -> Sequence[Phase]:
    """The camera's move, in one."""
    return Animatic().phases(segment)


def memory_needs(_options: EngineOptions, _segments: Sequence[Segment]) -> Mapping[str, MemoryNeed]:
    """There is no model."""
    return {}


def model_sizes(_options: EngineOptions) -> None:
    """There is no model."""


def overlay_rows(size: Size, fps: Fraction) -> int:
    """The rows that the slate may cover."""
    from svi_story.engines.animatic.slate import lay_out, timecode

    layout = lay_out(size, len(timecode(0, fps)))
    rows = layout.prompt_top + layout.prompt_room + layout.pad + layout.size
    return min(rows, size.height - 16)
