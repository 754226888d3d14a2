"""The store of finished segments and pieces: look up, lock, look up again, build aside, publish.

Same key, same frames; presence means complete. What is found damaged is a miss with a warning.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeVar

from svi_story.cache.entry import ENTRY, PIECE, Entry, open_entry, publish, seal, unseal
from svi_story.cache.garbage import Garbage, delete, garbage, remember, usage, verify
from svi_story.cache.layout import CHECKPOINT, LATENTS, PIECE_FILE, Layout
from svi_story.cache.quarantine import FORCED, quarantine, set_aside, set_aside_for
from svi_story.cache.work import Kept, Work, bench, kept_embedding, waiting
from svi_story.files import CorruptError, disk, locked, sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from svi_story.cache.garbage import Checked, Usage
    from svi_story.events import Reporter
    from svi_story.plan.keys import Json

State = Literal["cached", "partial", "to-render"]
T = TypeVar("T")


class Store:
    """A cache folder. Looking creates nothing, so a plan can look at one that does not exist.

    Any number of processes may use one store at a time. Every method may raise RenderError when the disk
    refuses; nothing that was finished is lost by it.
    """

    def __init__(self, root: Path, report: Reporter) -> None:
        self.layout = Layout(root.absolute())
        self.report = report

    def folder(self, key: str) -> Path:
        """The absolute folder of a key's entry, whether it exists or not."""
        return self.layout.entry(key)

    def state(self, key: str) -> State:
        """What is there for a key, by presence only."""
        if os.path.lexists(self.folder(key) / ENTRY.manifest):
            return "cached"
        work = self.layout.work(key)
        begun = any(os.path.lexists(work / name) for name in (LATENTS, CHECKPOINT))
        return "partial" if begun else "to-render"

    def sampled(self, key: str) -> bool:
        """Whether finished latents wait to be decoded, by presence only."""
        return os.path.lexists(self.layout.work(key) / LATENTS)

    def entry(self, key: str) -> Entry | None:
        """A finished segment, every byte verified, or None. A damaged one is set aside with a warning."""
        return self._look("entry", self.folder(key), key, open_entry)

    @contextmanager
    def work(self, key: str) -> Iterator[Work]:
        """Work on a segment, under its lock; look up the entry again inside: waiting may have made it."""
        with bench(self.layout, key, self.report) as private:
            yield Work(self.layout, key, private, lambda: self.entry(key), self.report)

    def embedding(self, key: str) -> Kept:
        """Where an encoded prompt is kept; a damaged one is set aside with a warning."""
        return kept_embedding(self.layout, key, self.report)

    def piece(self, key: str) -> Path | None:
        """The file of an encoded piece of film, every byte verified, or None, as with `entry`."""
        return self._look("piece", self.layout.piece(key), key, _open_piece)

    def make_piece(self, key: str, build: Callable[[Path], None], inputs: Mapping[str, Json]) -> Path:
        """The piece of a key, built if need be: `build` writes the whole file under the name it gets.

        The name ends in .mp4; `key` is `key_of(inputs)`. What `build` raises comes as it is.
        """
        if (piece := self.piece(key)) is not None:
            return piece
        with bench(self.layout, key, self.report) as private:
            if (piece := self.piece(key)) is not None:
                return piece
            build(private / PIECE_FILE)
            assert (private / PIECE_FILE).exists(), "a piece is written under the name that was given"
            target = self.layout.piece(key)
            with disk(target, "publishing a piece"):
                sync(private / PIECE_FILE)
                seal(private, PIECE, key, inputs, {})
                theirs = publish(private, target, lambda: self.piece(key))
            return theirs or target / PIECE_FILE

    def set_aside(self, key: str, reason: str) -> bool:
        """Move what there is for a key out of the way, unfinished work too; whether there was anything.

        Waits for whoever is working on it.
        """
        layout = self.layout
        things = {"entry": layout.entry(key), "piece": layout.piece(key), "work": layout.work(key)}
        if not any(os.path.lexists(path) for path in things.values()):
            return False
        with (
            locked(layout.lock(key), waiting(key, self.report)),
            disk(layout.set_aside, f"setting {key[:12]} aside"),
        ):
            return set_aside(layout, key, reason, things) is not None

    def owed(self, keys: Iterable[str]) -> frozenset[str]:
        """Of these keys, those that were set aside to be made again and have not been yet."""
        missing = {key for key in keys if self.state(key) != "cached"}
        return frozenset(missing & set_aside_for(self.layout, FORCED)) if missing else frozenset()

    def remember_film(
        self, film: Path, board: Path, keys: Iterable[str], pieces: Iterable[str] | None
    ) -> None:
        """Record what a film is, or will be, made of: `gc` spares it while the film or its board exists.

        No pieces (None) means those it had.
        """
        remember(self.layout, film, board, keys, pieces)

    def usage(self) -> Iterator[Usage]:
        """What is in the cache, by presence."""
        return usage(self.layout, self.report)

    def verify(self) -> Iterator[Checked]:
        """Every entry and piece, every byte verified; damaged ones are set aside with a warning."""
        return verify(self.layout, self.report)

    def garbage(self, now: float, min_age: timedelta = timedelta(days=7)) -> list[Garbage]:
        """What may be deleted at `now` (seconds since the epoch). It stays until `delete`."""
        return garbage(self.layout, self.report, now, min_age)

    def delete(self, items: Iterable[Garbage]) -> list[Garbage]:
        """Delete what still is garbage; returns what was deleted."""
        return delete(self.layout, self.report, items)

    def _look(self, kind: str, folder: Path, key: str, open_folder: Callable[[Path, str], T]) -> T | None:
        if not os.path.lexists(folder):
            return None
        try:
            with disk(folder, "reading the cache"):
                found = open_folder(folder, key)
        except CorruptError as error:
            if os.path.lexists(folder):  # else somebody set it aside or deleted it while we read
                quarantine(self.layout, self.report, key, f"{folder} is damaged: {error}", {kind: folder})
            return None
        with suppress(OSError):  # the time of last use is for `gc` only, and a cache may be read-only
            os.utime(folder)
        return found


def _open_piece(folder: Path, key: str) -> Path:
    unseal(folder, PIECE, key)
    return folder / PIECE_FILE
