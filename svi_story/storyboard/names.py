"""Finds files by the names that authors write: with another system's separators, or misspelled."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story.storyboard.pitfalls import without_lookalikes

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_NAMES, _MOST_COMPARED = 10_000, 200
"""Names in a folder that are looked at, and that are compared letter by letter."""
_APPLE_DOUBLE = "._"


def find_file(folder: Path, name: str) -> Path:
    """The file that a name means, relative to a folder; it may not exist.

    `~` is the home directory, unless a file has that name. Where no file has exactly this name, it is the one
    whose name looks the same: with slashes for backslashes, or with accents in another Unicode form.
    """
    for written in dict.fromkeys((name, name.replace("\\", "/"))):
        for path in dict.fromkeys((folder / written, folder / _without_tilde(written))):
            if os.path.lexists(path):
                return path
    for written in dict.fromkeys((name, name.replace("\\", "/"))):
        with suppress(OSError, ValueError):
            path = folder / _without_tilde(written)
            if found := _match(path, lambda name: unicodedata.normalize("NFC", name)):
                return found
    return folder / _without_tilde(name)


def nearest_file(folder: Path, name: str) -> str:
    """The existing file that a wrong name was probably meant for; empty when there is none."""
    path = folder / _without_tilde(name.replace("\\", "/"))
    with suppress(OSError, ValueError):
        found = _match(path, _folded) or _misspelt(path)
        if found:
            return found.relative_to(folder).as_posix() if found.is_relative_to(folder) else found.as_posix()
    return ""


def why_elsewhere(name: str) -> str:
    """What a name is that can be no file on this machine, and the remedy; empty when it could be one."""
    if re.match(r"[a-z][a-z0-9+.-]+://", name, re.IGNORECASE):
        return "is a web address; download the file, and name that"
    if os.name != "nt" and re.match(r"[a-z]:[\\/]", name, re.IGNORECASE):
        return "is a path on Windows; copy the file, and name it relative to the board's folder"
    return ""


def _without_tilde(name: str) -> str:
    try:
        return str(Path(name).expanduser()) if name.startswith("~") else name
    except RuntimeError:  # no such user
        return name


def _folded(name: str) -> str:
    return " ".join(without_lookalikes(name).casefold().split())


def _match(path: Path, form: Callable[[str], str]) -> Path | None:
    """The file whose path has, part by part, the same form; None where several names of a folder have."""
    found = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        following = found / part
        if part != ".." and not os.path.lexists(following):
            wanted = form(part)
            same = [name for name in _names_in(found) if form(name) == wanted]
            if len(same) != 1:
                return None
            following = found / same[0]
        found = following
    return found


def _misspelt(path: Path) -> Path | None:
    """The file in the same folder whose name is most like this one; numbers in it must be equal."""
    folder = _match(path.parent, _folded)
    if folder is None:
        return None
    stem = _folded(path.stem)
    stems = {_folded(Path(name).stem): name for name in _names_in(folder)[:_MOST_COMPARED]}
    same_numbers = [each for each in stems if re.findall(r"\d+", each) == re.findall(r"\d+", stem)]
    near = difflib.get_close_matches(stem, same_numbers, n=1, cutoff=0.75)
    return folder / stems[near[0]] if near else None


def _names_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries if not entry.name.startswith(_APPLE_DOUBLE))
        return sorted(islice(names, _MOST_NAMES))
