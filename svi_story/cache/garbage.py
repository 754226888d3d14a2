"""What nothing needs any more, and deleting it."""

from __future__ import annotations

import os
import secrets
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.cache.films import gone, serves, used
from svi_story.cache.layout import CHECKPOINT, LATENTS, TRASH, names, own_cache
from svi_story.cache.locks import Hold, lock_if_free
from svi_story.cache.outputs import written_and_gone
from svi_story.files import TEMP, disk, measure, remove, sync

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import timedelta
    from pathlib import Path

    from svi_story.cache.films import Used
    from svi_story.cache.layout import Layout
    from svi_story.events import Reporter


@dataclass(frozen=True)
class Garbage:
    """Something that nothing needs."""

    path: Path
    bytes: int
    why: str
    last_used: float
    """Seconds since the epoch."""
    key: str = ""
    """The key whose lock protects it, if any."""


def garbage(layout: Layout, report: Reporter, now: float, min_age: timedelta) -> list[Garbage]:
    """What may be deleted: unused for `min_age`, no film's, and nobody working on it."""
    in_use = used(layout, report)
    old = now - min_age.total_seconds()
    unused = [item for item in _candidates(layout) if not _is_needed(layout, item, in_use)]
    found = [_garbage(path, "half deleted") for path in layout.trash()]
    found += [item for item in unused if item.last_used <= old and not _is_worked_on(layout, item.key)]
    whole = {item.path for item in found}
    return [item for item in found if whole.isdisjoint(item.path.parents)]


def delete(layout: Layout, report: Reporter, items: Iterable[Garbage]) -> list[Garbage]:
    """Delete what still is garbage; returns what was. Killed half-way, it leaves no half of an entry."""
    in_use = used(layout, report)
    return [item for item in items if not _is_needed(layout, item, in_use) and _delete(layout, item)]


def _candidates(layout: Layout) -> Iterator[Garbage]:
    for folder in (*layout.entries(), *layout.pieces()):
        yield _garbage(folder, "no film is made of it", folder.name)
    for folder in layout.works():
        yield _garbage(folder, "unfinished, or finished elsewhere", folder.name)
    for folder in layout.bundles():
        yield _garbage(folder, "an unpacked bundle", folder.name)
    for path in layout.locks():
        yield _garbage(path, "a lock that nobody holds", path.stem)
    yield from _unkeyed(layout)


def _unkeyed(layout: Layout) -> Iterator[Garbage]:
    works = set(layout.works())
    for path in layout.embeddings():
        yield _garbage(path, "a prompt that was not met again")
    for path in names(layout.set_aside):
        yield _garbage(path, "set aside")
    for path in layout.temps():
        yield _garbage(path, "half written", path.parent.name if path.parent in works else "")
    for path in gone(layout):
        yield _garbage(path, "the record of a film that is gone")
    for path in written_and_gone(layout):
        yield _garbage(path, "the note about a file that is gone")


def _garbage(path: Path, why: str, key: str = "") -> Garbage:
    size, last_used = measure(path)
    return Garbage(path, size, why, last_used, key)


def _is_needed(layout: Layout, item: Garbage, in_use: Used) -> bool:
    """Whether a film is, or is to be, made of it."""
    if item.key and item.path == layout.bundle(item.key):
        return serves(own_cache(item.path))
    if item.key not in in_use or item.path.name.startswith(TEMP):
        return False
    if item.path == layout.work(item.key) and not _holds_work(item.path):
        return False
    finished = layout.entry(item.key).exists() or layout.piece(item.key).exists()
    return not (finished and item.path == layout.work(item.key))  # killed between publishing and tidying up


def _holds_work(folder: Path) -> bool:
    """Whether there is something in a work folder to go on with."""
    return any(os.path.lexists(folder / name) for name in (LATENTS, CHECKPOINT))


def _is_worked_on(layout: Layout, key: str) -> bool:
    if not key or not layout.lock(key).exists():  # asking for a lock makes its file
        return False
    with lock_if_free(layout.lock(key)) as hold:
        return hold is Hold.BUSY


def _delete(layout: Layout, item: Garbage) -> bool:
    if not os.path.lexists(item.path):  # asking for its lock would make one
        return False
    lock = layout.lock(item.key) if item.key else None
    with disk(item.path, "deleting"), lock_if_free(lock) if lock else nullcontext(Hold.HELD) as hold:
        if hold is Hold.BUSY or measure(item.path) != (item.bytes, item.last_used):
            return False
        if item.path != lock or lock.is_dir():
            _discard(item.path)
        if lock and not lock.is_dir():
            lock.unlink(missing_ok=True)  # while it is held: whoever waits for it sees that it is gone
    return True


def _discard(path: Path) -> None:
    """Delete under a name that nothing looks up; beside it, as a full disk has no room for a folder."""
    trash = path
    if not path.name.startswith(TRASH):
        trash = path.rename(path.with_name(f"{TRASH}{path.name}-{secrets.token_hex(4)}"))
        sync(trash.parent)
    with suppress(OSError):  # what stays is listed by the next `gc`
        remove(trash)
