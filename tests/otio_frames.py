"""Plans made by hand, and what an editor would show of a timeline, reckoned from OTIO's definitions alone."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import opentimelineio as otio

from svi_story.cut.timeline import card_key, pieces_of
from svi_story.enginespec import EngineOptions
from svi_story.enginespec.sampling import Guidance, Sampler
from svi_story.export.otio import MediaRange, timeline, timeline_items
from svi_story.plan.keys import key_of
from svi_story.plan.model import Anchor, Card, Cut, FilmPlan, Segment, Shot, Size
from svi_story.render.jobs import Job, Place
from svi_story.settings import load_settings
from svi_story.storyboard.source import FolderResolver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svi_story.plan.keys import Json
    from svi_story.plan.model import Music, Sound

SIZE = Size(256, 128)
ANCHOR = Anchor(Path("anchor.png"), SIZE, "crop", "0" * 64)
SAMPLER = Sampler("2.0-pro", 50, Guidance(5.0, 5.0), 5.0, 0.875, 1)
FOLDER = Path("/films")


class Wanted(NamedTuple):
    """A clip as a test wants it."""

    runs: tuple[int, ...]
    """What its segments contribute."""
    overlap: int = 0
    fade: int = 0
    dip: int = 0
    prompt: str = "The sea is rising."
    caption: str = ""
    voices: tuple[Sound, ...] = ()


def segments(clip: str, wanted: Wanted, fps: Fraction) -> tuple[Segment, ...]:
    made, first = [], 0
    for index, run in enumerate(wanted.runs):
        overlap = wanted.overlap
        place = (clip, index, wanted.prompt, "", 7 + index, SIZE, fps, run + overlap, overlap)
        made.append(Segment(*place, first - overlap, ANCHOR, "animatic", SAMPLER))
        first += run
    return tuple(made)


def shot_of(number: int, wanted: Wanted, fps: Fraction) -> Shot:
    clip = f"clip-{number}"
    parts = tuple(map(keyed, segments(clip, wanted, fps)))
    return Shot(
        clip, wanted.prompt, 7, sum(wanted.runs), parts, starts_chain=True, fade=wanted.fade, dip=wanted.dip,
        caption=wanted.caption, voices=wanted.voices,
    )  # fmt: skip


def job_of(
    clips: Sequence[Wanted],
    fps: Fraction = Fraction(15),
    black: tuple[int, int] = (0, 0),
    cards: tuple[Card | None, Card | None] = (None, None),
    music: Music | None = None,
    title: str = "A film",
) -> Job:
    shots = tuple(shot_of(number, wanted, fps) for number, wanted in enumerate(clips))
    cut = Cut("h264", 18, "medium", fps, True, False, *black, *cards, music)
    plan = FilmPlan(
        board=Path("board.yaml"), title=title, size=SIZE, fps=fps, engine="animatic", digest="0" * 64,
        source="", shots=shots, cut=cut, resolver=FolderResolver(Path()),
    )  # fmt: skip
    return Job(
        Place(plan.board, Path("film.mp4"), load_settings(Path.cwd()), Path("cache")), plan, EngineOptions()
    )


def keyed(segment: Segment) -> Segment:
    inputs: dict[str, Json] = {"clip": segment.clip, "index": segment.index, "prompt": segment.prompt}
    return replace(segment, key=key_of({"clip": segment.clip, "index": segment.index}), inputs=inputs)


def by_segment(job: Job) -> Any:
    """The timeline whose references are one file for every segment, as the cache has them."""
    takes = [
        [MediaRange(FOLDER / segment.key, segment.overlap, segment.contributes, segment.frames, (segment,))
         for segment in shot.segments]
        for shot in job.plan.shots
    ]  # fmt: skip
    return timeline(job.plan, timeline_items(job.plan, takes, (None, None)), FOLDER)


def by_clip(job: Job) -> Any:
    """The timeline whose references are one file for every clip."""
    takes = [
        [MediaRange(FOLDER / shot.id, 0, shot.frames, shot.frames, shot.segments)] for shot in job.plan.shots
    ]
    return timeline(job.plan, timeline_items(job.plan, takes, (None, None)), FOLDER)


class Seen(NamedTuple):
    """A film frame, as an editor shows it: files and their frames, and whether black has a part in it."""

    over: tuple[str, int]
    under: tuple[str, int] | None
    dark: bool


def film_of(job: Job, *, whole_clips: bool = False) -> list[Seen]:
    """What our film shows, in the names that the timelines above give their files."""
    names: dict[str, tuple[str, int]] = {}
    for shot in job.plan.shots:
        first = 0
        for segment in shot.segments:
            names[segment.key] = (shot.id, first - segment.overlap) if whole_clips else (segment.key, 0)
            first += segment.contributes
    for name, card in (("title card", job.plan.cut.title_card), ("end card", job.plan.cut.end_card)):
        if card:
            names[card_key(card)] = (name, 0)

    def named(source: Any) -> tuple[str, int]:
        name, shift = names[source.key]
        return name, source.frame + shift

    frames = (piece.frame(index) for piece in pieces_of(job.plan) for index in range(piece.frames))
    return [Seen(named(frame.over), frame.under and named(frame.under), frame.level < 1) for frame in frames]


def shown_by(whole: Any) -> list[Seen]:
    """What the picture track shows, frame by frame."""
    track = whole.video_tracks()[0]
    length = int(track.duration().value)
    return [seen_at(track, frame) for frame in range(length)]


def seen_at(track: Any, frame: int) -> Seen:
    children, edges = list(track), []
    place, item = 0, None
    for index, child in enumerate(children):
        if isinstance(child, otio.schema.Transition):
            edges.append((place, index, child))
            continue
        length = whole_number(child.trimmed_range().duration)
        if place <= frame < place + length:
            item = (child, frame - place)
        place += length
    assert item is not None
    over, under, dark = picture(*item), None, False
    for cut, index, transition in edges:
        before, after = (whole_number(each) for each in (transition.in_offset, transition.out_offset))
        if not cut - before <= frame < cut + after:
            continue
        if transition.metadata["svi_story"]["look"] == "black":
            dark = True
            continue
        assert under is None, "transitions overlap"
        outgoing, incoming = children[index - 1], children[index + 1]
        over = picture(incoming, frame - cut)
        under = picture(outgoing, whole_number(outgoing.trimmed_range().duration) + frame - cut)
    for marker in (each for each in track.markers if each.color == otio.schema.MarkerColor.BLACK):
        start = whole_number(marker.marked_range.start_time)
        dark |= start <= frame < start + whole_number(marker.marked_range.duration)
    return Seen(over, under, dark)


def picture(item: Any, frame: int) -> tuple[str, int]:
    """The file and frame that an item shows, counted from its start; before it and after it are handles."""
    seen = item.trimmed_range()
    place = whole_number(seen.start_time) + frame
    if isinstance(item, otio.schema.Track):
        assert 0 <= place < whole_number(item.available_range().duration), "a handle that is not there"
        inner = seen_at(item, place)
        assert not inner.dark
        return inner.over
    available = item.media_reference.available_range
    start = whole_number(available.start_time)
    assert start <= place < start + whole_number(available.duration), "a handle that is not there"
    url = getattr(item.media_reference, "target_url", item.name)
    return url, place


def whole_number(time: Any) -> int:
    assert time.value == int(time.value)
    return int(time.value)
