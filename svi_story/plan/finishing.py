"""How the film is put together: the board's `cut` and every clip's sounds, with all defaults filled in."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from svi_story.errors import InputError
from svi_story.plan.model import Card, Cut, Music, Recording, Sound
from svi_story.plan.timing import frames_of
from svi_story.storyboard.cutting import Music as WrittenMusic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.errors import Problem
    from svi_story.fields import Loc
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.plan.model import Shot
    from svi_story.storyboard.cutting import Card as WrittenCard
    from svi_story.storyboard.cutting import Sound as WrittenSound
    from svi_story.storyboard.source import BoardFile

CRF = {"h264": 18, "av1": 30}
PRESET = {"h264": "medium", "av1": "8"}


class Recordings:
    """The audio files of a board, each read once; what is wrong with any is collected."""

    def __init__(self, board: BoardFile, fingerprints: Fingerprints) -> None:
        self._board = board
        self._fingerprints = fingerprints
        self.problems: list[Problem] = []

    def sound(self, written: WrittenSound | WrittenMusic, loc: Loc) -> Sound:
        """A recording as it is heard."""
        start = Fraction(0) if isinstance(written, WrittenMusic) else written.start
        recording = self._read(written.path, loc)
        return Sound(recording, written.volume, written.fade_in, written.fade_out, start)

    def _read(self, name: str, loc: Loc) -> Recording:
        path = self._board.file(name)
        try:
            return self._fingerprints.recording(path)
        except InputError as error:
            self.problems.append(self._board.problem(loc, error.problems[0].what))
            return Recording(path, "", 0)


def cut_of(board: BoardFile, recordings: Recordings) -> Cut:
    """The board's cut, resolved."""
    story, cut = board.story, board.story.cut
    music = None
    if cut.audio is not None:
        music = Music(recordings.sound(cut.audio, ("cut", "audio")), cut.audio.loop, cut.audio.duck)
    return Cut(
        codec=cut.codec,
        crf=CRF[cut.codec] if cut.crf is None else cut.crf,
        preset=PRESET[cut.codec] if cut.preset is None else str(cut.preset),
        fps=cut.fps or story.rate,
        burnt=cut.captions in ("burn", "both"),
        soft=cut.captions in ("srt", "both"),
        fade_in=frames_of(cut.fade_in or Fraction(0), story.rate),
        fade_out=frames_of(cut.fade_out or Fraction(0), story.rate),
        title_card=_card(cut.title_card, story.rate),
        end_card=_card(cut.end_card, story.rate),
        music=music,
    )


def _card(written: WrittenCard | None, fps: Fraction) -> Card | None:
    return Card(written.text, max(frames_of(written.duration, fps), 1)) if written else None


def sounds_of(index: int, board: BoardFile, recordings: Recordings) -> tuple[tuple[Sound, ...], ...]:
    """A clip's voices, and its other sounds."""
    clip = board.story.clips[index]
    voice = () if clip.voice is None else (recordings.sound(clip.voice, ("clips", index, "voice")),)
    sounds = (
        recordings.sound(each, ("clips", index, "sounds", number)) for number, each in enumerate(clip.sounds)
    )
    return voice, tuple(sounds)


def black_problems(board: BoardFile, shots: list[Shot], cut: Cut) -> Iterator[Problem]:
    """Fades from, through and to black that are longer than what they darken."""
    film = sum(shot.frames - shot.fade for shot in shots)
    for name, frames in (("fade_in", cut.fade_in), ("fade_out", cut.fade_out)):
        if frames > film:
            what = f"{frames} frames are more than the film has ({film}); use a shorter fade"
            yield board.problem(("cut", name), what)
    for index, shot in enumerate(shots[1:], 1):
        for neighbour in (shots[index - 1], shot):
            if (shot.dip + 1) // 2 > neighbour.frames:
                what = (
                    f"half of a dip of {shot.dip} frames is longer than clip {neighbour.id} "
                    f"({neighbour.frames}); use a shorter dip or a longer clip"
                )
                yield board.problem(("clips", index, "transition"), what)
