"""The live preview: what exists so far of the clip being rendered, as a small animation beside the film.

A thread of its own writes it, always the newest pictures only, so that a slow disk slows nothing. A preview
that cannot be written is left out.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Thread
from typing import TYPE_CHECKING

from PIL import Image

from svi_story.errors import StoryError
from svi_story.events import BoardFailed, ClipDone, FilmDone, TakesDone
from svi_story.files import atomic_file, read_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from svi_story.engines.base import Engine, Frame
    from svi_story.events import Event, Reporter
    from svi_story.plan.model import Segment

    Show = Callable[[Segment, Sequence[Frame]], None]

SUFFIX = ".live.webp"
MARK = b"<!-- svi-story: live preview -->"
"""In the metadata of a preview."""
LARGEST = 2**26
WIDTH = 240
"""Pixels, at most."""
FRAMES_APART = 4
"""Every fourth frame of a segment is shown; a frame of latents of today's models stands for four, too."""
FIRST_STEPS = (2, 4)
"""After these steps the preview is always updated, unless previews are off."""
DRAWING_SECONDS = 2.0
"""Between two updates while frames are decoded."""
CLOSE_SECONDS = 5.0
"""How long to wait at the end for a slow disk."""


def live_preview(film: Path) -> Path:
    """Where a film's live preview is."""
    return film.with_suffix(SUFFIX)


@dataclass(frozen=True)
class Previews:
    """Decides when a segment being rendered is shown, and hands pictures of it to `show`. Never fails.

    `every` is the number of steps between two previews, 0 for none.
    """

    every: int
    show: Show

    def sampled(self, segment: Segment, engine: Engine, step: int) -> None:
        """Show what the engine predicts, if it is time for that."""
        if self.every and (step in FIRST_STEPS or step % self.every == 0):
            with suppress(Exception):
                self.show(segment, engine.preview())

    def drawing(self, segment: Segment, frames: Iterator[Frame]) -> Iterator[Frame]:
        """The same frames; they are shown as they come."""
        some: list[Frame] = []
        shown = time.monotonic()
        for number, frame in enumerate(frames):
            yield frame
            if self.every and number % FRAMES_APART == 0:
                with suppress(Exception):
                    some.append(_scaled(frame, _size(segment)))
                    if time.monotonic() - shown > DRAWING_SECONDS:
                        shown = time.monotonic()
                        self.show(segment, tuple(some))
        with suppress(Exception):
            self.show(segment, tuple(some))


@dataclass(frozen=True)
class SegmentShown:
    """What a worker sends of a segment that it renders, for the preview of its film."""

    segment: Segment
    frames: Sequence[Frame]


@dataclass
class _Animation:
    """The clip that a preview shows, as far as it is rendered."""

    parts: dict[int, Sequence[Frame]]
    """Pictures, by segment."""
    seconds: float
    """How long each picture is shown."""
    size: tuple[int, int]


class LivePreview:
    """Shows segments in the previews of their films. Also a reporter: previews of finished films are removed.

    `films` are the films by board.
    """

    def __init__(self, films: Mapping[Path, Path], report: Reporter) -> None:
        self._films = films
        self._report = report
        self._clips: dict[tuple[Path, str, int], _Animation] = {}
        """Clips being rendered, by board, clip and take: with several workers, several at a time."""
        self._pending: dict[Path, _Animation | None] = {}
        """What the thread will write, by board; None: remove the preview."""
        self._changed = Condition()
        self._closing = False
        self._thread = Thread(target=self._write_all, name="live preview", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Pass an event on; forget clips that are done, and remove the preview of a film that is."""
        if isinstance(event, ClipDone | FilmDone | TakesDone | BoardFailed):
            clip = (event.clip, event.take) if isinstance(event, ClipDone) else None
            with self._changed:
                done = [name for name in self._clips if name[0] == event.board and clip in (None, name[1:])]
                for name in done:
                    del self._clips[name]
                if clip is None:
                    self._put(event.board, None)
        self._report(event)

    def show(self, segment: Segment, frames: Sequence[Frame]) -> None:
        """Show a segment, with what is known of its clip."""
        if not frames or segment.board not in self._films:
            return
        name = (segment.board, segment.clip, segment.take)
        with self._changed:
            before = self._clips.get(name)
            parts = {**(before.parts if before else {}), segment.index: frames}
            self._clips[name] = _Animation(parts, float(FRAMES_APART / segment.fps), _size(segment))
            self._put(segment.board, self._clips[name])

    def close(self) -> None:
        """Stop writing, and remove every preview."""
        with self._changed:
            self._pending = dict.fromkeys(self._films)
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)

    def _put(self, board: Path, animation: _Animation | None) -> None:
        with self._changed:
            self._pending[board] = animation
            self._changed.notify()

    def _write_all(self) -> None:
        """The thread: write whatever is newest."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closing)
                if not self._pending:
                    return
                board = next(iter(self._pending))
                animation = self._pending.pop(board)
            if board in self._films:
                with suppress(OSError, StoryError, ValueError):
                    _write(live_preview(self._films[board]), animation)


def _write(path: Path, animation: _Animation | None) -> None:
    """Write a preview, or remove it; a file that svi-story did not write is kept."""

    def may_be_replaced(_temporary: Path) -> bool:
        return is_ours(path) or not os.path.lexists(path)

    if animation is None:
        if is_ours(path):
            path.unlink()
        return
    pictures = [
        Image.fromarray(frame).resize(animation.size, Image.Resampling.BILINEAR)
        for index in sorted(animation.parts)
        for frame in animation.parts[index]
    ]
    with atomic_file(path, may_be_replaced) as temporary:
        first, *rest = pictures
        first.save(
            temporary,
            format="WEBP",
            save_all=True,
            append_images=rest,
            duration=max(round(1000 * animation.seconds), 20),
            loop=0,
            quality=60,
            method=0,
            xmp=MARK,
        )


def is_ours(path: Path) -> bool:
    """Whether the file is a live preview. Its metadata show that; previews are not recorded in the ledger."""
    try:
        return not path.is_symlink() and MARK in read_regular(path, LARGEST)
    except OSError:
        return False


def _size(segment: Segment) -> tuple[int, int]:
    width, height = segment.size.width, segment.size.height
    scale = min(WIDTH / width, 1.0)
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _scaled(frame: Frame, size: tuple[int, int]) -> Frame:
    """A smaller copy of a frame, as full frames would take much memory."""
    import numpy as np

    picture = Image.fromarray(frame)
    factor = max(picture.width // size[0], 1)
    return np.asarray(picture.reduce(factor))
