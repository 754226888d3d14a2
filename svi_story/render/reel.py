"""A film in the making: pieces encoded as their segments are finished, and joined."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from svi_story.cut.encode import encode_piece
from svi_story.cut.encoding import piece_inputs
from svi_story.cut.frames import Still
from svi_story.cut.join import join
from svi_story.cut.words import card
from svi_story.errors import RenderError
from svi_story.events import PieceDone, PreviewDone, Warned
from svi_story.plan.keys import key_of
from svi_story.render.edit import cards_of, encoding_of, pieces_of
from svi_story.render.provenance import extras_of
from svi_story.render.segment import ensure

if TYPE_CHECKING:
    from pathlib import Path

    from svi_story.cache.entry import Entry
    from svi_story.cut.extras import Extras
    from svi_story.cut.frames import FrameSource
    from svi_story.cut.timeline import Piece, Span
    from svi_story.plan.keys import Task
    from svi_story.render.jobs import Job
    from svi_story.render.stage import Studio


def preview_of(film: Path) -> Path:
    """Where what exists so far of a film can be watched."""
    return film.with_suffix(".partial.mp4")


def drop_preview(film: Path) -> None:
    """Remove what served until the film was complete; whatever else lies there stays."""
    with suppress(OSError):
        preview_of(film).unlink()


@dataclass
class Reel:
    """The film as far as it goes: the finished segments, and the pieces encoded from them so far."""

    job: Job
    studio: Studio
    entries: dict[str, Entry] = field(default_factory=dict)
    pieces: list[tuple[str, Path]] = field(default_factory=list)
    """Content addresses and files, in film order."""

    def __post_init__(self) -> None:
        self.edit = pieces_of(self.job)
        self.waiting = list(reversed(self.edit))
        self.encoding = encoding_of(self.job)
        self.cards = cards_of(self.job)

    def add(self, task: Task) -> bool:
        """Make sure of one segment, then encode every piece that it completes; whether it was made now."""
        parent = self.entries[task.parent] if task.parent else None
        ensured = ensure(task, parent, self.job.place.board, self.studio)
        self.entries[task.key] = ensured.entry
        while self.waiting and self.waiting[-1].keys <= self.entries.keys() | self.cards.keys():
            self._encode(self.waiting.pop())
        return ensured.fresh

    def refresh_preview(self) -> None:
        """Put what exists so far beside the film's place, watchable, under another name.

        It is a courtesy: where it cannot be written, the work goes on.
        """
        board, preview = self.job.place.board, preview_of(self.job.place.film)
        if not self.pieces:
            return
        try:
            frames = self.join(preview, extras_of(self.job, {}))
        except RenderError as error:
            self.studio.report(Warned(f"{board}: nothing to watch yet: {error}"))
        else:
            self.studio.report(PreviewDone(board, preview, frames))

    def join(self, target: Path, extras: Extras) -> int:
        """Put what exists so far together; returns its frames."""
        return join([file for _, file in self.pieces], self.encoding, target, extras)

    def _encode(self, piece: Piece) -> None:
        """Add the piece's file, encoded once for the same frames: it is addressed by their content."""
        by_content = replace(piece, spans=self._by_content(piece.spans), under=self._by_content(piece.under))
        inputs = piece_inputs(by_content, self.encoding)

        def build(target: Path) -> None:
            start = time.monotonic()
            encode_piece(piece, self._open, self.encoding, target, lambda _done, _all: None)
            spent = round(time.monotonic() - start, 3)
            self.studio.report(PieceDone(self.job.place.board, piece.clip, piece.frames, spent))

        key = key_of(inputs)
        self.pieces.append((key, self.studio.store.make_piece(key, build, inputs)))

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
