"""A finished film for others to go on with: a timeline for editors, or its captions."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from svi_story.cache.layout import FRAMES
from svi_story.cut.edit_list import ranges_of, strips_of
from svi_story.cut.frames import PieceFrames, Still
from svi_story.cut.media import is_made, made_from, media_path, write_media
from svi_story.cut.otio import Take, as_bytes, rows_of, timeline
from svi_story.cut.subtitles import srt
from svi_story.cut.timeline import Piece, Span
from svi_story.cut.words import card as drawn
from svi_story.errors import InputError, Problem
from svi_story.events import MediaDone
from svi_story.files import disk, make_folder, remove_stale_temps
from svi_story.plan.model import Segment
from svi_story.render.metadata import captions_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from svi_story.cache.entry import Entry
    from svi_story.cache.frames import Frames
    from svi_story.cache.outputs import Outputs
    from svi_story.cache.store import Store
    from svi_story.cut.media import Codec, Pictures
    from svi_story.events import Reporter
    from svi_story.plan.keys import Json
    from svi_story.plan.model import Card, Segment
    from svi_story.render.jobs import Job

CARDS = ("_title-card", "_end-card")
"""The cards' files; no clip's id starts like that."""


def finished(job: Job, store: Store, command: str) -> dict[str, Entry]:
    """Every segment of a film, verified. Raises InputError that names the clips that are not rendered.

    It suggests `command`, which renders them.
    """
    job.require_keys()
    found = {segment.key: store.entry(segment.key) for segment in job.segments}
    missing = [segment.clip for segment in job.segments if found[segment.key] is None]
    if missing:
        names = ", ".join(dict.fromkeys(missing))
        what = f"not rendered yet: {names}; run `{command}` first"
        raise InputError(Problem(what, file=str(job.place.board)))
    return {key: entry for key, entry in found.items() if entry is not None}


def export_otio(
    job: Job,
    store: Store,
    target: Path,
    codec: Codec | None,
    report: Reporter,
    outputs: Outputs,
    *,
    command: str,
) -> None:
    """Write the film as an OpenTimelineIO timeline.

    With a codec every clip becomes a file in `<target's stem>.media`, else the timeline points to the
    cache's own. Raises InputError that suggests `command` where something is not rendered, before anything
    is written; RenderError where the disk refuses.
    """
    refusal = codec.refuses(job.plan.size) if codec else ""
    if refusal:
        raise InputError(Problem(refusal, file=str(job.place.board)))
    entries = finished(job, store, command)
    with disk(target, "making room for the timeline"):
        make_folder(target.absolute().parent)
    takes = _segments(job, entries)
    cards: tuple[Take | None, Take | None] = (None, None)
    if codec:
        made = _Media(job, entries, media_folder(target), codec, report, outputs)
        takes, cards = made.clips(), made.cards()
    store.remember_film(job.place.film, job.place.board, entries, None)
    rows = rows_of(job.plan, takes, cards)
    _write(target, as_bytes(timeline(job.plan, rows, target.absolute().parent)), outputs)


def media_folder(target: Path) -> Path:
    """Where the clips' files of a timeline lie: beside it."""
    return target.with_name(f"{target.stem}.media")


def media_paths(job: Job, target: Path, codec: Codec) -> list[Path]:
    """The files of a timeline's clips and cards."""
    cut = job.plan.cut
    cards = zip(CARDS, (cut.title_card, cut.end_card), strict=True)
    names = [*(shot.id for shot in job.plan.shots), *(name for name, card in cards if card)]
    return [media_path(media_folder(target), name, codec) for name in names]


def _write(target: Path, data: bytes, outputs: Outputs) -> None:
    remove_stale_temps(target.absolute().parent)
    with disk(target, "writing it"):
        outputs.write(target, data)


def _segments(job: Job, entries: Mapping[str, Entry]) -> list[list[Take]]:
    """The cache's own files, one for each segment."""
    return [
        [
            Take(
                entries[segment.key].folder / FRAMES,
                segment.overlap,
                segment.contributes,
                segment.frames,
                (segment,),
            )
            for segment in shot.segments
        ]
        for shot in job.plan.shots
    ]


class _Media:
    """Makes the files of one export."""

    def __init__(
        self,
        job: Job,
        entries: Mapping[str, Entry],
        folder: Path,
        codec: Codec,
        report: Reporter,
        outputs: Outputs,
    ) -> None:
        self._job, self._entries, self._codec, self._report = job, entries, codec, report
        self._outputs = outputs
        self._folder = folder
        with disk(folder, "making room for the clips' files"):
            make_folder(folder.absolute())
        remove_stale_temps(folder.absolute())

    def clips(self) -> list[list[Take]]:
        """A file for every clip, with all that it contributes."""
        spans = {strip.clip: strip.spans for strip in strips_of(self._job.plan)}
        return [
            [self._clip(shot.id, spans[shot.id], shot.frames, shot.segments)] for shot in self._job.plan.shots
        ]

    def cards(self) -> tuple[Take | None, Take | None]:
        """A file for every card."""
        cut = self._job.plan.cut
        title, end = (
            self._card(name, card) if card else None
            for name, card in zip(CARDS, (cut.title_card, cut.end_card), strict=True)
        )
        return title, end

    def _clip(self, clip: str, spans: Sequence[Span], count: int, segments: Sequence[Segment]) -> Take:
        by_content = [replace(span, key=self._entries[span.key].frames_sha256) for span in spans]
        with PieceFrames(Piece(tuple(spans)), self._open) as frames:
            path = self._file(clip, by_content, frames)
        return Take(path, 0, count, count, tuple(segments))

    def _card(self, name: str, card: Card) -> Take:
        size = self._job.plan.size
        picture = drawn(card.text, size.width, size.height)
        content = Span(hashlib.sha256(picture.tobytes()).hexdigest(), 0, card.frames)
        path = self._file(name, [content], Still(picture, card.frames))
        return Take(path, 0, card.frames, card.frames)

    def _file(self, name: str, by_content: Sequence[Span], frames: Pictures) -> Path:
        plan = self._job.plan
        path = media_path(self._folder, name, self._codec)
        inputs: dict[str, Json] = made_from(by_content, self._codec, plan.size, plan.fps)
        made = not is_made(path, inputs) and not self._outputs.keeps(path)
        if made:
            write_media(path, frames, self._codec, plan.fps, inputs, self._outputs.file)
        self._report(MediaDone(self._job.place.board, path, made))
        return path

    def _open(self, key: str) -> Frames:
        return self._entries[key].frames()


def subtitles(job: Job) -> bytes:
    """The clips' captions as an .srt file, at the times of the film. InputError where there are none."""
    cues = captions_of(job.plan, ranges_of(job.plan))
    if not cues:
        raise InputError(Problem("no clip has a caption; nothing to write", str(job.place.board)))
    return srt(cues, job.plan.cut.fps).encode()


def export_srt(job: Job, target: Path, outputs: Outputs) -> None:
    """Write the clips' captions as subtitles. Raises as `subtitles`, and RenderError."""
    data = subtitles(job)
    with disk(target, "making room for the captions"):
        make_folder(target.absolute().parent)
    _write(target, data, outputs)
