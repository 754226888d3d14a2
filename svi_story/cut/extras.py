"""What a film carries besides its pictures. Positions are film frames; `stop` is the first one after."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from svi_story.plan.keys import Json


@dataclass(frozen=True)
class Chapter:
    """A part of the film that a player can jump to."""

    title: str
    start: int
    stop: int


@dataclass(frozen=True)
class Cue:
    """Words that are to be read while frames [start, stop) are shown."""

    text: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a cue needs 0 <= start < stop, got [{self.start}, {self.stop})")


@dataclass(frozen=True)
class Extras:
    """All that is put into a film's file beside its pictures; nothing by default."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    """What mp4 knows: title, artist, comment, date, ..."""
    chapters: tuple[Chapter, ...] = ()
    captions: tuple[Cue, ...] = ()
    """A track of text of its own."""
    captions_on: bool = True
    """Whether players show that track unasked: not where the same words are in the picture."""
    audio: Path | None = None
    """A file of AAC packets whose decoded sample 0 is heard with film frame 0."""
    xmp: bytes = b""
    """An XMP packet."""

    def identity(self) -> dict[str, Json]:
        """All that decides the film's bytes, besides its pieces and the content of `audio`."""
        return {
            "metadata": {**self.metadata},
            "chapters": [[each.title, each.start, each.stop] for each in self.chapters],
            "captions": [[each.text, each.start, each.stop] for each in self.captions],
            "captions_on": self.captions_on,
            "xmp": self.xmp.decode("utf-8"),
        }


def in_turn(cues: Iterable[Cue]) -> list[Cue]:
    """Cues as a reader meets them: by start, none blank, each over when the next begins."""
    ordered = sorted((cue for cue in cues if cue.text.strip()), key=lambda cue: (cue.start, cue.stop))
    return [
        Cue(cue.text, cue.start, min(cue.stop, after.start) if after else cue.stop)
        for cue, after in zip_longest(ordered, ordered[1:])
        if after is None or cue.start < after.start
    ]
