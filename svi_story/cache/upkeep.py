"""Looking through the cache: what is in it, and whether it is whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svi_story.cache.aside import quarantine
from svi_story.cache.entry import open_entry
from svi_story.cache.films import serves, used
from svi_story.cache.layout import BOARD_FOLDER, names, own_cache
from svi_story.cache.sealed import ENTRY, PIECE, read_manifest, unseal
from svi_story.errors import RenderError
from svi_story.files import CorruptError, disk, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from svi_story.cache.films import Used
    from svi_story.cache.layout import Layout
    from svi_story.events import Reporter
    from svi_story.plan.keys import Json


Held = Literal["entry", "piece", "work", "bundle", "set aside"]


@dataclass(frozen=True)
class Usage:
    """One thing in the cache, by presence: its files were not read."""

    kind: Held
    key: str
    path: Path
    bytes: int
    last_used: float
    """Seconds since the epoch."""
    notes: Mapping[str, Json]
    """What the renderer noted in an entry (clip, prompt, ...); empty where its manifest is damaged."""
    in_use: bool
    """Whether a film is made of it that exists, or whose board does."""


@dataclass(frozen=True)
class Checked:
    """An entry or piece that was verified."""

    kind: Literal["entry", "piece"]
    key: str
    path: Path
    problem: str
    """What is wrong; empty when every byte is as it was written."""


def usage(layout: Layout, report: Reporter) -> Iterator[Usage]:
    """Everything finished or under way."""
    in_use = used(layout, report)
    for folder in layout.entries():
        yield _usage("entry", folder, in_use, _notes(folder))
    for folder in layout.pieces():
        yield _usage("piece", folder, in_use, {})
    for folder in layout.works():
        yield _usage("work", folder, in_use, {})
    for folder in layout.bundles():
        yield _bundle(folder)
    for folder in names(layout.set_aside):
        yield _usage("set aside", folder, in_use, {})


def verify(layout: Layout, report: Reporter) -> Iterator[Checked]:
    """Read every byte of every entry and piece, bundles' too; damaged ones are set aside with a warning."""
    for folder in layout.entries():
        yield _checked(layout, report, "entry", folder, open_entry)
    for folder in layout.pieces():
        yield _checked(layout, report, "piece", folder, lambda path, key: unseal(path, PIECE, key))
    for folder in layout.bundles():
        yield from verify(own_cache(folder), report)


def _usage(
    kind: Held,
    folder: Path,
    in_use: Used,
    notes: Mapping[str, Json],
) -> Usage:
    size, last_used = measure(folder)
    return Usage(kind, folder.name, folder, size, last_used, notes, folder.name in in_use)


def _bundle(folder: Path) -> Usage:
    """An unpacked bundle, with all that its own cache holds."""
    size, last_used = measure(folder)
    notes: dict[str, Json] = {"board": ", ".join(board.name for board in names(folder / BOARD_FOLDER))}
    return Usage("bundle", folder.name, folder, size, last_used, notes, serves(own_cache(folder)))


def _notes(folder: Path) -> Mapping[str, Json]:
    try:
        notes = read_manifest(folder / ENTRY.manifest).get("notes")
    except (CorruptError, OSError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _checked(
    layout: Layout,
    report: Reporter,
    kind: Literal["entry", "piece"],
    folder: Path,
    open_folder: Callable[[Path, str], object],
) -> Checked:
    key = folder.name
    try:
        with disk(folder, "reading the cache"):
            open_folder(folder, key)
    except CorruptError as error:
        quarantine(layout, report, key, f"{folder} is damaged: {error}", {kind: folder})
        return Checked(kind, key, folder, str(error))
    except RenderError as error:
        return Checked(kind, key, folder, str(error))
    return Checked(kind, key, folder, "")
