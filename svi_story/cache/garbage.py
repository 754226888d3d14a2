"""The content of the cache, which films use it, whether it is intact, and deleting what is not needed."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from svi_story.cache.entry import ENTRY, PIECE, open_entry, read_manifest, verify_folder
from svi_story.cache.layout import BOARD_FOLDER, CHECKPOINT, LATENTS, TRASH, names, own_cache
from svi_story.cache.outputs import records_of_deleted_outputs
from svi_story.cache.quarantine import quarantine
from svi_story.errors import RenderError
from svi_story.events import Warned
from svi_story.files import (
    TEMP,
    CorruptError,
    LockState,
    disk,
    lock_if_free,
    make_folder,
    measure,
    read_regular,
    relative_path,
    remove,
    sync,
    write_atomic,
)
from svi_story.portable import IS_POSIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import timedelta
    from pathlib import Path

    from svi_story.cache.layout import Layout
    from svi_story.events import Reporter
    from svi_story.plan.keys import Json


LARGEST_RECORD = 16 * 2**20
"""Bytes; a film of the most segments takes 3 MB."""
MOST_REQUESTED = 50_000
"""Segments of takes that a film's record lists, the newest: 8 MB."""


class Requested(NamedTuple):
    """A segment that was once requested for a film, of a take that the film may not use any more."""

    base_key: str
    """The key that it would have if every clip had its first take only."""
    key: str
    take: int
    """The take's number."""
    settings: str = ""
    """The engine, with its settings besides the board's that change frames."""


@dataclass(frozen=True)
class FilmReferences:
    """The entries and pieces that one film uses."""

    film: Path
    board: Path
    keys: frozenset[str]
    """Of entries."""
    pieces: frozenset[str]
    requested: tuple[Requested, ...] = ()
    """Every segment of every take that was ever requested, as long as picks or settings can bring it back."""

    settings: str = ""
    """As in `Requested`, of its own entries; empty where an older version wrote the record."""

    @property
    def listed(self) -> Iterable[Requested]:
        """What was requested; its own entries where there were no other takes."""
        return self.requested or (Requested(key, key, 1, self.settings) for key in self.keys)

    @property
    def exists(self) -> bool:
        """Whether the film or its board still exists."""
        return os.path.lexists(self.film) or os.path.lexists(self.board)


@dataclass(frozen=True)
class InUse:
    """The keys that films use. A damaged record could name anything: then everything counts as in use."""

    keys: frozenset[str]
    complete: bool

    def __contains__(self, key: str) -> bool:
        return key != "" and (key in self.keys or not self.complete)


def record_film(
    layout: Layout,
    film: Path,
    board: Path,
    keys: Iterable[str],
    pieces: Iterable[str] | None,
    requested: Iterable[Requested] = (),
) -> None:
    """Record which entries and pieces a film uses, replacing its record; None keeps its old pieces.

    `requested` are the segments of all takes. Those that were requested before stay listed while their base
    keys are among these, as then only picks differ, or if they have other settings: a preview with another
    engine is no other board. Paths are relative to the cache, so that a project can be moved with its cache.
    """
    layout.create()
    keys = sorted(set(keys))
    path = _record_path(layout, film)
    before = _read(path, layout.root)
    if pieces is None:
        pieces = before.pieces if before else ()
    now = {each.key: each for each in requested}
    bases = {each.base_key for each in now.values()}
    settings = {"", *(each.settings for each in now.values())}
    earlier = [
        each
        for each in (before.listed if before else ())
        if each.key not in now and (each.base_key in bases or each.settings not in settings)
    ]
    every = [*earlier, *now.values()][-MOST_REQUESTED:]
    record: dict[str, Json] = {
        "film": relative_path(film, layout.root),
        "board": relative_path(board, layout.root),
        "keys": [*keys],
        "pieces": [*sorted(set(pieces))],
    }
    if now:
        record["settings"] = next(iter(now.values())).settings
    if {each.key for each in every} - set(keys):
        record["requested"] = [[*each] for each in every]
    doing = "recording what the film uses"
    with disk(path, doing):
        make_folder(layout.films)
    write_atomic(path, json.dumps(record, indent=1).encode(), doing)


def requested_for(layout: Layout, film: Path) -> tuple[Requested, ...]:
    """Every segment that was requested for a film, as its record lists them."""
    found = _read(_record_path(layout, film), layout.root)
    return found.requested if found else ()


def _record_path(layout: Layout, film: Path) -> Path:
    name = relative_path(film, layout.root)
    return layout.films / f"{hashlib.sha256(os.fsencode(name)).hexdigest()}.json"


def keys_in_use(layout: Layout, report: Reporter, *, takes: bool = True) -> InUse:
    """The keys of all films that exist, or whose board does; with `takes`, of those that no film uses too."""
    keys: set[str] = set()
    complete = True
    for path, film in _records(layout):
        if film is None:
            complete = False
            report(Warned(f"{path} is damaged: while it is there, everything counts as used by a film"))
        elif film.exists:
            keys |= film.keys | film.pieces
            if takes:
                keys |= {each.key for each in film.requested}
    return InUse(frozenset(keys), complete)


def is_in_use(layout: Layout) -> bool:
    """Whether any film would miss this cache."""
    return any(film is None or film.exists for _, film in _records(layout))


def records_of_deleted_films(layout: Layout) -> Iterator[Path]:
    """The records of films that do not exist, and whose boards do not either."""
    return (path for path, film in _records(layout) if film is not None and not film.exists)


def _records(layout: Layout) -> Iterator[tuple[Path, FilmReferences | None]]:
    """Every record with its film, None where it is damaged."""
    for path in names(layout.films):
        if path.suffix == ".json" and not path.name.startswith("."):
            yield path, _read(path, layout.root)


def _read(path: Path, root: Path) -> FilmReferences | None:
    try:
        record = json.loads(read_regular(path, LARGEST_RECORD))
        film, board = root / str(record["film"]), root / str(record["board"])
        requested = tuple(
            Requested(str(base), str(key), int(take), str(settings))
            for base, key, take, settings in record.get("requested", ())
        )
        keys, pieces = frozenset(record["keys"]), frozenset(record["pieces"])
        return FilmReferences(film, board, keys, pieces, requested, str(record.get("settings", "")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


@dataclass(frozen=True)
class Garbage:
    """Something that may be deleted."""

    path: Path
    bytes: int
    why: str
    last_used: float
    """Seconds since the epoch."""
    key: str = ""
    """The key whose lock protects it, if any."""


def garbage(
    layout: Layout, report: Reporter, now: float, min_age: timedelta, *, takes: bool = False
) -> list[Garbage]:
    """What may be deleted: not used for `min_age`, by no film, and not in progress.

    `takes`: also what was requested as a take of a clip, and no film uses.
    """
    in_use = keys_in_use(layout, report, takes=not takes)
    old = now - min_age.total_seconds()
    unused = [item for item in _candidates(layout) if not _is_needed(layout, item, in_use)]
    found = [_garbage(path, "half deleted") for path in layout.trash()]
    found += [item for item in unused if item.last_used <= old and not _is_locked(layout, item.key)]
    paths = {item.path for item in found}
    return [item for item in found if paths.isdisjoint(item.path.parents)]


def delete(
    layout: Layout, report: Reporter, items: Iterable[Garbage], *, takes: bool = False
) -> list[Garbage]:
    """Delete what is still garbage; returns what was deleted. A kill leaves no partial entry."""
    in_use = keys_in_use(layout, report, takes=not takes)
    return [item for item in items if not _is_needed(layout, item, in_use) and _delete(layout, item)]


def _candidates(layout: Layout) -> Iterator[Garbage]:
    for folder in (*layout.entries(), *layout.pieces()):
        yield _garbage(folder, "no film is made of it", folder.name)
    works = set(layout.works())
    for folder in sorted(works):
        yield _garbage(folder, "unfinished, or finished elsewhere", folder.name)
    for folder in layout.bundles():
        yield _garbage(folder, "an unpacked bundle", folder.name)
    for path in layout.locks():
        yield _garbage(path, "a lock that no process holds", path.stem)
    for path in layout.embeddings():
        yield _garbage(path, "an encoded prompt that was not used again")
    for path in names(layout.quarantine):
        yield _garbage(path, "set aside")
    for path in layout.temps():
        yield _garbage(path, "half written", path.parent.name if path.parent in works else "")
    for path in records_of_deleted_films(layout):
        yield _garbage(path, "the record of a film that was deleted")
    for path in records_of_deleted_outputs(layout):
        yield _garbage(path, "the record of a file that was deleted")


def _garbage(path: Path, why: str, key: str = "") -> Garbage:
    size, last_used = measure(path)
    return Garbage(path, size, why, last_used, key)


def _is_needed(layout: Layout, item: Garbage, in_use: InUse) -> bool:
    """Whether an existing film or board needs it."""
    if item.key and item.path == layout.bundle(item.key):
        return is_in_use(own_cache(item.path))
    if item.key not in in_use or item.path.name.startswith(TEMP):
        return False
    resumable = any(os.path.lexists(item.path / name) for name in (LATENTS, CHECKPOINT))
    if item.path == layout.work(item.key) and not resumable:
        return False
    finished = layout.entry(item.key).exists() or layout.piece(item.key).exists()
    return not (finished and item.path == layout.work(item.key))  # killed between publishing and tidying up


def _is_locked(layout: Layout, key: str) -> bool:
    if not key or not layout.lock(key).exists():  # taking a lock creates its file
        return False
    with lock_if_free(layout.lock(key)) as lock_state:
        return lock_state is LockState.BUSY


def _delete(layout: Layout, item: Garbage) -> bool:
    if not os.path.lexists(item.path):  # taking its lock would create one
        return False
    lock = layout.lock(item.key) if item.key else None
    with (
        disk(item.path, "deleting"),
        lock_if_free(lock) if lock else nullcontext(LockState.HELD) as lock_state,
    ):
        if lock_state is LockState.BUSY or measure(item.path) != (item.bytes, item.last_used):
            return False
        if item.path != lock or lock.is_dir():
            trash = item.path
            if not trash.name.startswith(TRASH):
                # a name that nothing looks up, in the same folder: a full disk has no room for another folder
                trash = trash.rename(trash.with_name(f"{TRASH}{trash.name}-{secrets.token_hex(4)}"))
                sync(trash.parent)
            with suppress(OSError):  # what stays is listed by the next `gc`
                remove(trash)
        if lock and not lock.is_dir() and IS_POSIX:
            lock.unlink(missing_ok=True)  # while it is held: a process that waits for it sees that it is gone
    return True


ItemKind = Literal["entry", "piece", "work", "bundle", "set aside"]


@dataclass(frozen=True)
class Usage:
    """One item of the cache, by presence: its files were not read."""

    kind: ItemKind
    key: str
    path: Path
    bytes: int
    last_used: float
    """Seconds since the epoch."""
    notes: Mapping[str, Json]
    """What was noted in an entry (clip, prompt, ...); empty where its manifest is damaged."""
    in_use: bool
    """Whether an existing film or board needs it."""
    for_takes: bool
    """Whether it is in use for takes that no film uses, and for nothing else."""


@dataclass(frozen=True)
class Verified:
    """The result for one entry or piece."""

    kind: Literal["entry", "piece"]
    key: str
    path: Path
    problem: str
    """What is wrong; empty when every byte is as it was written."""


def usage(layout: Layout, report: Reporter) -> Iterator[Usage]:
    """Everything finished, in progress or quarantined."""
    in_use = keys_in_use(layout, report)
    in_films = keys_in_use(layout, lambda _event: None, takes=False)

    def measured(kind: ItemKind, folder: Path, notes: Mapping[str, Json], *, used: bool = False) -> Usage:
        key, (size, last_used) = folder.name, measure(folder)
        used = used or key in in_use
        for_takes = used and key in in_use and key not in in_films
        return Usage(kind, key, folder, size, last_used, notes, used, for_takes)

    for folder in layout.entries():
        notes: Json = None
        with suppress(CorruptError, OSError):
            notes = read_manifest(folder / ENTRY.manifest).get("notes")
        yield measured("entry", folder, notes if isinstance(notes, dict) else {})
    for folder in layout.pieces():
        yield measured("piece", folder, {})
    for folder in layout.works():
        yield measured("work", folder, {})
    for folder in layout.bundles():  # with all that a bundle's own cache holds
        boards = ", ".join(board.name for board in names(folder / BOARD_FOLDER))
        yield measured("bundle", folder, {"board": boards}, used=is_in_use(own_cache(folder)))
    for folder in names(layout.quarantine):
        yield measured("set aside", folder, {})


def verify(layout: Layout, report: Reporter) -> Iterator[Verified]:
    """Read every byte of every entry and piece, bundles' too; damaged ones are quarantined with a warning."""

    def verified(kind: Literal["entry", "piece"], folder: Path) -> Verified:
        key = folder.name
        try:
            with disk(folder, "reading the cache"):
                if kind == "entry":
                    open_entry(folder, key)
                else:
                    verify_folder(folder, PIECE, key)
        except CorruptError as error:
            quarantine(layout, report, key, f"{folder} is damaged: {error}", {kind: folder})
            return Verified(kind, key, folder, str(error))
        except RenderError as error:
            return Verified(kind, key, folder, str(error))
        return Verified(kind, key, folder, "")

    for folder in layout.entries():
        yield verified("entry", folder)
    for folder in layout.pieces():
        yield verified("piece", folder)
    for folder in layout.bundles():
        yield from verify(own_cache(folder), report)
