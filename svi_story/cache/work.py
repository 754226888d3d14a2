"""A segment or piece in progress: its checkpoint, latents and frames survive a kill at any moment."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from svi_story.cache.entry import ENTRY, Entry, publish, write_manifest
from svi_story.cache.frames import write_frames
from svi_story.cache.layout import CHECKPOINT, FRAMES, LATENTS, names
from svi_story.cache.quarantine import quarantine
from svi_story.cache.tensors import encode, load_tensors, save_tensors
from svi_story.errors import RenderError
from svi_story.events import Warned
from svi_story.files import (
    CorruptError,
    LockState,
    disk,
    is_temp_of_this_host,
    locked,
    make_folder,
    remove,
    temp_name,
    write_atomic,
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
def private_folder(
    layout: Layout, key: str, report: Reporter, given_up: Callable[[], bool] | None = None
) -> Iterator[Path]:
    """A new folder inside `work/<key>/` in which to build, under the key's lock; removed afterwards.

    Once `given_up` is true, no lock is waited for any more: CancelledError. Where locks do not work, a second
    process wastes time, but cannot change what this one builds.
    """
    layout.create()
    with locked(layout.lock(key), warn_of_wait(key, report), given_up) as lock_state:
        folder = layout.work(key)
        private = folder / temp_name()
        if os.path.lexists(folder) and not folder.is_dir():
            quarantine(layout, report, key, f"{folder} is not a folder", {"work": folder})
        try:
            with disk(folder, "starting work"):
                for is_last_attempt in (False, False, True):
                    try:
                        make_folder(private)
                        break
                    except FileNotFoundError:  # another process removes the work folder while it is empty
                        if is_last_attempt:
                            raise
            if lock_state is LockState.HELD:  # other folders are those of killed processes
                for path in names(folder):
                    if is_temp_of_this_host(path.name) and path != private:
                        with suppress(OSError):
                            remove(path)
            yield private
        finally:
            shutil.rmtree(private, ignore_errors=True)
            with suppress(OSError):  # not empty: there is something to resume, or another process at work
                folder.rmdir()


def warn_of_wait(key: str, report: Reporter) -> Callable[[], None]:
    """Warns that another process holds a key's lock."""
    message = f"another process is rendering {key[:12]}; waiting for it (interrupting this one loses nothing)"
    return lambda: report(Warned(message))


class TensorFile:
    """Tensors in a file of the cache; implements `engines.base.Checkpoint`."""

    def __init__(self, layout: Layout, key: str, path: Path, report: Reporter) -> None:
        self._layout, self._key, self._path, self._report = layout, key, path, report

    def load(self) -> dict[str, NDArray[Any]] | None:
        """The last state that was saved, or None; a damaged one is quarantined with a warning."""
        try:
            return load_tensors(self._path, {"key": self._key})
        except CorruptError as error:
            quarantine(self._layout, self._report, self._key, str(error), {self._path.name: self._path})
            return None

    def save(self, state: Tensors) -> None:
        """Replace the state, durably and atomically; its folder is created. RenderError when that fails."""
        with disk(self._path, "saving work in progress"):
            make_folder(self._path.parent)
        save_tensors(self._path, state, {"key": self._key})

    def drop(self) -> None:
        """Remove the state."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


class WorkFolder:
    """One segment in progress: checkpoint, then latents, then frames, then its entry."""

    def __init__(
        self,
        layout: Layout,
        key: str,
        private: Path,
        look_up: Callable[[], Entry | None],
        report: Reporter,
    ) -> None:
        self.key = key
        self._look_up = look_up
        self._target = layout.entry(key)
        self._private = private
        self._frame_count = 0
        folder = layout.work(key)
        self.checkpoint = TensorFile(layout, key, folder / CHECKPOINT, report)
        """The state of sampling."""
        self._latents = TensorFile(layout, key, folder / LATENTS, report)

    def latents(self) -> dict[str, NDArray[Any]] | None:
        """The latents that an earlier attempt finished, or None; damaged ones are quarantined."""
        latents = self._latents.load()
        if latents is not None:
            self._copy_latents(latents)
        return latents

    def save_latents(self, latents: Tensors) -> None:
        """Save the finished latents, before decoding, and remove the checkpoint."""
        self._latents.save(latents)
        self._copy_latents(latents)
        self.checkpoint.drop()

    def write_frames(self, frames: Iterable[Frame], fps: Fraction, expected: int) -> None:
        """Write the decoded frames. RenderError for another number than `expected`, or if the disk fails."""
        path = self._private / FRAMES
        with disk(path, "writing frames"):
            path.unlink(missing_ok=True)
        self._frame_count = write_frames(path, islice(frames, expected + 1), fps)
        if self._frame_count != expected:
            got = "more" if self._frame_count > expected else f"only {self._frame_count}"
            raise RenderError(
                f"the engine returned {got} of {expected} frames of {self.key[:12]}; this is a bug"
            )

    def publish(self, inputs: Mapping[str, Json], notes: Mapping[str, Json]) -> Entry:
        """Publish latents and frames as an entry, and remove the work. Another process may be faster."""
        assert all((self._private / name).exists() for name in ENTRY.files), "latents and frames come first"
        with disk(self._target, "publishing a finished segment"):
            about: dict[str, Json] = {"frames": self._frame_count, "notes": dict(notes)}
            manifest = write_manifest(self._private, ENTRY, self.key, inputs, about)
            theirs = publish(self._private, self._target, self._look_up)
        self._latents.drop()
        self.checkpoint.drop()
        return theirs or Entry(self.key, self._target, manifest)

    def _copy_latents(self, latents: Tensors) -> None:
        """Copy the latents to be published with their frames: another process may replace the saved ones."""
        write_atomic(self._private / LATENTS, encode(latents, {"key": self.key}), "writing latents")
