"""Every file that a board names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.fields import Loc
    from svi_story.storyboard.cutting import Sound
    from svi_story.storyboard.schema import Clip, Storyboard


@dataclass(frozen=True)
class Named:
    """A file's name as the author wrote it, and where."""

    loc: Loc
    name: str
    kind: Literal["image", "recording", "weights"]


def named_files(story: Storyboard) -> Iterator[Named]:
    """Every file a board names, as often as it does."""
    yield Named(("reference",), story.reference, "image")
    engine = story.engine
    for number, lora in enumerate(engine.loras):
        yield Named(("engine", "loras", number, "path"), lora.path, "weights")
    if engine.distill is not None:
        yield Named(("engine", "distill", "high"), engine.distill.high, "weights")
        yield Named(("engine", "distill", "low"), engine.distill.low, "weights")
    for index, clip in enumerate(story.clips):
        yield from _in_clip(("clips", index), clip)
    if story.cut.audio is not None:
        yield Named(("cut", "audio"), story.cut.audio.path, "recording")


def _in_clip(at: Loc, clip: Clip) -> Iterator[Named]:
    if clip.reference is not None:
        yield Named((*at, "reference"), clip.reference, "image")
    for number, lora in enumerate(clip.loras):
        yield Named((*at, "loras", number, "path"), lora.path, "weights")
    voices: list[tuple[Loc, Sound]] = [(("voice",), clip.voice)] if clip.voice else []
    sounds: list[tuple[Loc, Sound]] = [(("sounds", number), each) for number, each in enumerate(clip.sounds)]
    for loc, sound in (*voices, *sounds):
        yield Named((*at, *loc), sound.path, "recording")
