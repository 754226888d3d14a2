"""The files that svi-story writes outside its cache, and the ledger of what it wrote.

The ledger has one small file for each path: which contents svi-story wrote there last. It may be lost:
without it, a film and the files beside it are recognised by their own metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story.cache.layout import Layout, names
from svi_story.errors import Problem, RenderError, StoryError
from svi_story.files import atomic_file, make_folder, read_regular, relative_path, sha256_file, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    Publish = Callable[[Path], AbstractContextManager[Path]]
    """Gives a temporary file for a path, as `files.atomic_file` does."""

    State = tuple[int, int, int, int]
    """Changes whenever another file, or other content, has this name."""

LARGEST = 2**16
"""Bytes of one file of the ledger."""
KEPT = 3
"""Newest contents recorded for a path: the record is written before the file itself is renamed."""


@dataclass(frozen=True)
class Written:
    """A content that svi-story wrote."""

    sha256: str
    bytes: int
    mtime_ns: int
    """When the file was written: while this and its size stay, its content is not read again."""


class _KeptError(Exception):
    """What lies at the target stays."""


class Outputs:
    """Writes files outside the cache, and never replaces one that svi-story did not write.

    What exists at a path is examined before the work starts: `allow` it to be replaced, or `keep` it. A file
    that appeared since and that svi-story did not write is not replaced: RenderError. Any number of
    processes may use one ledger, and it may be unwritable. Threads may share an object.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._layout = Layout(cache.absolute()) if cache else None
        self._allowed: dict[Path, State] = {}
        self._kept: set[Path] = set()

    def is_listed(self, path: Path) -> bool:
        """Whether svi-story wrote a file under this name before, whatever lies there now."""
        return bool(self._written(path))

    def is_ours(self, path: Path) -> bool:
        """Whether a regular file lies there whose content svi-story wrote."""
        written = self._written(path)
        state = state_of(path)
        if not written or state is None or not is_plain(path):
            return False
        _, _, size, mtime_ns = state
        if any((each.bytes, each.mtime_ns) == (size, mtime_ns) for each in written):
            return True
        if all(each.bytes != size for each in written):
            return False
        with suppress(OSError):
            digest = sha256_file(path)
            return any(each.sha256 == digest for each in written)
        return False

    def allow(self, path: Path) -> None:
        """What lies there now may be replaced."""
        state = state_of(path)
        if state is not None:
            self._allowed[place_of(path)] = state

    def keep(self, path: Path) -> None:
        """What lies there now stays: nothing is written under that name, and that is no error."""
        self._kept.add(place_of(path))

    def keeps(self, path: Path) -> bool:
        """Whether what lies there stays."""
        return place_of(path) in self._kept

    @contextmanager
    def file(self, target: Path) -> Iterator[Path]:
        """A temporary file that becomes the target, as with `atomic_file`, unless what lies there is kept.

        Raises RenderError, and changes nothing, where another program put a file there meanwhile.
        """

        def before(temporary: Path) -> None:
            if self.keeps(target):
                raise _KeptError
            self._check(target)
            self._note(target, temporary)

        with suppress(_KeptError):
            with atomic_file(target, before) as temporary:
                yield temporary
            self.allow(target)

    def write(self, target: Path, data: bytes) -> None:
        """Replace a file's content at once, as `file` does. Raises OSError too."""
        with self.file(target) as temporary:
            temporary.write_bytes(data)

    def remove(self, path: Path) -> bool:
        """Remove a file that svi-story wrote, or that may be replaced; whether it is gone. Raises OSError."""
        state = state_of(path)
        if state is None or self.keeps(path) or not is_plain(path):
            return False
        if self._allowed.get(place_of(path)) != state and not self.is_ours(path):
            return False
        path.unlink()
        return True

    def _check(self, target: Path) -> None:
        state = state_of(target)
        if state is None or self._allowed.get(place_of(target)) == state or self.is_ours(target):
            return
        what = (
            "was put there by another program while svi-story worked, and is kept; move it away, or choose "
            "another folder with -o, then run the same command again: what was rendered is kept"
        )
        raise RenderError(Problem(what, file=str(target)))

    def _note(self, target: Path, file: Path) -> None:
        """Record the content of `file` as written to `target`, before the rename: a kill may come between."""
        if self._layout is None:
            return
        with suppress(OSError, StoryError):
            status = file.stat()
            new = Written(sha256_file(file), status.st_size, status.st_mtime_ns)
            before = (each for each in self._written(target) if each.sha256 != new.sha256)
            written = [asdict(each) for each in (new, *before)][:KEPT]
            self._layout.create()
            make_folder(self._layout.ledger)
            name = _name_in(self._layout, target)
            text = json.dumps({"file": name, "written": written}, indent=1)
            write_atomic(_entry(self._layout, name), text.encode())

    def _written(self, path: Path) -> tuple[Written, ...]:
        if self._layout is None:
            return ()
        name = _name_in(self._layout, path)
        found = _read(_entry(self._layout, name))
        return found[1] if found and found[0] == name else ()


def notes_of_deleted_files(layout: Layout) -> Iterator[Path]:
    """The notes about files that are not there any more, and what cannot be a note."""
    for path in names(layout.ledger):
        if path.suffix == ".json" and not path.name.startswith("."):
            found = _read(path)
            if found is None or not os.path.lexists(layout.root / found[0]):
                yield path


def place_of(path: Path) -> Path:
    """The canonical path: links to folders are resolved, a link at the path itself is not."""
    return Path(os.path.realpath(path.parent), path.name)


def state_of(path: Path) -> State | None:
    """What lies under a name, without following a link; None where there is nothing that can be seen."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def is_plain(path: Path) -> bool:
    """Whether a regular file lies there, and no link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _name_in(layout: Layout, path: Path) -> str:
    """A path relative to the cache: a project that moves as a whole keeps its ledger."""
    return relative_path(place_of(path), os.path.realpath(layout.root))


def _entry(layout: Layout, name: str) -> Path:
    return layout.ledger / f"{hashlib.sha256(os.fsencode(name)).hexdigest()}.json"


def _read(entry: Path) -> tuple[str, tuple[Written, ...]] | None:
    """A note's path and contents; None where there is none, or it is damaged."""
    try:
        found = json.loads(read_regular(entry, LARGEST))
        written = (
            Written(str(each["sha256"]), int(each["bytes"]), int(each["mtime_ns"]))
            for each in found["written"]
        )
        return str(found["file"]), tuple(written)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
