"""A film in the making: pieces encoded as their segments are finished, and joined."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from itertools import count, takewhile
from typing import TYPE_CHECKING

from svi_story.cut.encode import encode_piece
from svi_story.cut.encoding import piece_inputs
from svi_story.cut.frames import Still
from svi_story.cut.join import join
from svi_story.cut.words import card
from svi_story.errors import StoryError
from svi_story.events import PieceDone, PreviewDone, Warned
from svi_story.plan.keys import key_of
from svi_story.render.edit import cards_of, encoding_of, pieces_of
from svi_story.render.jobs import PARTIAL
from svi_story.render.provenance import extras_of

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from svi_story.cache.entry import Entry
    from svi_story.cache.outputs import Outputs
    from svi_story.cut.extras import Extras
    from svi_story.cut.frames import FrameSource
    from svi_story.cut.timeline import Piece, Span
    from svi_story.render.jobs import Job
    from svi_story.render.stage import Studio


def preview_of(film: Path) -> Path:
    """Where what exists so far of a film can be watched."""
    return film.with_suffix(PARTIAL)


def drop_preview(film: Path, outputs: Outputs) -> None:
    """Remove what served until the film was complete; whatever else lies there stays."""
    with suppress(OSError):
        outputs.remove(preview_of(film))


class Reel:
    """The film as far as it goes: the finished segments, and the pieces encoded from them so far.

    Pieces are encoded by the studio's encoder, beside the work that goes on; what fails there is raised by
    `join`.
    """

    def __init__(self, job: Job, studio: Studio) -> None:
        self.job = job
        self.studio = studio
        self.entries: dict[str, Entry] = {}
        self.pieces = pieces_of(job)
        self.encoding = encoding_of(job)
        self.cards = cards_of(job)
        self._encoded: dict[int, Future[tuple[str, Path]]] = {}
        """By place in the film."""

    def add(self, entry: Entry) -> None:
        """Take a finished segment, and start to encode every piece that it completes."""
        self.entries[entry.key] = entry
        there = self.entries.keys() | self.cards.keys()
        for place, piece in enumerate(self.pieces):
            if place not in self._encoded and piece.keys <= there:
                self._encoded[place] = self.studio.encoder.submit(self._encode, piece)

    def refresh_preview(self) -> None:
        """Put what exists so far beside the film's place, watchable, once it is encoded.

        It is a courtesy: where it cannot be written, the work goes on.
        """
        self.studio.encoder.submit(self._preview)

    def drop(self) -> None:
        """Encode no more."""
        for piece in self._encoded.values():
            piece.cancel()

    def _preview(self) -> None:
        board, preview = self.job.place.board, preview_of(self.job.place.film)
        publish = self.studio.outputs.file
        places = takewhile(lambda place: place in self._encoded and self._encoded[place].done(), count())
        try:
            files = [self._encoded[place].result()[1] for place in places]
            frames = join(files, self.encoding, preview, extras_of(self.job, {}), publish) if files else 0
        except StoryError as error:
            self.studio.report(Warned(f"{board}: nothing to watch yet: {error}"))
        else:
            if frames:
                self.studio.report(PreviewDone(board, preview, frames))

    def join(self, target: Path, extras: Extras) -> tuple[str, ...]:
        """Put the film in place when its last piece is encoded; returns the pieces' content addresses."""
        encoded = [self._encoded[place].result() for place in range(len(self.pieces))]
        frames = join([file for _, file in encoded], self.encoding, target, extras, self.studio.outputs.file)
        assert frames == self.job.plan.frames, "the edit list holds every frame of the plan"
        return tuple(key for key, _ in encoded)

    def _encode(self, piece: Piece) -> tuple[str, Path]:
        """A piece's content address and file, encoded once for the same frames."""
        by_content = replace(piece, spans=self._by_content(piece.spans), under=self._by_content(piece.under))
        inputs = piece_inputs(by_content, self.encoding)

        def build(target: Path) -> None:
            start = time.monotonic()
            encode_piece(piece, self._open, self.encoding, target, lambda _done, _all: None)
            spent = round(time.monotonic() - start, 3)
            self.studio.report(PieceDone(self.job.place.board, piece.clip, piece.frames, spent))

        key = key_of(inputs)
        return key, self.studio.store.make_piece(key, build, inputs)

    def _by_content(self, spans: tuple[Span, ...]) -> tuple[Span, ...]:
        """The same spans, named by what is in their frames."""
        return tuple(
            span if span.key in self.cards else replace(span, key=self.entries[span.key].frames_sha256)
            for span in spans
        )

    def _open(self, key: str) -> FrameSource:
        if key not in self.cards:
            return self.entries[key].frames()
        shown = self.cards[key]
        return Still(card(shown.text, self.encoding.width, self.encoding.height), shown.frames)
