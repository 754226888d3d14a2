"""Which films are made of what, so that `gc` knows what is in use."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.cache.layout import names
from svi_story.events import Warned
from svi_story.files import disk, make_folder, read_regular, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from svi_story.cache.layout import Layout
    from svi_story.events import Reporter

LARGEST = 16 * 2**20
"""Bytes of a record; a film of the most segments takes 3 MB."""


@dataclass(frozen=True)
class Film:
    """The record of one film."""

    film: Path
    board: Path
    keys: frozenset[str]
    """Of entries."""
    pieces: frozenset[str]

    @property
    def exists(self) -> bool:
        """Whether there is still a film or a board that would miss what it is made of."""
        return os.path.lexists(self.film) or os.path.lexists(self.board)


@dataclass(frozen=True)
class Used:
    """What films are made of. A damaged record could name anything: then everything counts as used."""

    keys: frozenset[str]
    known: bool

    def __contains__(self, key: str) -> bool:
        return key != "" and (key in self.keys or not self.known)


def remember(
    layout: Layout, film: Path, board: Path, keys: Iterable[str], pieces: Iterable[str] | None
) -> None:
    """Record what a film is made of, in place of what it was made of before; None keeps its old pieces.

    Paths are kept relative to the cache: a project that moves as a whole keeps what it uses.
    """
    layout.create()
    name = os.path.relpath(film, layout.root)
    path = layout.films / f"{hashlib.sha256(os.fsencode(name)).hexdigest()}.json"
    before = _read(path, layout.root)
    if pieces is None:
        pieces = before.pieces if before else ()
    record = {
        "film": name,
        "board": os.path.relpath(board, layout.root),
        "keys": sorted(set(keys)),
        "pieces": sorted(set(pieces)),
    }
    with disk(path, "recording what the film is made of"):
        make_folder(layout.films)
        write_atomic(path, json.dumps(record, indent=1).encode())


def used(layout: Layout, report: Reporter) -> Used:
    """The keys of all films that exist, or whose board does."""
    keys: set[str] = set()
    known = True
    for path, film in _records(layout):
        if film is None:
            known = False
            report(Warned(f"{path} is damaged: while it is there, everything counts as used by a film"))
        elif film.exists:
            keys |= film.keys | film.pieces
    return Used(frozenset(keys), known)


def serves(layout: Layout) -> bool:
    """Whether any film would miss this cache."""
    return any(film is None or film.exists for _, film in _records(layout))


def gone(layout: Layout) -> Iterator[Path]:
    """The records of films that do not exist, and whose boards do not either."""
    return (path for path, film in _records(layout) if film is not None and not film.exists)


def _records(layout: Layout) -> Iterator[tuple[Path, Film | None]]:
    """Every record with its film, None where it is damaged."""
    for path in names(layout.films):
        if path.suffix == ".json" and not path.name.startswith("."):
            yield path, _read(path, layout.root)


def _read(path: Path, root: Path) -> Film | None:
    try:
        record = json.loads(read_regular(path, LARGEST))
        film, board = root / str(record["film"]), root / str(record["board"])
        return Film(film, board, frozenset(record["keys"]), frozenset(record["pieces"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
