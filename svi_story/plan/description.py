"""A film as it was made, or is about to be: what two of them are compared by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from svi_story.plan.keys import Json
    from svi_story.plan.model import Card, Cut, FilmPlan, Shot, Sound

    Spelled = Callable[[Path], str]
    """A file's path as the board names it."""


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


def described_film(plan: FilmPlan, spelled: Spelled) -> MadeFilm:
    """A plan with keys as it would be rendered."""
    clips = tuple(
        MadeClip(
            shot.id,
            shot.prompt,
            tuple(MadeSegment(segment.key, segment.inputs) for segment in shot.segments),
            shot.fade,
            shot.dip,
            described_finish(shot, spelled),
        )
        for shot in plan.shots
    )
    return MadeFilm(plan.title, plan.digest, described_cut(plan, spelled), clips)


def described_cut(plan: FilmPlan, spelled: Spelled) -> dict[str, Json]:
    """All settings of the cut; frames are counted at the board's rate."""
    cut = plan.cut
    music: dict[str, Json] | None = None
    if cut.music:
        music = _sound(cut.music.sound, spelled)
        music |= {"loop": cut.music.loop, "duck": cut.music.duck}
    return {
        "fps": str(cut.fps),
        "codec": cut.codec,
        "crf": cut.crf,
        "preset": cut.preset,
        "captions": _captions(cut),
        "fade_in": cut.fade_in,
        "fade_out": cut.fade_out,
        "title_card": _card(cut.title_card),
        "end_card": _card(cut.end_card),
        "music": music,
    }


def described_finish(shot: Shot, spelled: Spelled) -> dict[str, Json]:
    """What is seen and heard with a clip."""
    return {
        "caption": shot.caption,
        "voices": [_sound(each, spelled) for each in shot.voices],
        "sounds": [_sound(each, spelled) for each in shot.sounds],
    }


def spelled_from(folder: Path, path: Path) -> str:
    """A file's path as a board in that folder names it."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _captions(cut: Cut) -> str:
    if cut.burnt:
        return "both" if cut.soft else "burn"
    return "srt" if cut.soft else "off"


def _card(card: Card | None) -> Json:
    return None if card is None else {"text": card.text, "frames": card.frames}


def _sound(sound: Sound, spelled: Spelled) -> dict[str, Json]:
    return {
        "path": spelled(sound.recording.path),
        "sha256": sound.recording.sha256,
        "volume": sound.volume,
        "start": str(sound.start),
        "fade_in": str(sound.fade_in),
        "fade_out": str(sound.fade_out),
    }
