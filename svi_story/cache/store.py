"""The store of finished segments and pieces: look up, lock, look up again, build in private, publish.

Same key, same frames. Every entry is complete. A damaged one counts as missing, with a warning.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections import defaultdict
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from svi_story.cache.entry import ENTRY, PIECE, Entry, open_entry, publish, verify_folder, write_manifest
from svi_story.cache.garbage import (
    Garbage,
    delete,
    garbage,
    record_film,
    requested_for,
    usage,
    verify,
)
from svi_story.cache.layout import CHECKPOINT, LATENTS, PIECE_FILE, Layout
from svi_story.cache.quarantine import FORCED, move_to_quarantine, quarantine, quarantined_for
from svi_story.cache.work import TensorFile, WorkFolder, private_folder, warn_of_wait
from svi_story.events import Warned
from svi_story.files import CorruptError, disk, is_writable, locked, sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from svi_story.cache.garbage import Requested, Usage, Verified
    from svi_story.events import Reporter
    from svi_story.plan.keys import Json

State = Literal["cached", "partial", "to-render"]
Kind = Literal["entry", "piece"]
T = TypeVar("T")


class Store:
    """A cache folder. Looking creates nothing, so a plan can look at one that does not exist.

    Any number of processes may use one store at a time. Every method may raise RenderError when the disk
    fails; nothing that was finished is lost by it.

    `fallbacks` are other caches, in which entries and pieces are looked up that this one does not have.
    Nothing is created, moved, touched or deleted in them, and unfinished work in them is not used. What
    `--force` quarantined counts as missing, even if a fallback still has it.

    A cache that is itself read-only can be used too: pieces are then built in a temporary folder, and only
    `work` and `quarantine` raise RenderError.
    """

    def __init__(self, root: Path, report: Reporter, fallbacks: Sequence[Path] = ()) -> None:
        self.layout = Layout(root.absolute())
        self.report = report
        self.fallbacks = tuple(folder.absolute() for folder in fallbacks)
        self._scratch: Layout | None = None
        """Where pieces are built when the cache is read-only; it is deleted with this object."""
        self._building: defaultdict[str, Lock] = defaultdict(Lock)
        """Held by the thread that builds a piece, by key; other threads wait for it quietly."""

    def folder(self, key: str) -> Path:
        """The absolute folder of a key's entry: where it exists, else where it would be created."""
        folders = [layout.entry(key) for layout in self._layouts(key)]
        return next((each for each in folders if os.path.lexists(each / ENTRY.manifest)), folders[0])

    def state(self, key: str) -> State:
        """How far a segment is; its files are not read."""
        if os.path.lexists(self.folder(key) / ENTRY.manifest):
            return "cached"
        work = self.layout.work(key)
        is_started = any(os.path.lexists(work / name) for name in (LATENTS, CHECKPOINT))
        return "partial" if is_started else "to-render"

    def sampled(self, key: str) -> bool:
        """Whether there are finished latents to decode; they are not read."""
        return os.path.lexists(self.layout.work(key) / LATENTS)

    def latents(self, key: str) -> dict[str, NDArray[Any]] | None:
        """The finished latents of a segment that is not stored yet, or None; damaged ones are quarantined."""
        return TensorFile(self.layout, key, self.layout.work(key) / LATENTS, self.report).load()

    def entry(self, key: str) -> Entry | None:
        """A finished segment, every byte verified, or None. A damaged one is quarantined with a warning."""
        return self._look("entry", self._layouts(key), key, open_entry)

    @contextmanager
    def work(self, key: str, given_up: Callable[[], bool] | None = None) -> Iterator[WorkFolder]:
        """Work on a segment, under its lock. Look up the entry again inside: it may be finished by then.

        A thread that nobody can interrupt says by `given_up` when to wait for the lock no longer.
        """
        with private_folder(self.layout, key, self.report, given_up) as private:
            yield WorkFolder(self.layout, key, private, lambda: self.entry(key), self.report)

    def embedding(self, key: str) -> TensorFile:
        """The file of an encoded prompt; a damaged one is quarantined with a warning."""
        return TensorFile(self.layout, key, self.layout.embedding(key), self.report)

    def piece(self, key: str) -> Path | None:
        """The file of an encoded piece of film, every byte verified, or None, as with `entry`."""

        def open_piece(folder: Path, key: str) -> Path:
            verify_folder(folder, PIECE, key)
            return folder / PIECE_FILE

        scratch = [self._scratch] if self._scratch else []
        return self._look("piece", [*self._layouts(key), *scratch], key, open_piece)

    def make_piece(self, key: str, build: Callable[[Path], None], inputs: Mapping[str, Json]) -> Path:
        """The piece of a key, built if it is missing: `build` writes the file under the path it gets.

        The name ends in .mp4; `key` is `key_of(inputs)`. Errors of `build` are raised unchanged.
        """
        if (piece := self.piece(key)) is not None:
            return piece
        layout = self._layout_for_pieces()
        with self._building[key], private_folder(layout, key, self.report) as private:
            if (piece := self.piece(key)) is not None:
                return piece
            build(private / PIECE_FILE)
            assert (private / PIECE_FILE).exists(), "a piece is written under the name that was given"
            target = layout.piece(key)
            with disk(target, "publishing a piece"):
                sync(private / PIECE_FILE)
                write_manifest(private, PIECE, key, inputs, {})
                theirs = publish(private, target, lambda: self.piece(key))
            return theirs or target / PIECE_FILE

    def quarantine(self, key: str, reason: str) -> bool:
        """Move everything of a key to quarantine, unfinished work too; returns whether there was anything.

        Waits for a process that is rendering it.
        """
        layout = self.layout
        things = {"entry": layout.entry(key), "piece": layout.piece(key), "work": layout.work(key)}
        in_fallback = self.folder(key) != layout.entry(key)
        if not in_fallback and not any(os.path.lexists(path) for path in things.values()):
            return False
        layout.create()
        with (
            locked(layout.lock(key), warn_of_wait(key, self.report)),
            disk(layout.quarantine, f"quarantining {key[:12]}"),
        ):
            moved = move_to_quarantine(layout, key, reason, things, even_if_missing=in_fallback)
            self._forced = quarantined_for(layout, FORCED)
            return moved is not None

    def pending_forced(self, keys: Iterable[str]) -> frozenset[str]:
        """Of these keys, those that `--force` quarantined and that have not been rendered again yet."""
        missing = {key for key in keys if self.state(key) != "cached"}
        return frozenset(missing & quarantined_for(self.layout, FORCED)) if missing else frozenset()

    def remember_film(
        self,
        film: Path,
        board: Path,
        keys: Iterable[str],
        pieces: Iterable[str] | None,
        requested: Iterable[Requested] = (),
    ) -> None:
        """Record what a film uses, or will use: `gc` keeps it while the film or its board exists.

        None keeps the pieces that are recorded. `requested` are the segments of all takes: `gc` keeps those
        that were requested earlier too, see `record_film`. In a read-only cache nothing is recorded, as `gc`
        deletes nothing there.
        """
        if not self._is_read_only:
            record_film(self.layout, film, board, keys, pieces, requested)

    def requested(self, film: Path) -> tuple[Requested, ...]:
        """Every segment of every take that was ever requested for a film, where there were several takes."""
        return requested_for(self.layout, film)

    def usage(self) -> Iterator[Usage]:
        """What is in the cache; files are not read."""
        return usage(self.layout, self.report)

    def verify(self) -> Iterator[Verified]:
        """Every entry and piece, every byte verified; damaged ones are quarantined with a warning."""
        return verify(self.layout, self.report)

    def garbage(
        self, now: float, min_age: timedelta = timedelta(days=7), *, takes: bool = False
    ) -> list[Garbage]:
        """What may be deleted at `now` (seconds since the epoch). It stays until `delete`.

        With `takes`, takes that no film uses are garbage too.
        """
        return garbage(self.layout, self.report, now, min_age, takes=takes)

    def delete(self, items: Iterable[Garbage], *, takes: bool = False) -> list[Garbage]:
        """Delete what still is garbage; returns what was deleted. `takes` is as in `garbage`."""
        return delete(self.layout, self.report, items, takes=takes)

    def _layouts(self, key: str) -> Iterator[Layout]:
        """The caches in which a key is looked up."""
        yield self.layout
        if self.fallbacks and key not in self._forced:
            yield from map(Layout, self.fallbacks)

    @cached_property
    def _forced(self) -> frozenset[str]:
        return quarantined_for(self.layout, FORCED)

    @cached_property
    def _is_read_only(self) -> bool:
        return not is_writable(self.layout.root)

    def _layout_for_pieces(self) -> Layout:
        if not self._is_read_only:
            return self.layout
        if self._scratch is None:
            folder = tempfile.mkdtemp(prefix="svi-story-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._scratch = Layout(Path(folder))
        return self._scratch

    def _look(
        self, kind: Kind, layouts: Iterable[Layout], key: str, open_folder: Callable[[Path, str], T]
    ) -> T | None:
        """What `open_folder` returns for the first of a key's folders that is not damaged."""
        for layout in layouts:
            folder = layout.entry(key) if kind == "entry" else layout.piece(key)
            if not os.path.lexists(folder):
                continue
            is_fallback = layout.root in self.fallbacks
            try:
                with disk(folder, "reading the cache"):
                    found = open_folder(folder, key)
            except CorruptError as error:
                what = f"{folder} is damaged: {error}"
                if is_fallback:
                    self.report(Warned(f"{what}; it is ignored"))
                elif os.path.lexists(folder):  # else another process moved or deleted it meanwhile
                    quarantine(layout, self.report, key, what, {kind: folder})
                continue
            if not is_fallback:
                with suppress(OSError):  # the time of last use is for `gc` only, and a cache may be read-only
                    os.utime(folder)
            return found
        return None
