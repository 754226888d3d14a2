"""The edit list of the film's sound: what is heard from which sample to which, at 48 kHz. Integers only.

A film's frame f begins with sample round(f / fps * 48000), halves up; the film ends with the last of them, so
its sound is as long as its picture to the sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.metadata import version
from math import floor
from typing import TYPE_CHECKING

from svi_story.media.audio import RATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from svi_story.plan.keys import Json
    from svi_story.plan.model import FilmPlan, Recording, Shot, Sound

MIX_VERSION = 1
"""Raised whenever the same inputs make another sound than before."""

BITRATE = 256_000
"""Bits a second of AAC: more than two channels need."""

RAMP = RATE // 4
"""How long the music takes to step back before a voice, and to come back after it."""

Envelope = tuple[tuple[int, float], ...]
"""(sample of the film, gain), in order; straight between them, level before the first and after the last."""


@dataclass(frozen=True)
class Track:
    """One recording in the film, heard in [start, stop). All lengths in samples of the film."""

    recording: Recording
    volume: float
    start: int
    stop: int
    fade_in: int
    """From silence, from `start` on."""
    fade_out: int
    """To silence, which is reached at `stop`."""
    loop: bool = False
    """It starts again, from its first sample, until `stop`."""
    gain: Envelope = ()
    """What else it is multiplied by; empty: nothing."""

    @property
    def samples(self) -> int:
        """How long it is heard."""
        return self.stop - self.start


@dataclass(frozen=True)
class Soundtrack:
    """All that is heard in a film."""

    samples: int
    """Its length, which is the film's."""
    tracks: tuple[Track, ...]
    """The music first; then clip by clip. Empty: the film is silent."""


def samples_of(seconds: Fraction) -> int:
    """Seconds in samples, halves rounded up."""
    return floor(seconds * RATE + Fraction(1, 2))


def tracks_of(plan: FilmPlan, starts: Mapping[str, int], frames: int) -> Soundtrack:
    """The sound of a film, or of its beginning.

    `starts` has the film's frame at which each clip begins (sounds of clips that are not in it are left out),
    `frames` how many frames the film has; both at the film's rate, cards included. Sounds run on past their
    clip's end, but not past the film's. What fades out is silent where it ends: by itself, or with the film.
    """
    total = samples_of(frames / plan.cut.fps)
    shots = [shot for shot in plan.shots if shot.id in starts]

    def placed(shot: Shot, sounds: Iterable[Sound]) -> Iterator[Track]:
        for sound in sounds:
            start = samples_of(starts[shot.id] / plan.cut.fps + sound.start)
            track = _track(sound, start, min(start + sound.recording.samples, total))
            if track.samples > 0:
                yield track

    voices = [track for shot in shots for track in placed(shot, shot.voices)]
    sounds = [track for shot in shots for track in placed(shot, shot.sounds)]
    return Soundtrack(total, (*_music(plan, voices, total), *voices, *sounds))


def ducked(voices: Iterable[Track], duck: float) -> Envelope:
    """What is left of the music: `duck` while a voice is heard, 1 elsewhere, `RAMP` samples between them.

    Between two voices with less than two ramps of silence it stays down.
    """
    envelope: list[tuple[int, float]] = []
    heard = sorted((voice.start, voice.stop) for voice in voices if voice.volume > 0)
    end = 0
    for start, stop in heard:
        if envelope and start - RAMP < end + RAMP:
            end = max(end, stop)
            envelope[-2:] = [(end, duck), (end + RAMP, 1.0)]
        else:
            end = stop
            envelope += [(start - RAMP, 1.0), (start, duck), (end, duck), (end + RAMP, 1.0)]
    return tuple(envelope)


def audio_inputs(soundtrack: Soundtrack) -> dict[str, Json]:
    """All that decides the mixed file's bytes: same inputs, same machine, same bytes."""
    return {
        "version": MIX_VERSION,
        "bitrate": BITRATE,
        "av": version("av"),
        "moviepy": version("moviepy"),
        "samples": soundtrack.samples,
        "tracks": [_inputs(track) for track in soundtrack.tracks],
    }


def _inputs(track: Track) -> dict[str, Json]:
    return {
        "recording": track.recording.sha256,
        "volume": track.volume,
        "span": [track.start, track.stop],
        "fades": [track.fade_in, track.fade_out],
        "loop": track.loop,
        "gain": [[sample, gain] for sample, gain in track.gain],
    }


def _track(sound: Sound, start: int, stop: int) -> Track:
    fades = samples_of(sound.fade_in), samples_of(sound.fade_out)
    return Track(sound.recording, sound.volume, start, stop, *fades)


def _music(plan: FilmPlan, voices: Iterable[Track], total: int) -> Iterator[Track]:
    music = plan.cut.music
    if music is not None:
        stop = total if music.loop else min(music.sound.recording.samples, total)
        track = _track(music.sound, 0, stop)
        yield replace(track, loop=music.loop, gain=ducked(voices, music.duck) if music.duck < 1 else ())
