"""Lints of any film: lengths, words that nobody can read in time, voices that do not fit."""

from __future__ import annotations

import unicodedata
from fractions import Fraction
from typing import TYPE_CHECKING

from svi_story.enginespec import spec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from svi_story.fields import Loc
    from svi_story.plan.model import Card, FilmPlan, Sound
    from svi_story.storyboard.lints import LintName
    from svi_story.storyboard.source import BoardFile

    Found = tuple[Loc, str]
    """Where, and what."""
    Check = Callable[[BoardFile, FilmPlan], Iterator[Found]]

LENGTH_TOLERANCE = Fraction(1, 10)
READABLE = 20
"""Characters a second that can be read along; a wide one (Chinese, Japanese, Korean) counts as two."""
SHORTEST_TEXT = 1
"""Seconds."""
SAMPLES = 48_000


def _other_length(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    fps, spec = plan.fps, spec_of(plan.engine)
    grid = spec_of(board.story.engine.name).grid if spec.follows_board else spec.grid
    for index, shot in enumerate(plan.shots):
        written = board.story.clips[index].duration is not None
        if written and abs(shot.frames - shot.asked_frames) > shot.asked_frames * LENGTH_TOLERANCE:
            what = (
                f"{_seconds(shot.asked_frames / fps)} are asked for, {_seconds(shot.frames / fps)} will be "
                f"made ({shot.frames} frames: lengths come in steps of {grid}); ask for a length that it has"
            )
            yield ("clips", index, "duration"), what


def _hurried_text(_board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    cut, fps = plan.cut, plan.fps
    cards: tuple[tuple[str, Card | None], ...] = (("title_card", cut.title_card), ("end_card", cut.end_card))
    texts: list[tuple[Loc, str, Fraction]] = [
        (("cut", name), card.text, card.frames / fps) for name, card in cards if card
    ]
    fades_out = [*(shot.fade for shot in plan.shots[1:]), 0]
    if cut.burnt or cut.soft:
        texts += [
            (("clips", index, "caption"), shot.caption, (shot.frames - after) / fps)
            for index, (shot, after) in enumerate(zip(plan.shots, fades_out, strict=True))
        ]
    for at, text, seconds in texts:
        needs = max(Fraction(_width(text), READABLE), Fraction(SHORTEST_TEXT))
        if text and seconds < needs:
            what = (
                f"{len(text)} characters are seen for {_seconds(seconds)}, and take about {_seconds(needs)} "
                "to read; shorten the text or show it longer"
            )
            yield at, what


def _width(text: str) -> int:
    """Characters to read; those as wide as two count as two."""
    drawn = (char for char in text if not char.isspace() and not unicodedata.combining(char))
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in drawn)


def _voice_cut_off(_board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    end = Fraction(plan.frames) / plan.cut.fps
    for at, _, stop in _voices(plan):
        if stop > end + Fraction(1, 10):
            what = (
                f"the voice goes on for {_seconds(stop - end)} after the film's end, where it is cut off; "
                "give the clips more time, start it earlier, or add an end card"
            )
            yield at, what


def _overlapping_voices(_board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    before: tuple[Loc, Fraction, Fraction] | None = None
    for at, start, stop in _voices(plan):
        if before and before[2] > start + Fraction(1, 10):
            who = plan.shots[int(before[0][1])].id
            what = (
                f"the voice of clip {who} is still speaking, for {_seconds(before[2] - start)}; give that "
                "clip more time, or let this one `start` later"
            )
            yield at, what
        before = (at, start, stop) if before is None or stop > before[2] else before


def _voices(plan: FilmPlan) -> Iterator[tuple[Loc, Fraction, Fraction]]:
    """Every voice: where it is written, and when it starts and ends in the film, in seconds."""
    fps, title = plan.fps, plan.cut.title_card
    frame = title.frames if title else 0
    for index, shot in enumerate(plan.shots):
        frame -= shot.fade
        for voice in (each for each in shot.voices if each.volume > 0):
            start = frame / fps + voice.start
            yield ("clips", index, "voice"), start, start + _lasts(voice)
        frame += shot.frames


def _lasts(sound: Sound) -> Fraction:
    return Fraction(sound.recording.samples, SAMPLES)


def _seconds(seconds: Fraction) -> str:
    return f"{float(seconds):.2f}".rstrip("0").rstrip(".") + " s"


CHECKS: dict[LintName, Check] = {
    "hurried-text": _hurried_text,
    "other-length": _other_length,
    "overlapping-voices": _overlapping_voices,
    "voice-cut-off": _voice_cut_off,
}
