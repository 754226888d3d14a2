"""One film: pieces encoded once as their segments are ready, and joined when the last one is."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile
from threading import Lock
from typing import TYPE_CHECKING

from svi_story.cut.audio import audio_inputs, mix, soundtrack_of
from svi_story.cut.captions import CAPTION, CARD, card, fits
from svi_story.cut.encode import encode_piece, encoding_of, piece_inputs
from svi_story.cut.extras import extras_of
from svi_story.cut.ffmpeg import check_encoder, import_moviepy
from svi_story.cut.frames import Still
from svi_story.cut.join import join
from svi_story.cut.timeline import END_CARD, TITLE_CARD, cards_of, pieces_of, ranges_of
from svi_story.errors import StoryError
from svi_story.events import (
    BoardStarted,
    ClipDone,
    FilmDone,
    JoinStarted,
    PieceDone,
    PreviewDone,
    SoundDone,
    TakesDone,
    Warned,
)
from svi_story.files import disk, make_folder
from svi_story.media.text import unseen
from svi_story.plan.keys import key_of
from svi_story.render.jobs import protect
from svi_story.render.record import captions_beside, partial_film, recipe_of, write_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor as ThreadExecutor
    from concurrent.futures import Future
    from pathlib import Path

    from svi_story.cache.entry import Entry
    from svi_story.cache.outputs import Outputs
    from svi_story.cache.store import Store
    from svi_story.cut.captions import Typography
    from svi_story.cut.frames import FrameSource
    from svi_story.cut.timeline import Piece, Span
    from svi_story.events import Reporter
    from svi_story.plan.model import Segment
    from svi_story.render.executor import Executor, SegmentReady
    from svi_story.render.jobs import Job

MOST_NAMED = 5
"""Clips that are named for one value of an environment."""
UNRECORDED = {"compile": "off"}
"""What it means where an entry's environment does not have a name."""


@dataclass(frozen=True)
class RenderContext:
    """What the films of a run share."""

    executor: Executor
    store: Store
    encoder: ThreadExecutor
    """Encodes pieces, in parallel with everything else."""
    report: Reporter
    outputs: Outputs
    """Writes files outside the cache."""
    turn: Lock = field(default_factory=Lock)
    """Held by the thread that gives a piece's frames to its encoder."""


class Film:
    """Makes the film of one board from finished segments.

    Pieces are encoded in the context's encoder thread; errors there are raised when the film is joined.
    """

    def __init__(self, job: Job, context: RenderContext) -> None:
        self._job = job
        self._context = context
        self._board, self._film = job.place.board, job.place.film
        self._encoding = encoding_of(job.plan)
        self._cards = cards_of(job.plan)
        self._pieces = pieces_of(job.plan)
        self._waiting = {segment.key for segment in job.segments}
        self._pieces_with: defaultdict[str, list[int]] = defaultdict(list)
        """The numbers of the pieces that show a segment, by its key."""
        for number, piece in enumerate(self._pieces):
            for key in piece.keys:
                self._pieces_with[key].append(number)
        self._clips_with: defaultdict[str, list[int]] = defaultdict(list)
        for number, shot in enumerate(job.plan.shots):
            for key in dict.fromkeys(segment.key for segment in shot.segments):
                self._clips_with[key].append(number)
        self._entries: dict[str, Entry] = {}
        self._fresh: set[str] = set()
        self._encoded: dict[int, Future[tuple[str, Path]]] = {}
        """Key and file of every piece that was given to the encoder, by number."""
        self._files: dict[int, Path] = {}
        """Those that are encoded."""
        self._sound: tuple[str, Path] | None = None
        self._partial_film = Lock()
        """Held by the thread that writes the partial film."""

    def start(self) -> None:
        """Check what the film needs besides its segments, and mix its sound."""
        for note in _unreadable_texts(self._job):
            self._report_warning(note)
        with disk(self._film, "making room for the film"):
            make_folder(self._film.parent)
        self._sound = self._mix_sound()  # a recording that cannot be read costs no GPU time
        for number, piece in enumerate(self._pieces):
            if piece.keys <= self._cards.keys():
                self._submit(number)

    def add(self, ready: SegmentReady) -> None:
        """Add a finished segment. After the last one, the film is written."""
        key = ready.segment.key
        self._entries[key] = ready.entry
        self._waiting.discard(key)
        if ready.fresh:
            self._fresh.add(key)
        for number in self._pieces_with[key]:
            piece = self._pieces[number]
            if number not in self._encoded and piece.keys.isdisjoint(self._waiting):
                self._submit(number, is_news=bool(self._waiting and piece.keys & self._fresh))
        for number in self._clips_with[key]:
            shot = self._job.plan.shots[number]
            keys = {segment.key for segment in shot.segments}
            if not keys & self._waiting:
                self._context.report(ClipDone(self._board, shot.id, shot.pick))
        if not self._waiting:
            self._finish()

    def cancel(self) -> None:
        """Encode no more pieces."""
        for piece in self._encoded.values():
            piece.cancel()

    def _finish(self) -> None:
        """Join the film, write its record and captions, and remove the partial film."""
        job, context = self._job, self._context
        extras = extras_of(job.plan, ranges_of(job.plan), self._model)
        encoded = [self._encoded[number].result() for number in range(len(self._pieces))]
        context.report(JoinStarted(self._board, self._film, len(encoded)))
        audio = self._sound[1] if self._sound else None
        frames = join(
            [file for _, file in encoded],
            self._encoding,
            self._film,
            replace(extras, audio=audio),
            context.outputs.file,
        )
        assert frames == job.plan.frames, "the edit list holds every frame of the plan"
        captions = captions_beside(job, extras.captions)
        write_record(job, recipe_of(job), self._entries, captions.ours, context.outputs)
        captions.write(context.outputs, context.report)
        pieces = [key for key, _ in encoded] + ([self._sound[0]] if self._sound else [])
        protect(job, context.store, pieces)
        remove_partial_film(job, context.outputs)
        environments = ((each.clip, self._entries[each.key].environment) for each in job.segments)
        if mixed := mixed_environments(environments):
            self._report_warning(mixed)
        _report_film(job, context, made=True)

    @property
    def _model(self) -> str:
        """What the model that rendered it calls itself, if it does."""
        entries = map(self._entries.get, (segment.key for segment in self._job.segments))
        names = dict.fromkeys(entry.environment.get("model", "") for entry in entries if entry)
        return ", ".join(filter(None, names))

    def _submit(self, number: int, *, is_news: bool = False) -> None:
        self._encoded[number] = self._context.encoder.submit(self._encode, number, is_news=is_news)

    def _encode(self, number: int, *, is_news: bool) -> tuple[str, Path]:
        """The key and file of a piece, encoded once for the same frames; news join the partial film."""
        piece = self._pieces[number]
        contents = {key: self._entries[key].frames_sha256 for key in piece.keys - self._cards.keys()}
        inputs = piece_inputs(by_content(piece, contents), self._encoding)
        times: list[float] = []
        """After each frame; none of a piece that was in the cache."""

        def build(target: Path) -> None:
            def on_frame(_done: int, _all: int) -> None:
                times.append(time.monotonic())

            encode_piece(piece, self._open, self._encoding, target, on_frame, self._context.turn)

        key = key_of(inputs)
        path = self._context.store.make_piece(key, build, inputs)
        if times:
            seconds = round(time.monotonic() - times[0], 3)
            self._context.report(PieceDone(self._board, piece.clip, piece.frames, seconds))
        self._files[number] = path
        if is_news:
            self._refresh_partial_film()
        return key, path

    def _open(self, key: str) -> FrameSource:
        if key not in self._cards:
            return self._entries[key].frames()
        text, frames = self._cards[key].text, self._cards[key].frames
        return Still(card(text, self._encoding.width, self._encoding.height), frames)

    def _refresh_partial_film(self) -> None:
        """Join the finished pieces at the beginning into a partial film; a warning if that fails."""
        target = partial_film(self._film)
        with self._partial_film:
            numbers = takewhile(self._files.__contains__, range(len(self._pieces)))
            files = [self._files[number] for number in numbers]
            try:
                extras, publish = extras_of(self._job.plan, {}, self._model), self._context.outputs.file
                frames = join(files, self._encoding, target, extras, publish) if files else 0
            except StoryError as error:
                self._report_warning(f"nothing to watch yet: {error}")
            else:
                if frames:
                    self._context.report(PreviewDone(self._board, target, frames))

    def _mix_sound(self) -> tuple[str, Path] | None:
        """Key and file of the mixed sound, mixed now if it is not in the cache; None for a silent film.

        Raises RenderError where a recording is not what was planned with, or cannot be read to its end.
        """
        plan, context = self._job.plan, self._context
        soundtrack = soundtrack_of(plan)
        if not soundtrack.tracks:
            return None

        mixed: list[tuple[float, int]] = []

        def build(target: Path) -> None:
            start = time.monotonic()
            over = mix(soundtrack, target)
            mixed.append((round(time.monotonic() - start, 3), over))

        inputs = audio_inputs(soundtrack)
        key = key_of(inputs)
        path = context.store.make_piece(key, build, inputs)
        for seconds, over in mixed:  # now, and in the cache
            context.report(SoundDone(self._board, round(plan.seconds, 3), seconds))
            if over:
                self._report_warning(
                    f"{over} samples of the sound were too loud and were turned down; use smaller volumes"
                )
        return key, path

    def _report_warning(self, what: str) -> None:
        self._context.report(Warned(f"{self._board}: {what}"))


def by_content(piece: Piece, contents: Mapping[str, str]) -> Piece:
    """A piece with the hash of the frames in the place of each segment's key; cards keep theirs."""

    def named(spans: tuple[Span, ...]) -> tuple[Span, ...]:
        return tuple(replace(span, key=contents.get(span.key, span.key)) for span in spans)

    return replace(piece, spans=named(piece.spans), under=named(piece.under))


class Films:
    """The films of one board: the whole film, or one of each clip that is to be rendered, and other takes.

    `wanted` are the segments of the films, and what they continue from; `takes` those of takes that the film
    does not use. They come after it, so that a take that fails stops no film.
    """

    def __init__(
        self,
        job: Job,
        films: Sequence[Job],
        wanted: Sequence[Segment],
        takes: Sequence[Segment],
        context: RenderContext,
    ) -> None:
        self._job = job
        self._wanted = (*wanted, *takes)
        self._context = context
        self._films = [(Film(each, context), {segment.key for segment in each.segments}) for each in films]
        self._encoder = encoding_of(job.plan).codec.encoder
        self._waiting = {segment.key for segment in self._wanted}
        self._needed = {segment.key for segment in wanted}
        shown = set[str]().union(*(keys for _, keys in self._films))
        self._others = [segment for segment in self._wanted if segment.key not in shown]
        """Those that no film shows."""
        self._clips_with: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
        """Clip and take of the others, by key."""
        self._missing_of: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
        """The keys of the others that are not finished, by clip and take."""
        for segment in self._others:
            self._clips_with[segment.key].add((segment.clip, segment.take))
            self._missing_of[segment.clip, segment.take].add(segment.key)
        self._takes = len({(segment.clip, segment.take) for segment in takes if segment.key not in shown})
        self.failure: Exception | None = None
        """Why a take could not be rendered, if one could not."""

    def start(self, segments: int) -> None:
        """Check everything that is needed, and report what will be rendered, of so many segments in all."""
        if self._films:
            check_encoder(self._encoder)
            import_moviepy()  # without ffmpeg, no GPU time is spent
        counts = (segments, self._takes)
        _start(self._job, self._wanted, counts, self._context)
        for film, _ in self._films:
            film.start()

    def add(self, ready: SegmentReady) -> bool:
        """Add a finished segment; returns whether films are written, and takes rendered or failed."""
        key = ready.segment.key
        self._waiting.discard(key)
        for film, keys in self._films:
            if key in keys:
                film.add(ready)
        board = self._job.place.board
        for clip, take in sorted(self._clips_with.get(key, ())):
            self._missing_of[clip, take].discard(key)
            if not self._missing_of[clip, take]:
                self._context.report(ClipDone(board, clip, take))
        if not self._waiting and self._takes and not self.failure:
            self._context.report(TakesDone(board, self._takes))
        return not self._waiting

    def fail(self, key: str, error: Exception) -> bool:
        """Note that a segment failed; returns the same as `add`. Raises the error where a film needs it."""
        if key in self._needed:
            raise error
        self.failure = self.failure or error
        self._waiting.discard(key)
        return not self._waiting

    def cancel(self) -> None:
        """Encode no more pieces."""
        for film, _ in self._films:
            film.cancel()


def report_finished(job: Job, context: RenderContext) -> None:
    """Report a film that is up to date, and protect it from `gc`."""
    protect(job, context.store, None)
    remove_partial_film(job, context.outputs)
    _report_film(job, context, made=False)


def remove_partial_film(job: Job, outputs: Outputs) -> None:
    """Remove the partial film, unless svi-story did not write it."""
    with suppress(OSError):
        outputs.remove(partial_film(job.place.film))


def mixed_environments(rendered: Iterable[tuple[str, Mapping[str, str]]]) -> str:
    """The differences between the environments in which clips were rendered; empty for none."""
    parts = list(rendered)
    names = dict.fromkeys(name for _, environment in parts for name in environment)
    differences: list[str] = []
    for name in names:
        clips: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for clip, environment in parts:
            clips[environment.get(name, UNRECORDED.get(name, "unknown"))][clip] = None
        if len(clips) > 1:
            values = "; ".join(f"{value} ({_enumerated(list(some))})" for value, some in clips.items())
            differences.append(f"{name}: {values}")
    if not differences:
        return ""
    return (
        f"its clips were rendered in different environments, which may be visible: {', '.join(differences)}. "
        "To render one again on this machine: --force CLIP"
    )


def _enumerated(clips: list[str]) -> str:
    first = ", ".join(clips[:MOST_NAMED])
    return first if len(clips) <= MOST_NAMED else f"{first} and {len(clips) - MOST_NAMED} more"


def _start(job: Job, wanted: Sequence[Segment], counts: tuple[int, int], context: RenderContext) -> None:
    """Report what will be rendered, and check everything that it needs. Raises InputError.

    `counts` are those of all segments, and of the takes to render after the film.
    """
    protect(job, context.store, None)
    place = job.place
    missing = [segment for segment in wanted if context.store.state(segment.key) != "cached"]
    segments, takes = counts
    clips = len({segment.clip for segment in wanted})  # with --only fewer than the board has
    context.report(BoardStarted(place.board, place.film, clips, segments, len(missing), takes))
    notes = [note for segment in missing for note in context.executor.notes(segment)]
    for note in dict.fromkeys(notes):
        context.report(Warned(f"{place.board}: {note}"))
    if missing:
        context.executor.check(missing)


def _report_film(job: Job, context: RenderContext, *, made: bool) -> None:
    plan = job.plan
    context.report(FilmDone(job.place.board, job.place.film, plan.frames, round(plan.seconds, 3), made))


def _unreadable_texts(job: Job) -> Iterator[str]:
    """A sentence for every text that has characters in no font, or that does not fit."""
    size, cut = job.plan.size, job.plan.cut
    texts: list[tuple[str, str, Typography]] = []
    for name, each in ((TITLE_CARD, cut.title_card), (END_CARD, cut.end_card)):
        if each:
            texts.append((name, each.text, CARD))
    if cut.burnt:
        texts += [(f"caption of {shot.id}", shot.caption, CAPTION) for shot in job.plan.shots if shot.caption]
    for name, text, kind in texts:
        missing = unseen(text)
        if missing:
            yield f"{name}: {missing}"
        if not fits(text, kind, size.width, size.height):
            what = f"{len(text)} characters have no room in {size}, and end in an ellipsis; shorten the text"
            yield f"{name}: {what}"
