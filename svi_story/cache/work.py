"""A segment or piece under way: what is known so far, safe from a kill at any moment."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from svi_story.cache.entry import ENTRY, Entry, publish, seal
from svi_story.cache.frames import write_frames
from svi_story.cache.layout import CHECKPOINT, FRAMES, LATENTS, names
from svi_story.cache.quarantine import quarantine
from svi_story.cache.tensors import encode, load_tensors, save_tensors
from svi_story.errors import RenderError
from svi_story.events import Warned
from svi_story.files import (
    CorruptError,
    Hold,
    disk,
    is_temp_of_this_host,
    locked,
    make_folder,
    remove,
    temp_name,
    write_new,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from fractions import Fraction
    from pathlib import Path

    from numpy.typing import NDArray

    from svi_story.cache.frames import Frame
    from svi_story.cache.layout import Layout
    from svi_story.cache.tensors import Tensors
    from svi_story.events import Reporter
    from svi_story.plan.keys import Json


@contextmanager
def bench(layout: Layout, key: str, report: Reporter) -> Iterator[Path]:
    """A new folder of one's own inside `work/<key>/`, under the key's lock; gone afterwards.

    What is published is built there, so that even a second writer (where locks do not work) can waste work
    but never change a byte of ours.
    """
    layout.create()
    with locked(layout.lock(key), waiting(key, report)) as hold:
        folder = layout.work(key)
        private = folder / temp_name()
        if os.path.lexists(folder) and not folder.is_dir():
            quarantine(layout, report, key, f"{folder} is not a folder", {"work": folder})
        try:
            with disk(folder, "starting work"):
                _make(private)
            if hold is Hold.HELD:
                _sweep(folder, private)
            yield private
        finally:
            shutil.rmtree(private, ignore_errors=True)
            with suppress(OSError):  # not empty: there is something to go on with, or somebody at work
                folder.rmdir()


def _make(private: Path) -> None:
    """Make a folder in a work folder, which another process may remove while it is empty."""
    for last_attempt in (False, False, True):
        try:
            make_folder(private)
        except FileNotFoundError:
            if last_attempt:
                raise
        else:
            return


def waiting(key: str, report: Reporter) -> Callable[[], None]:
    """What to do when another process holds a key's lock: say so."""
    message = f"another process is making {key[:12]}; waiting for it (interrupting this one loses nothing)"
    return lambda: report(Warned(message))


def _sweep(folder: Path, private: Path) -> None:
    """Remove what killed processes left half-written."""
    for path in names(folder):
        if is_temp_of_this_host(path.name) and path != private:
            with suppress(OSError):
                remove(path)


class Kept:
    """Tensors of a work folder under one name. The checkpoint's satisfies `engines.base.Checkpoint`."""

    def __init__(self, path: Path, key: str, on_damage: Callable[[Path, str], None]) -> None:
        self._path = path
        self._note = {"key": key}
        self._on_damage = on_damage

    def load(self) -> dict[str, NDArray[Any]] | None:
        """The newest state that was saved whole, or None; a damaged one is set aside with a warning."""
        try:
            return load_tensors(self._path, self._note)
        except CorruptError as error:
            self._on_damage(self._path, str(error))
            return None

    def save(self, state: Tensors) -> None:
        """Replace the state, durably and atomically. RenderError when the disk refuses."""
        with disk(self._path, "keeping work"):
            make_folder(self._path.parent)
        save_tensors(self._path, state, self._note)

    def drop(self) -> None:
        """Remove the state; it is no longer needed."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def kept_embedding(layout: Layout, key: str, report: Reporter) -> Kept:
    """An encoded prompt's place; its folder is made when something is saved."""

    def on_damage(path: Path, reason: str) -> None:
        quarantine(layout, report, key, reason, {path.name: path})

    return Kept(layout.embedding(key), key, on_damage)


class Work:
    """One segment under way: checkpoint, then latents, then frames, then its entry."""

    def __init__(
        self,
        layout: Layout,
        key: str,
        private: Path,
        look: Callable[[], Entry | None],
        report: Reporter,
    ) -> None:
        self.key = key
        self._look = look
        self._target = layout.entry(key)
        self._private = private
        self._frame_count = 0

        def on_damage(path: Path, reason: str) -> None:
            quarantine(layout, report, key, reason, {path.name: path})

        folder = layout.work(key)
        self.checkpoint = Kept(folder / CHECKPOINT, key, on_damage)
        """Where the engine keeps the unfinished state of this segment."""
        self._latents = Kept(folder / LATENTS, key, on_damage)

    def latents(self) -> dict[str, NDArray[Any]] | None:
        """The finished latents of an earlier attempt, or None; damaged ones are set aside with a warning."""
        latents = self._latents.load()
        if latents is not None:
            self._put_latents(latents)
        return latents

    def save_latents(self, latents: Tensors) -> None:
        """Keep the finished latents, before decoding; the checkpoint has served its turn."""
        self._latents.save(latents)
        self._put_latents(latents)
        self.checkpoint.drop()

    def write_frames(self, frames: Iterable[Frame], fps: Fraction, expected: int) -> None:
        """Keep the decoded frames. RenderError when they are not `expected`, or the disk refuses."""
        path = self._private / FRAMES
        with disk(path, "writing frames"):
            path.unlink(missing_ok=True)
        self._frame_count = write_frames(path, islice(frames, expected + 1), fps)
        if self._frame_count != expected:
            got = "more" if self._frame_count > expected else f"only {self._frame_count}"
            raise RenderError(f"the engine made {got} of {expected} frames of {self.key[:12]}; this is a bug")

    def publish(self, inputs: Mapping[str, Json], notes: Mapping[str, Json]) -> Entry:
        """Make an entry of latents and frames, and drop the work. Somebody else's, if it was there first."""
        assert all((self._private / name).exists() for name in ENTRY.files), "latents and frames come first"
        with disk(self._target, "publishing a finished segment"):
            about: dict[str, Json] = {"frames": self._frame_count, "notes": dict(notes)}
            manifest = seal(self._private, ENTRY, self.key, inputs, about)
            theirs = publish(self._private, self._target, self._look)
        self._latents.drop()
        self.checkpoint.drop()
        return theirs or Entry(self.key, self._target, manifest)

    def _put_latents(self, latents: Tensors) -> None:
        """Latents of our own to publish with the frames made of them: the kept ones may be replaced."""
        path = self._private / LATENTS
        with disk(path, "writing latents"):
            path.unlink(missing_ok=True)
            write_new(path, encode(latents, {"key": self.key}))
