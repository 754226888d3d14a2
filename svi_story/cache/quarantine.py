"""Quarantine: damaged entries, and those that `--force` renders again, are moved away, not deleted."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING

from svi_story.cache.layout import KEY, names
from svi_story.errors import RenderError
from svi_story.events import Warned
from svi_story.files import make_folder, read_regular, sync, write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from svi_story.cache.layout import Layout
    from svi_story.events import Reporter

FORCED = "forced"
"""The reason for what a user asked to render again."""

REASON = "reason.txt"
LONGEST_REASON = 2**16
KEY_LENGTH = 64


def move_to_quarantine(
    layout: Layout, key: str, reason: str, things: Mapping[str, Path], *, even_if_missing: bool = False
) -> Path | None:
    """Move files and folders, given by the names they get there, to a new folder below `set-aside/`.

    Returns the folder; None when there was nothing to move and `even_if_missing` is not set. OSError or
    RenderError when it cannot be moved.
    """
    present = {name: path for name, path in things.items() if os.path.lexists(path)}
    if not present and not even_if_missing:
        return None
    layout.create()
    make_folder(layout.quarantine)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    candidates = (layout.quarantine / f"{key}-{stamp}-{n}" for n in count(1))
    for folder in candidates:
        with suppress(FileExistsError):
            folder.mkdir()
            break
    write_atomic(folder / REASON, f"{reason}\n".encode("utf-8", "replace"), "quarantining")
    is_moved = even_if_missing
    for name, path in present.items():
        with suppress(FileNotFoundError):  # another process was faster
            path.rename(folder / name)
            sync(path.parent)
            is_moved = True
    return folder if is_moved else None


def quarantine(layout: Layout, report: Reporter, key: str, reason: str, things: Mapping[str, Path]) -> None:
    """Quarantine damaged things with a warning; where they cannot be moved, warn about that."""
    try:
        folder = move_to_quarantine(layout, key, reason, things)
    except (OSError, RenderError) as error:
        report(Warned(f"{reason}; it is ignored, and could not be quarantined: {error}"))
    else:
        if folder:
            report(Warned(f"{reason}; it was moved to {folder} (quarantine) and the next render replaces it"))


def quarantined_for(layout: Layout, reason: str) -> frozenset[str]:
    """The keys of what is in quarantine for this reason."""
    found: set[str] = set()
    for folder in names(layout.quarantine):
        key = folder.name[:KEY_LENGTH]
        with suppress(OSError, ValueError):
            if (
                KEY.fullmatch(key)
                and read_regular(folder / REASON, LONGEST_REASON).decode().strip() == reason
            ):
                found.add(key)
    return frozenset(found)
