"""Whose a file is that lies where svi-story would write.

It is svi-story's when the cache's ledger lists its content, or when it says so itself: a film by its XMP or
its record, others by their form. Those may be older than the ledger.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from svi_story.bundle.format import is_bundle
from svi_story.cache.outputs import is_plain, place_of
from svi_story.cut.boxes import read_xmp
from svi_story.cut.media import is_as_noted, is_note, note_path
from svi_story.cut.xmp import is_own_packet
from svi_story.files import sha256_file
from svi_story.render.record import RECORD_VERSION, read_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from svi_story.cache.outputs import Outputs
    from svi_story.plan.model import FilmPlan
    from svi_story.render.jobs import Place
    from svi_story.render.record import Record


class Standing(NamedTuple):
    """Whose file it is."""

    kind: Literal["ours", "edited", "foreign"]
    why: str = ""
    """How it is not ours, as `was changed since`."""


OURS = Standing("ours")
EDITED = Standing("edited", "was changed since svi-story wrote it")
FOREIGN = Standing("foreign", "was not written by svi-story")
LINK = Standing("foreign", "is a symbolic link")
FOLDER = Standing("foreign", "is a folder")
ODD = Standing("foreign", "is not a regular file")


class FilmFiles:
    """Whose the files are at a film's place."""

    def __init__(self, place: Place, plan: FilmPlan, outputs: Outputs) -> None:
        self.path = place.film
        self._place, self._plan, self._outputs = place, plan, outputs

    def film(self, path: Path) -> Standing:
        """A film here, or elsewhere."""
        outputs, record = self._outputs, _record_of(path)
        other = self._other_board(record, path)
        if other:
            return Standing("foreign", f"is the film of {other}")
        if outputs.is_ours(path):
            return OURS
        if not outputs.is_listed(path) and is_own_packet(read_xmp(path)):
            return OURS
        if record is None:
            return EDITED if outputs.is_listed(path) else FOREIGN
        return OURS if _sha256(path) == record.sha256 else EDITED

    def record(self, path: Path) -> Standing:
        """The record beside the film."""
        outputs, record = self._outputs, _record_of(self.path)
        other = self._other_board(record, self.path)
        if other:
            return Standing("foreign", f"is the record of a film of {other}")
        if outputs.is_ours(path):
            return OURS
        if record and record.version < RECORD_VERSION:
            return OURS  # of an older svi-story
        if record:
            # a svi-story with another cache writes both, and an editor only one of them
            return EDITED if outputs.is_listed(path) and outputs.is_ours(self.path) else OURS
        return self._unknown(path)

    def captions(self, path: Path) -> Standing:
        """The captions beside the film."""
        record = _record_of(self.path)
        noted = record.captions_sha256 if record else ()
        if self._outputs.is_ours(path) or _sha256(path) in noted:
            return OURS
        return Standing("edited", "was changed by hand") if noted else self._unknown(path)

    def partial(self, path: Path) -> Standing:
        """What exists so far of the film; a film of another board may have this name."""
        other = self._other_board(_record_of(path), path)
        if other:
            return Standing("foreign", f"is the film of {other}")
        if self._outputs.is_ours(path) or is_own_packet(read_xmp(path)):
            return OURS
        return self._unknown(path)

    def _unknown(self, path: Path) -> Standing:
        """What can lie beside our film, and is nothing that we wrote: it is kept there."""
        if self._outputs.is_listed(path):
            return EDITED
        if is_plain(self.path) and self.film(self.path) is OURS:
            return Standing("edited", FOREIGN.why)
        return FOREIGN

    def _other_board(self, record: Record | None, film: Path) -> str:
        """The other board whose film it is by its record, if that board still exists."""
        if record is None or not record.board:
            return ""
        board, ours = Path(record.board), self._place.board
        try:
            if not board.exists() or board.samefile(ours):
                return ""
        except (OSError, ValueError):
            return ""
        if (is_bundle(ours) or is_bundle(board)) and record.made.digest == self._plan.digest:
            return ""  # a board and its bundle are one
        return "" if _is_copied(board, ours, film) else record.board


def _is_copied(board: Path, ours: Path, film: Path) -> bool:
    """Whether our project is a copy of that board's, with its films: there, a film lies in the same place."""
    ours, film = ours.resolve(), place_of(film)
    root = Path(os.path.commonpath((ours.parent, film.parent)))
    names = ours.relative_to(root).parts
    if root == Path(root.anchor) or board.parts[-len(names) :] != names:
        return False
    return os.path.lexists(Path(*board.parts[: -len(names)], film.relative_to(root)))


def _record_of(film: Path) -> Record | None:
    record = read_record(film)
    return record if record and record.film in ("", film.name) else None


def known(outputs: Outputs, is_own: Callable[[Path], bool]) -> Callable[[Path], Standing]:
    """Looks at the ledger, and where it knows nothing, at the file."""

    def look(path: Path) -> Standing:
        if outputs.is_ours(path):
            return OURS
        if outputs.is_listed(path):
            return EDITED
        return OURS if is_own(path) else FOREIGN

    return look


def media_look(outputs: Outputs) -> Callable[[Path], Standing]:
    """Looks at the ledger, and at the note that lies beside a clip's file."""

    def look(path: Path) -> Standing:
        if outputs.is_ours(path) or is_as_noted(path):
            return OURS
        return EDITED if outputs.is_listed(path) or is_note(note_path(path)) else FOREIGN

    return look


def _sha256(path: Path) -> str:
    """A file's sha256; empty where it cannot be read."""
    try:
        return sha256_file(path)
    except OSError:
        return ""
