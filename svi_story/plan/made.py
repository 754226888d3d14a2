"""A film as it was made, or is about to be: what two of them are compared by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svi_story.plan.keys import Json


@dataclass(frozen=True)
class MadeSegment:
    """A segment's key and all that went into it."""

    key: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class MadeClip:
    """A clip."""

    id: str
    prompt: str
    segments: tuple[MadeSegment, ...]
    fade: int = 0
    """Frames it shares with the clip before."""
    dip: int = 0
    """Frames that go through black between the clip before and it."""
    finish: Mapping[str, Json] = field(default_factory=dict)
    """What is seen and heard with it: `caption`, `voices`, `sounds`; what is not known is left out."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its segments, in order."""
        return tuple(segment.key for segment in self.segments)

    @property
    def starts_chain(self) -> bool:
        """Whether nothing is carried over from the clip before."""
        return not self.segments or self.segments[0].inputs.get("parent") is None


@dataclass(frozen=True)
class MadeFilm:
    """A film."""

    title: str
    digest: str
    """sha256 of its board's bytes."""
    cut: Mapping[str, Json]
    """How it was put together, as `described_cut` tells it; what is not known is left out."""
    clips: tuple[MadeClip, ...]
