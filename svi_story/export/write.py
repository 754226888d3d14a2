"""Writes exports, after checking what lies at their paths: a timeline with its media files, or captions."""

from __future__ import annotations

import hashlib
import shutil
import unicodedata
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from svi_story.cache.layout import FRAMES
from svi_story.cache.outputs import is_plain, place_of
from svi_story.cut.captions import card as draw_card
from svi_story.cut.captions import srt
from svi_story.cut.extras import captions_of
from svi_story.cut.frames import PieceFrames, Still
from svi_story.cut.timeline import Piece, Span, timeline_clips
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
from svi_story.files import disk, make_folder, read_regular, remove_stale_temps, sha256_file
from svi_story.render.jobs import protect
from svi_story.render.outputs import (
    EDITED,
    FOREIGN,
    OURS,
    FilmFiles,
    Ownership,
    Target,
    by_ledger,
    check,
    export_writes,
    raise_first,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from svi_story.cache.entry import Entry
    from svi_story.cache.outputs import Outputs
    from svi_story.cache.store import Store
    from svi_story.events import Reporter
    from svi_story.export.media import FrameSequence, MediaCodec
    from svi_story.plan.model import Card, Recording
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
    with disk(target, "creating the folder of the timeline"):
        make_folder(folder)
    if codec:
        clips, cards = _write_clips(job, entries, media_folder(target), codec, report, outputs)
    else:
        clips, cards = [], (None, None)
        for shot in job.plan.shots:
            files = [(each, _named_frames(entries[each.key].folder, each.key)) for each in shot.segments]
            clips.append(
                [
                    MediaRange(path, each.overlap, each.contributes, each.frames, (each,))
                    for each, path in files
                ]
            )
    protect(job, store, None)
    copies = sound_copies(job, target, codec)
    for recording, copy in copies.items():
        if outputs.keeps(copy) or _is_copy(recording)(copy):
            continue
        with disk(copy, "copying a recording"):
            make_folder(copy.absolute().parent)
            with outputs.file(copy) as temporary:
                shutil.copyfile(recording.path, temporary)
    items = timeline_items(job.plan, clips, cards)
    paths = {recording.path: copy for recording, copy in copies.items()}
    _write(target, as_bytes(timeline(job.plan, items, folder, paths)), outputs)


def _named_frames(folder: Path, key: str) -> Path:
    """The frames of an entry under a name that no other media file has: editors find files by their names.

    Where the cache cannot be written to, they keep their own.
    """
    named = folder / f"{key[:32]}{FRAMES[FRAMES.index('.') :]}"
    if not named.exists():
        try:
            named.symlink_to(FRAMES)
        except OSError:  # Windows does not let everybody make symbolic links
            try:
                named.hardlink_to(folder / FRAMES)
            except OSError:
                return folder / FRAMES
    return named


def sound_copies(job: Job, target: Path, codec: MediaCodec | None) -> dict[Recording, Path]:
    """Where recordings are copied to that are called as other media files of the timeline."""
    taken = {_folded(path.name) for path in media_paths(job, target, codec)} if codec else set()
    music = job.plan.cut.music
    sounds = [each for shot in job.plan.shots for each in (*shot.voices, *shot.sounds)]
    copies: dict[Recording, Path] = {}
    for recording in dict.fromkeys(each.recording for each in (*((music.sound,) if music else ()), *sounds)):
        name, number = recording.path.name, 1
        while _folded(name) in taken:
            number += 1
            name = f"{recording.path.stem}-{number}{recording.path.suffix}"
        taken.add(_folded(name))
        if number > 1:
            copies[recording] = media_folder(target) / name
    return copies


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _is_copy(recording: Recording) -> Callable[[Path], bool]:
    def look(path: Path) -> bool:
        with suppress(OSError):
            return is_plain(path) and sha256_file(path) == recording.sha256
        return False

    return look


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
    with disk(folder, "creating the folder of the clips' files"):
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

    spans = {clip.id: clip.spans for clip in timeline_clips(job.plan)}
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
    with disk(target, "creating the folder of the captions"):
        make_folder(target.absolute().parent)
    _write(target, data, outputs)


def check_timeline(
    job: Job, timeline: Path, codec: MediaCodec | None, outputs: Outputs, report: Reporter
) -> None:
    """Raises InputError where a timeline, or one of the media files that go with it, may not be written."""
    targets = [Target(timeline, "its timeline", by_ledger(outputs, is_timeline))]
    for recording, copy in sound_copies(job, timeline, codec).items():
        ownership = by_ledger(outputs, _is_copy(recording))
        targets.append(Target(copy, "the copy of a recording", ownership, is_optional=True))
    for path in media_paths(job, timeline, codec) if codec else ():
        targets += [
            Target(path, "the clip's file", _media_ownership(outputs), is_optional=True),
            Target(
                note_path(path), "the note about a clip's file", by_ledger(outputs, is_note), is_optional=True
            ),
        ]
    raise_first(check([export_writes(job, targets, outputs)], report))


def check_subtitles(job: Job, target: Path, data: bytes, outputs: Outputs, report: Reporter) -> None:
    """Raises InputError where captions may not be written."""
    film = FilmFiles(job.place, job.plan, outputs)

    def ownership(path: Path) -> Ownership:
        is_beside = place_of(path) == place_of(film.path.with_suffix(".srt"))
        with_film = film.captions(path) if is_beside else FOREIGN
        if with_film is OURS:
            return OURS
        with suppress(OSError):
            if read_regular(path, len(data)) == data:
                return OURS
        return with_film if with_film.kind == "edited" else by_ledger(outputs, lambda _path: False)(path)

    raise_first(check([export_writes(job, [Target(target, "its captions", ownership)], outputs)], report))


def _media_ownership(outputs: Outputs) -> Callable[[Path], Ownership]:
    """Who wrote a clip's file, by the ledger and by the note beside it."""

    def ownership(path: Path) -> Ownership:
        if outputs.is_ours(path) or is_as_noted(path):
            return OURS
        return EDITED if outputs.is_listed(path) or is_note(note_path(path)) else FOREIGN

    return ownership
