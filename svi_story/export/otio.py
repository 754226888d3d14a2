"""A film as an OpenTimelineIO timeline, for an editor to go on with: the same frames in the same places.

At the board's rate, with prompts, seeds, keys and settings as markers and metadata.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, is_dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from svi_story import __version__
from svi_story.cut.audio import samples_of
from svi_story.export.transitions import EditedTrack, TrackItem, Transition, dissolve, trimmed
from svi_story.files import read_regular, relative_path
from svi_story.media.audio import RATE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from svi_story.plan.model import Card, FilmPlan, Recording, Segment, Shot, Sound


SPACE = "svi_story"
"""The key of svi-story's metadata."""


def at(count: int, rate: Fraction) -> Any:
    """So many frames or samples, at their rate. OTIO's rates are doubles: the nearest one to the fraction."""
    import opentimelineio as otio

    return otio.opentime.RationalTime(count, float(rate))


def span(start: int, count: int, rate: Fraction) -> Any:
    """A range that starts at one frame or sample and holds so many."""
    import opentimelineio as otio

    return otio.opentime.TimeRange(at(start, rate), at(count, rate))


def reference(path: Path, folder: Path, available: Any) -> Any:
    """A file, as seen from the folder that the timeline lies in: what moves together stays together."""
    import opentimelineio as otio

    path = Path(os.path.realpath(path.parent), path.name)  # links to files keep their names
    way = relative_path(path, os.path.realpath(folder))
    return otio.schema.ExternalReference(quote(os.fsencode(way)), available)


def noted(about: Mapping[str, object]) -> dict[str, Any]:
    """Metadata under the key of svi-story."""
    return {SPACE: plain(about)}


def plain(value: object) -> Any:
    """A value as OTIO's metadata hold it; fractions and paths become text."""
    if isinstance(value, dict):
        return {text(str(name)): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, str | Fraction | os.PathLike):
        return text(str(value))
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    return value


def text(value: str) -> str:
    """Text that fits OTIO's strings: UTF-8 without NUL, which would end it."""
    return value.replace("\0", "").encode("utf-8", "replace").decode()


SAMPLES = Fraction(RATE)
MOST_LOOPS = 1000
"""Times that a short recording is laid out under a film; its metadata say how often it should be."""


class AudioClip(NamedTuple):
    """A recording in the film."""

    recording: Recording
    start: int
    """The film's sample at which it starts."""
    samples: int
    about: Mapping[str, object]

    @property
    def stop(self) -> int:
        """The first sample after it."""
        return self.start + self.samples


def sound_tracks(
    plan: FilmPlan, starts: Sequence[int], frames: int, folder: Path, copies: Mapping[Path, Path]
) -> Iterator[Any]:
    """The music bed, the voices and the other sounds, each in as many tracks as overlap.

    `starts` are the clips' first frames and `frames` is the film's length, at the board's rate. `copies` has
    the copies of recordings to refer to instead.
    """
    stop = samples_of(Fraction(frames) / plan.fps)
    found = {
        "Music": _music(plan, stop),
        "Voices": _placed(plan, [shot.voices for shot in plan.shots], starts, stop),
        "Sounds": _placed(plan, [shot.sounds for shot in plan.shots], starts, stop),
    }
    for name, clips in found.items():
        tracks: list[list[AudioClip]] = []  # as few as hold them without overlap
        for clip in sorted(clips, key=lambda clip: clip.start):
            free = next((track for track in tracks if track[-1].stop <= clip.start), None)
            if free is None:
                tracks.append([clip])
            else:
                free.append(clip)
        for number, track in enumerate(tracks, 1):
            yield _track(name if number == 1 else f"{name} {number}", track, folder, copies)


def _placed(
    plan: FilmPlan, sounds: Sequence[Sequence[Sound]], starts: Sequence[int], stop: int
) -> Iterator[AudioClip]:
    """Every clip's sounds, as far as the film goes."""
    for shot, some, start in zip(plan.shots, sounds, starts, strict=True):
        for sound in some:
            first = samples_of(start / plan.fps + sound.start)
            samples = min(sound.recording.samples, stop - first)
            if samples > 0:
                yield AudioClip(sound.recording, first, samples, {"clip": shot.id, **_mix_settings(sound)})


def _music(plan: FilmPlan, stop: int) -> Iterator[AudioClip]:
    """The bed, again and again if it loops, cut to the film's length."""
    music = plan.cut.music
    if music is None or not music.sound.recording.samples:
        return
    recording = music.sound.recording
    times = ceil(Fraction(stop, recording.samples)) if music.loop else 1
    about = {**_mix_settings(music.sound), "duck": music.duck, "loop": music.loop, "times": times}
    for number in range(min(times, MOST_LOOPS)):
        start = number * recording.samples
        yield AudioClip(recording, start, min(recording.samples, stop - start), about)


def _mix_settings(sound: Sound) -> dict[str, object]:
    return {
        "volume": sound.volume,
        "fade_in_seconds": float(sound.fade_in),
        "fade_out_seconds": float(sound.fade_out),
        "sha256": sound.recording.sha256,
    }


def _track(name: str, clips: Sequence[AudioClip], folder: Path, copies: Mapping[Path, Path]) -> Any:
    import opentimelineio as otio

    track = otio.schema.Track(name, kind=otio.schema.TrackKind.Audio)
    end = 0
    for clip in clips:
        if clip.start > end:
            track.append(otio.schema.Gap(source_range=span(0, clip.start - end, SAMPLES)))
        available = span(0, clip.recording.samples, SAMPLES)
        track.append(
            otio.schema.Clip(
                text(clip.recording.path.name),
                reference(copies.get(clip.recording.path, clip.recording.path), folder, available),
                span(0, clip.samples, SAMPLES),
                noted(clip.about),
            )
        )
        end = clip.stop
    return track


LARGEST = 64 * 2**20
"""Bytes of a timeline; one of 1,000 clips has about 5 MB."""

CARD = "svi_story.card"
"""The generator of a card that has no file: text on black, as its parameters say."""


@dataclass(frozen=True)
class MediaRange:
    """A run of frames in a file: a clip, or one segment of it, as an editor opens it."""

    path: Path
    start: int
    """The file's first frame that belongs to the clip."""
    frames: int
    available: int
    """All frames of the file."""
    segments: tuple[Segment, ...] = ()
    """The segments that it holds."""


@dataclass(frozen=True)
class TimelineItem:
    """One item of the picture track; without media, a card that is only described."""

    name: str
    media: tuple[MediaRange, ...]
    shot: Shot | None
    card: Card | None = None

    @property
    def runs(self) -> tuple[int, ...]:
        """Frames of every file."""
        return tuple(each.frames for each in self.media) or (self.card.frames if self.card else 0,)

    @property
    def about(self) -> dict[str, object]:
        """Its metadata for editors."""
        if self.shot is None:
            return {"card": asdict(self.card)} if self.card else {}
        shot = self.shot
        segments = [segment for each in self.media for segment in each.segments]
        return {
            "clip": shot.id,
            "prompt": shot.prompt,
            "seed": shot.seed,
            "seeds": [segment.seed for segment in segments],
            "caption": shot.caption,
            "frames": shot.frames,
            "keys": [segment.key for segment in segments],
        }


def timeline_items(
    plan: FilmPlan, media: Sequence[Sequence[MediaRange]], cards: tuple[MediaRange | None, MediaRange | None]
) -> tuple[TimelineItem, ...]:
    """The film's items in order: title card, every clip with its files, end card."""
    shots = [TimelineItem(shot.id, tuple(some), shot) for shot, some in zip(plan.shots, media, strict=True)]
    title, end = (
        [TimelineItem(name, (each,) if each else (), None, card)] if card else []
        for name, card, each in zip(
            ("title card", "end card"), (plan.cut.title_card, plan.cut.end_card), cards, strict=True
        )
    )
    return tuple(title + shots + end)


def timeline(
    plan: FilmPlan,
    items: Sequence[TimelineItem],
    folder: Path,
    copies: Mapping[Path, Path] = MappingProxyType({}),
) -> Any:
    """The timeline, with references relative to the folder that it is going to lie in.

    `copies` has the copies of recordings to refer to instead.
    """
    import opentimelineio as otio

    edit = EditedTrack([TrackItem(item.runs) for item in items])
    whole = otio.schema.Timeline(
        text(plan.title), global_start_time=at(0, plan.fps), metadata=noted(_about(plan, items))
    )
    pictures = otio.schema.Track("Pictures", kind=otio.schema.TrackKind.Video)
    for blackout in _place_transitions(plan, items, edit):
        pictures.markers.append(_marker(*blackout, plan, color=otio.schema.MarkerColor.BLACK))
    for index, (item, track_item) in enumerate(zip(items, edit.items, strict=True)):
        pictures.extend(_transition(edit.transitions[index], plan))
        pictures.extend(_clips(item, track_item, plan, folder))
    pictures.extend(_transition(edit.transitions[-1], plan))
    whole.tracks.append(pictures)
    starts = [start for item, start in zip(items, edit.starts, strict=True) if item.shot]
    whole.tracks.extend(list(sound_tracks(plan, starts, edit.frames, folder, copies)))
    return whole


def _about(plan: FilmPlan, items: Sequence[TimelineItem]) -> dict[str, object]:
    cut = asdict(plan.cut)
    segments = [segment for item in items for each in item.media for segment in each.segments]
    return {
        "version": __version__,
        "board": plan.board.name,
        "board_sha256": plan.digest,
        "engine": plan.engine,
        "fps": plan.fps,
        "resolution": str(plan.size),
        "cut": {name: cut[name] for name in ("codec", "crf", "preset", "fps", "fade_in", "fade_out")},
        "segments": [
            {"clip": segment.clip, "key": segment.key, "inputs": segment.inputs} for segment in segments
        ],
    }


def _place_transitions(
    plan: FilmPlan, items: Sequence[TimelineItem], edit: EditedTrack
) -> list[tuple[str, int, int]]:
    """Put every transition where it belongs; what fits nowhere is returned: name, first frame, frames."""
    first = next(index for index, item in enumerate(items) if item.shot)
    for index, shot in enumerate(plan.shots, first):
        if shot.fade:
            fits = edit.set(index, dissolve(shot.fade))
            assert fits, "the plan refuses fades that overlap"
    fades: list[tuple[str, int, Transition]] = []  # through, from and to black
    for index, shot in enumerate(plan.shots, first):
        if shot.dip:
            dip = Transition("black", shot.dip // 2, shot.dip - shot.dip // 2)
            fades.append(("dip to black", index, dip))
    if plan.cut.fade_in:
        fades.append(("fade from black", first, Transition("black", 0, plan.cut.fade_in)))
    if plan.cut.fade_out:
        stop = first + len(plan.shots)
        fades.append(("fade to black", stop, Transition("black", plan.cut.fade_out, 0)))
    unfit = []
    for name, index, join in fades:
        if not edit.set(index, join):
            cut = edit.frames if index == len(items) else edit.starts[index] + edit.items[index].head
            unfit.append((name, cut - join.before, join.before + join.after))
    return unfit


def _transition(join: Transition | None, plan: FilmPlan) -> list[Any]:
    """A dissolve, from one picture or from nothing; OTIO has no word for a dip, so that is our own kind."""
    import opentimelineio as otio

    if join is None:
        return []
    dip = join.look == "black" and join.before and join.after
    types = otio.schema.TransitionTypes
    name = "Cross dissolve"
    if join.look == "black":
        name = "Dip to black" if dip else "Fade to black" if join.before else "Fade from black"
    return [
        otio.schema.Transition(
            name,
            types.Custom if dip else types.SMPTE_Dissolve,
            at(join.before, plan.fps),
            at(join.after, plan.fps),
            noted({"look": join.look}),
        )
    ]


def _clips(item: TimelineItem, track_item: TrackItem, plan: FilmPlan, folder: Path) -> list[Any]:
    """The item as the track's children: one for every file, or one track that holds them all."""
    import opentimelineio as otio

    if not track_item.nested:
        ranges = trimmed(track_item.runs, track_item.head, track_item.tail)
        children = _children(item, ranges, plan, folder)
    else:
        nest = otio.schema.Track(item.name, kind=otio.schema.TrackKind.Video)
        nest.extend(_children(item, trimmed(track_item.runs, 0, 0), plan, folder))
        nest.source_range = span(
            track_item.head, track_item.frames - track_item.head - track_item.tail, plan.fps
        )
        nest.metadata.update(noted(item.about))
        children = [nest]
    if item.shot:
        comment = f"{item.shot.caption}\n{item.shot.prompt}".strip()
        seen = children[0].trimmed_range()
        start, frames = int(seen.start_time.value), int(seen.duration.value)
        about = {**item.about, "comment": comment}
        children[0].markers.append(_marker(item.name, start, frames, plan, about=about))
    return children


def _children(
    item: TimelineItem, ranges: Sequence[tuple[int, int]], plan: FilmPlan, folder: Path
) -> list[Any]:
    import opentimelineio as otio

    if not item.media:
        return [_card(item, ranges[0], plan)]
    clips: list[Any] = []
    for each, (start, stop) in zip(item.media, ranges, strict=True):
        available = span(0, each.available, plan.fps)
        segments = [
            {"index": segment.index, "seed": segment.seed, "key": segment.key} for segment in each.segments
        ]
        clips.append(
            otio.schema.Clip(
                item.name if len(item.media) == 1 else f"{item.name} {len(clips) + 1}/{len(item.media)}",
                reference(each.path, folder, available),
                span(each.start + start, stop - start, plan.fps),
                noted({**item.about, "segments": segments}),
            )
        )
    return clips


def _card(item: TimelineItem, seen: tuple[int, int], plan: FilmPlan) -> Any:
    import opentimelineio as otio

    assert item.card
    about = {"text": text(item.card.text), "background": "black"}
    whole = span(0, item.card.frames, plan.fps)
    generator = otio.schema.GeneratorReference(item.name, CARD, whole, about)
    start, stop = seen
    return otio.schema.Clip(item.name, generator, span(start, stop - start, plan.fps), noted(item.about))


def _marker(
    name: str,
    start: int,
    frames: int,
    plan: FilmPlan,
    *,
    about: dict[str, object] | None = None,
    color: str = "CYAN",
) -> Any:
    import opentimelineio as otio

    notes = dict(about or {})
    comment = text(str(notes.pop("comment", "")))
    return otio.schema.Marker(
        text(name), span(start, frames, plan.fps), color, noted(notes) if notes else {}, comment
    )


def as_bytes(whole: Any) -> bytes:
    """The timeline as the .otio file holds it."""
    return str(whole.to_json_string(indent=2)).encode() + b"\n"


def is_timeline(path: Path) -> bool:
    """Whether a file is a timeline that svi-story exported."""
    try:
        found = json.loads(read_regular(path, LARGEST))
        return "board_sha256" in found["metadata"][SPACE]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False
