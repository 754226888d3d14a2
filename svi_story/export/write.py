"""Writes exports, after checking what lies at their paths: a timeline with its media files, or captions."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from svi_story.cache.layout import FRAMES
from svi_story.cache.outputs import place_of
from svi_story.cut.captions import card as draw_card
from svi_story.cut.captions import srt
from svi_story.cut.edit_list import strips_of
from svi_story.cut.frames import PieceFrames, Still
from svi_story.cut.timeline import Piece, Span
from svi_story.errors import InputError, Problem
from svi_story.events import MediaDone
from svi_story.export.media import (
    is_as_noted,
    is_current,
    is_note,
    media_inputs,
    media_path,
    note_path,
    write_media,
)
from svi_story.export.otio import MediaRange, as_bytes, is_timeline, timeline, timeline_items
from svi_story.files import disk, make_folder, read_regular, remove_stale_temps
from svi_story.render.metadata import captions_of
from svi_story.render.outputs import (
    EDITED,
    FOREIGN,
    OURS,
    FilmFiles,
    Ownership,
    Target,
    check,
    export_claim,
    known,
    raise_first,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from svi_story.cache.entry import Entry
    from svi_story.cache.outputs import Outputs
    from svi_story.cache.store import Store
    from svi_story.events import Reporter
    from svi_story.export.media import FrameSequence, MediaCodec
    from svi_story.plan.model import Card
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
    codec: MediaCodec | None,
    report: Reporter,
    outputs: Outputs,
    *,
    command: str,
) -> None:
    """Write the film as an OpenTimelineIO timeline.

    With a codec every clip becomes a file in `<target's stem>.media`, else the timeline refers to the files
    of the cache. Raises InputError that suggests `command` where something is not rendered, before anything
    is written; RenderError where the disk fails.
    """
    refusal = codec.refuses(job.plan.size) if codec else ""
    if refusal:
        raise InputError(Problem(refusal, file=str(job.place.board)))
    entries = finished(job, store, command)
    folder = target.absolute().parent
    with disk(target, "making room for the timeline"):
        make_folder(folder)
    if codec:
        clips, cards = _write_clips(job, entries, media_folder(target), codec, report, outputs)
    else:
        clips, cards = [], (None, None)
        for shot in job.plan.shots:
            files = [(each, entries[each.key].folder / FRAMES) for each in shot.segments]
            clips.append(
                [
                    MediaRange(path, each.overlap, each.contributes, each.frames, (each,))
                    for each, path in files
                ]
            )
    store.remember_film(job.place.film, job.place.board, entries, None)
    items = timeline_items(job.plan, clips, cards)
    _write(target, as_bytes(timeline(job.plan, items, folder)), outputs)


def media_folder(target: Path) -> Path:
    """The folder of a timeline's media files: beside it."""
    return target.with_name(f"{target.stem}.media")


def media_paths(job: Job, target: Path, codec: MediaCodec) -> list[Path]:
    """The media files of a timeline's clips and cards."""
    cut = job.plan.cut
    cards = zip(CARDS, (cut.title_card, cut.end_card), strict=True)
    names = [*(shot.id for shot in job.plan.shots), *(name for name, card in cards if card)]
    return [media_path(media_folder(target), name, codec) for name in names]


def _write(target: Path, data: bytes, outputs: Outputs) -> None:
    remove_stale_temps(target.absolute().parent)
    with disk(target, "writing it"):
        outputs.write(target, data)


def _write_clips(
    job: Job,
    entries: Mapping[str, Entry],
    folder: Path,
    codec: MediaCodec,
    report: Reporter,
    outputs: Outputs,
) -> tuple[list[list[MediaRange]], tuple[MediaRange | None, MediaRange | None]]:
    """A media file for every clip, with all that it contributes, and every card; current files stay."""
    with disk(folder, "making room for the clips' files"):
        make_folder(folder.absolute())
    remove_stale_temps(folder.absolute())
    size, fps, cut = job.plan.size, job.plan.fps, job.plan.cut

    def write(name: str, by_content: Sequence[Span], frames: FrameSequence) -> Path:
        path = media_path(folder, name, codec)
        inputs = media_inputs(by_content, codec, size, fps)
        is_new = not is_current(path, inputs) and not outputs.keeps(path)
        if is_new:
            write_media(path, frames, codec, fps, inputs, outputs.file)
        report(MediaDone(job.place.board, path, is_new))
        return path

    def card_range(name: str, card: Card | None) -> MediaRange | None:
        if card is None:
            return None
        picture = draw_card(card.text, size.width, size.height)
        content = Span(hashlib.sha256(picture.tobytes()).hexdigest(), 0, card.frames)
        return MediaRange(write(name, [content], Still(picture, card.frames)), 0, card.frames, card.frames)

    spans = {strip.clip: strip.spans for strip in strips_of(job.plan)}
    clips = []
    for shot in job.plan.shots:
        by_content = [replace(span, key=entries[span.key].frames_sha256) for span in spans[shot.id]]
        with PieceFrames(Piece(tuple(spans[shot.id])), lambda key: entries[key].frames()) as frames:
            path = write(shot.id, by_content, frames)
        clips.append([MediaRange(path, 0, shot.frames, shot.frames, tuple(shot.segments))])
    return clips, (card_range(CARDS[0], cut.title_card), card_range(CARDS[1], cut.end_card))


def subtitles(job: Job) -> bytes:
    """The clips' captions as an .srt file, at the times of the film. InputError where there are none."""
    cues = captions_of(job.plan)
    if not cues:
        raise InputError(Problem("no clip has a caption; nothing to write", str(job.place.board)))
    return srt(cues, job.plan.cut.fps).encode()


def export_srt(job: Job, target: Path, outputs: Outputs) -> None:
    """Write the clips' captions as subtitles. Raises as `subtitles`, and RenderError."""
    data = subtitles(job)
    with disk(target, "making room for the captions"):
        make_folder(target.absolute().parent)
    _write(target, data, outputs)


def check_timeline(
    job: Job, timeline: Path, media: Iterable[Path], outputs: Outputs, report: Reporter
) -> None:
    """Raises InputError where a timeline, or one of the clips' files that go with it, may not be written."""
    targets = [Target(timeline, "its timeline", known(outputs, is_timeline))]
    for path in media:
        targets += [
            Target(path, "the clip's file", _media_look(outputs), beside=True),
            Target(note_path(path), "the note about a clip's file", known(outputs, is_note), beside=True),
        ]
    raise_first(check([export_claim(job, targets, outputs)], report))


def check_subtitles(job: Job, target: Path, data: bytes, outputs: Outputs, report: Reporter) -> None:
    """Raises InputError where captions may not be written."""
    film = FilmFiles(job.place, job.plan, outputs)

    def look(path: Path) -> Ownership:
        is_beside = place_of(path) == place_of(film.path.with_suffix(".srt"))
        with_film = film.captions(path) if is_beside else FOREIGN
        if with_film is OURS:
            return OURS
        with suppress(OSError):
            if read_regular(path, len(data)) == data:
                return OURS
        return with_film if with_film.kind == "edited" else known(outputs, lambda _path: False)(path)

    raise_first(check([export_claim(job, [Target(target, "its captions", look)], outputs)], report))


def _media_look(outputs: Outputs) -> Callable[[Path], Ownership]:
    """Looks at the ledger, and at the note that lies beside a clip's file."""

    def look(path: Path) -> Ownership:
        if outputs.is_ours(path) or is_as_noted(path):
            return OURS
        return EDITED if outputs.is_listed(path) or is_note(note_path(path)) else FOREIGN

    return look
