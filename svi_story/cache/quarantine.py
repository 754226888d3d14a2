"""Setting aside: out of the way, never deleted, with the reason beside it."""

from __future__ import annotations

import os
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
"""The reason of what a user asked to make again."""

REASON = "reason.txt"
LONGEST_REASON = 2**16
KEY_LENGTH = 64


def set_aside(layout: Layout, key: str, reason: str, things: Mapping[str, Path]) -> Path | None:
    """Move things (file or folder, by the name they get there) to a folder of their own below `set-aside/`.

    Returns the folder; None when nothing was there to move. OSError when it cannot be moved.
    """
    present = {name: path for name, path in things.items() if os.path.lexists(path)}
    if not present:
        return None
    layout.create()
    folder = _new_folder(layout.set_aside, key)
    write_atomic(folder / REASON, f"{reason}\n".encode("utf-8", "replace"))
    moved = [_move(path, folder / name) for name, path in present.items()]
    return folder if any(moved) else None


def set_aside_for(layout: Layout, reason: str) -> frozenset[str]:
    """The keys of what was set aside for this reason and is still kept there."""
    return frozenset(
        folder.name[:KEY_LENGTH]
        for folder in names(layout.set_aside)
        if KEY.fullmatch(folder.name[:KEY_LENGTH]) and _reason(folder) == reason
    )


def _reason(folder: Path) -> str:
    try:
        return read_regular(folder / REASON, LONGEST_REASON).decode().strip()
    except (OSError, ValueError):
        return ""


def quarantine(layout: Layout, report: Reporter, key: str, reason: str, things: Mapping[str, Path]) -> None:
    """Set damaged things aside and say so; where that is not possible, say that."""
    try:
        folder = set_aside(layout, key, reason, things)
    except (OSError, RenderError) as error:
        report(Warned(f"{reason}; it is left out, and could not be set aside: {error}"))
    else:
        if folder:
            report(Warned(f"{reason}; it was set aside as {folder} and is made again by the next render"))


def _new_folder(parent: Path, key: str) -> Path:
    make_folder(parent)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for n in count(1):
        folder = parent / f"{key}-{stamp}-{n}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("count() ended")


def _move(path: Path, target: Path) -> bool:
    try:
        path.rename(target)
    except FileNotFoundError:  # another process was faster
        return False
    sync(path.parent)
    return True
