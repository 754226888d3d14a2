"""How a film is put together, as JSON: for its record, and to compare it with the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.plan.made import MadeClip, MadeFilm, MadeSegment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from svi_story.plan.keys import Json
    from svi_story.plan.model import Card, Cut, FilmPlan, Shot, Sound

    Spelled = Callable[[Path], str]
    """A file's path as the board names it."""


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
