"""Describes how a film is assembled, as JSON for its record, and to compare it with the previous film."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svi_story.plan.keys import Json
    from svi_story.plan.model import Card, FilmPlan, Shot, Sound
    from svi_story.storyboard.source import Resolver


@dataclass(frozen=True)
class SegmentDescription:
    """A segment's key and everything that went into it."""

    key: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class ClipDescription:
    """A clip."""

    id: str
    prompt: str
    segments: tuple[SegmentDescription, ...]
    fade: int = 0
    """Frames it shares with the previous clip."""
    dip: int = 0
    """Frames that go through black between the previous clip and it."""
    finish: Mapping[str, Json] = field(default_factory=dict)
    """Its `caption`, `voices` and `sounds`; unknown ones are left out."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its segments, in order."""
        return tuple(segment.key for segment in self.segments)

    @property
    def starts_chain(self) -> bool:
        """Whether nothing is carried over from the previous clip."""
        return not self.segments or self.segments[0].inputs.get("parent") is None


@dataclass(frozen=True)
class FilmDescription:
    """A film."""

    title: str
    digest: str
    """sha256 of its board's bytes."""
    cut: Mapping[str, Json]
    """Its settings from `describe_cut`; unknown ones are left out."""
    clips: tuple[ClipDescription, ...]


def describe_film(plan: FilmPlan) -> FilmDescription:
    """A plan with keys as it would be rendered."""
    clips = tuple(
        ClipDescription(
            shot.id,
            shot.prompt,
            tuple(SegmentDescription(segment.key, segment.inputs) for segment in shot.segments),
            shot.fade,
            shot.dip,
            describe_finish(shot, plan.resolver),
        )
        for shot in plan.shots
    )
    return FilmDescription(plan.title, plan.digest, describe_cut(plan), clips)


def describe_cut(plan: FilmPlan) -> dict[str, Json]:
    """All settings of the cut; frames are counted at the board's rate."""
    cut = plan.cut

    def card(card: Card | None) -> Json:
        return None if card is None else {"text": card.text, "frames": card.frames}

    music: dict[str, Json] | None = None
    if cut.music:
        music = _sound(cut.music.sound, plan.resolver)
        music |= {"loop": cut.music.loop, "duck": cut.music.duck}
    captions = {(True, True): "both", (True, False): "burn", (False, True): "srt", (False, False): "off"}
    return {
        "fps": str(cut.fps),
        "codec": cut.codec,
        "crf": cut.crf,
        "preset": cut.preset,
        "captions": captions[cut.burnt, cut.soft],
        "fade_in": cut.fade_in,
        "fade_out": cut.fade_out,
        "title_card": card(cut.title_card),
        "end_card": card(cut.end_card),
        "music": music,
    }


def describe_finish(shot: Shot, resolver: Resolver) -> dict[str, Json]:
    """A clip's caption and sound."""
    return {
        "caption": shot.caption,
        "voices": [_sound(each, resolver) for each in shot.voices],
        "sounds": [_sound(each, resolver) for each in shot.sounds],
    }


def _sound(sound: Sound, resolver: Resolver) -> dict[str, Json]:
    return {
        "path": resolver.name(sound.recording.path),
        "sha256": sound.recording.sha256,
        "volume": sound.volume,
        "start": str(sound.start),
        "fade_in": str(sound.fade_in),
        "fade_out": str(sound.fade_out),
    }
