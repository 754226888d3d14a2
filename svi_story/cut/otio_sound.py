"""A film's recordings as OpenTimelineIO tracks, to the sample."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from svi_story.cut.audio import samples_of
from svi_story.cut.otio_parts import noted, reference, span, text
from svi_story.media.audio import RATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from svi_story.plan.model import FilmPlan, Recording, Sound

SAMPLES = Fraction(RATE)
MOST_LOOPS = 1000
"""Times that a short recording is laid out under a film; its metadata say how often it should be."""


class Heard(NamedTuple):
    """A recording in the film."""

    recording: Recording
    start: int
    """Its first sample's place in the film."""
    samples: int
    about: Mapping[str, object]

    @property
    def stop(self) -> int:
        """The first sample after it."""
        return self.start + self.samples


def sound_tracks(plan: FilmPlan, starts: Sequence[int], frames: int, folder: Path) -> Iterator[Any]:
    """The music bed, the voices and the other sounds, each in as many tracks as overlap.

    `starts` are the clips' first frames and `frames` is the film's length, at the board's rate.
    """
    stop = samples_of(Fraction(frames) / plan.fps)
    found = {
        "Music": _music(plan, stop),
        "Voices": _placed(plan, [shot.voices for shot in plan.shots], starts, stop),
        "Sounds": _placed(plan, [shot.sounds for shot in plan.shots], starts, stop),
    }
    for name, heard in found.items():
        for number, lane in enumerate(_lanes(heard), 1):
            yield _track(name if number == 1 else f"{name} {number}", lane, folder)


def _placed(
    plan: FilmPlan, sounds: Sequence[Sequence[Sound]], starts: Sequence[int], stop: int
) -> Iterator[Heard]:
    """Every clip's sounds, as far as the film goes."""
    for shot, some, start in zip(plan.shots, sounds, starts, strict=True):
        for sound in some:
            first = samples_of(start / plan.fps + sound.start)
            samples = min(sound.recording.samples, stop - first)
            if samples > 0:
                yield Heard(sound.recording, first, samples, {"clip": shot.id, **_mix(sound)})


def _music(plan: FilmPlan, stop: int) -> Iterator[Heard]:
    """The bed, again and again if it loops, cut to the film's length."""
    music = plan.cut.music
    if music is None or not music.sound.recording.samples:
        return
    recording = music.sound.recording
    times = ceil(Fraction(stop, recording.samples)) if music.loop else 1
    about = {**_mix(music.sound), "duck": music.duck, "loop": music.loop, "times": times}
    for number in range(min(times, MOST_LOOPS)):
        start = number * recording.samples
        yield Heard(recording, start, min(recording.samples, stop - start), about)


def _mix(sound: Sound) -> dict[str, object]:
    return {
        "volume": sound.volume,
        "fade_in_seconds": float(sound.fade_in),
        "fade_out_seconds": float(sound.fade_out),
        "sha256": sound.recording.sha256,
    }


def _lanes(heard: Iterable[Heard]) -> list[list[Heard]]:
    """As few tracks as hold them without overlap."""
    lanes: list[list[Heard]] = []
    for each in sorted(heard, key=lambda each: each.start):
        free = next((lane for lane in lanes if lane[-1].stop <= each.start), None)
        if free is None:
            lanes.append([each])
        else:
            free.append(each)
    return lanes


def _track(name: str, lane: Sequence[Heard], folder: Path) -> Any:
    import opentimelineio as otio

    track = otio.schema.Track(name, kind=otio.schema.TrackKind.Audio)
    end = 0
    for heard in lane:
        if heard.start > end:
            track.append(otio.schema.Gap(source_range=span(0, heard.start - end, SAMPLES)))
        available = span(0, heard.recording.samples, SAMPLES)
        track.append(
            otio.schema.Clip(
                text(heard.recording.path.name),
                reference(heard.recording.path, folder, available),
                span(0, heard.samples, SAMPLES),
                noted(heard.about),
            )
        )
        end = heard.stop
    return track
