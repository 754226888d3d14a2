"""How a film is put together, as JSON: for its record, and to compare it with the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.plan.made import MadeClip, MadeFilm, MadeSegment

if TYPE_CHECKING:
    from svi_story.plan.keys import Json
    from svi_story.plan.model import Card, Cut, FilmPlan, Shot, Sound
    from svi_story.storyboard.source import Resolver


def described_film(plan: FilmPlan) -> MadeFilm:
    """A plan with keys as it would be rendered."""
    clips = tuple(
        MadeClip(
            shot.id,
            shot.prompt,
            tuple(MadeSegment(segment.key, segment.inputs) for segment in shot.segments),
            shot.fade,
            shot.dip,
            described_finish(shot, plan.resolver),
        )
        for shot in plan.shots
    )
    return MadeFilm(plan.title, plan.digest, described_cut(plan), clips)


def described_cut(plan: FilmPlan) -> dict[str, Json]:
    """All settings of the cut; frames are counted at the board's rate."""
    cut = plan.cut
    music: dict[str, Json] | None = None
    if cut.music:
        music = _sound(cut.music.sound, plan.resolver)
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


def described_finish(shot: Shot, resolver: Resolver) -> dict[str, Json]:
    """What is seen and heard with a clip."""
    return {
        "caption": shot.caption,
        "voices": [_sound(each, resolver) for each in shot.voices],
        "sounds": [_sound(each, resolver) for each in shot.sounds],
    }


def _captions(cut: Cut) -> str:
    if cut.burnt:
        return "both" if cut.soft else "burn"
    return "srt" if cut.soft else "off"


def _card(card: Card | None) -> Json:
    return None if card is None else {"text": card.text, "frames": card.frames}


def _sound(sound: Sound, resolver: Resolver) -> dict[str, Json]:
    return {
        "path": resolver.name(sound.recording.path),
        "sha256": sound.recording.sha256,
        "volume": sound.volume,
        "start": str(sound.start),
        "fade_in": str(sound.fade_in),
        "fade_out": str(sound.fade_out),
    }
