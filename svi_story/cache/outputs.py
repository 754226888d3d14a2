"""The files that svi-story writes outside its cache, and the ledger in which it records them.

The ledger has a small file for each path, with the hashes of the contents that svi-story wrote there last. It
may be lost: without it, a film and the files that belong to it are recognised by their own metadata.
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
"""Bytes of a file of the ledger."""
KEPT = 3
"""How many contents are recorded for a path: they are recorded before the file itself is renamed."""


@dataclass(frozen=True)
class RecordedContent:
    """A file's content, written by svi-story."""

    sha256: str
    bytes: int
    mtime_ns: int
    """As long as this and the size are the same, the content is not read again."""


class Outputs:
    """Writes files outside the cache, and never replaces one that svi-story did not write.

    Existing files are examined before the work starts: each is allowed to be replaced (`allow`), or kept
    (`keep`). A file that appears later, and that svi-story did not write, is not replaced: RenderError. Any
    number of processes may use one ledger, and it may be read-only. Threads may share an object.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._layout = Layout(cache.absolute()) if cache else None
        self._allowed: dict[Path, State] = {}
        self._kept: set[Path] = set()

    def is_listed(self, path: Path) -> bool:
        """Whether svi-story ever wrote a file at this path, whatever is there now."""
        return bool(self._written(path))

    def is_ours(self, path: Path) -> bool:
        """Whether there is a regular file whose content svi-story wrote."""
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
        """Allow the file that exists now to be replaced."""
        state = state_of(path)
        if state is not None:
            self._allowed[place_of(path)] = state

    def keep(self, path: Path) -> None:
        """Keep the existing file: writing it does nothing."""
        self._kept.add(place_of(path))

    def keeps(self, path: Path) -> bool:
        """Whether the existing file is kept."""
        return place_of(path) in self._kept

    @contextmanager
    def file(self, target: Path) -> Iterator[Path]:
        """A temporary file that replaces the target, as with `atomic_file`, unless the target is kept.

        Raises RenderError, and changes nothing, if another program has put a file there meanwhile.
        """

        def may_replace(temporary: Path) -> bool:
            if self.keeps(target):
                return False
            self._check(target)
            self._record(target, temporary)
            return True

        with atomic_file(target, may_replace) as temporary:
            yield temporary
        if not self.keeps(target):
            self.allow(target)

    def write(self, target: Path, data: bytes) -> None:
        """Replace a file's content at once, as `file` does. Raises OSError too."""
        with self.file(target) as temporary:
            temporary.write_bytes(data)

    def remove(self, path: Path) -> bool:
        """Remove a file that svi-story wrote, or that may be replaced; whether it was removed. OSError."""
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

    def _record(self, target: Path, file: Path) -> None:
        """Record the content of `file` as written to `target`, before it is renamed."""
        if self._layout is None:
            return
        with suppress(OSError, StoryError):
            status = file.stat()
            new = RecordedContent(sha256_file(file), status.st_size, status.st_mtime_ns)
            before = (each for each in self._written(target) if each.sha256 != new.sha256)
            written = [asdict(each) for each in (new, *before)][:KEPT]
            self._layout.create()
            make_folder(self._layout.ledger)
            name = _name_in(self._layout, target)
            text = json.dumps({"file": name, "written": written}, indent=1)
            write_atomic(_entry(self._layout, name), text.encode())

    def _written(self, path: Path) -> tuple[RecordedContent, ...]:
        if self._layout is None:
            return ()
        name = _name_in(self._layout, path)
        found = _read(_entry(self._layout, name))
        return found[1] if found and found[0] == name else ()


def records_of_deleted_outputs(layout: Layout) -> Iterator[Path]:
    """The ledger's files about outputs that no longer exist, and damaged ones."""
    for path in names(layout.ledger):
        if path.suffix == ".json" and not path.name.startswith("."):
            found = _read(path)
            if found is None or not os.path.lexists(layout.root / found[0]):
                yield path


def place_of(path: Path) -> Path:
    """The canonical path: links to folders are resolved, a link at the path itself is not."""
    return Path(os.path.realpath(path.parent), path.name)


def state_of(path: Path) -> State | None:
    """The state of what is at a path, without following a link; None if there is nothing, or no access."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def is_plain(path: Path) -> bool:
    """Whether there is a regular file, and not a link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _name_in(layout: Layout, path: Path) -> str:
    """A path relative to the cache: a project that is moved with its cache keeps its ledger."""
    return relative_path(place_of(path), os.path.realpath(layout.root))


def _entry(layout: Layout, name: str) -> Path:
    return layout.ledger / f"{hashlib.sha256(os.fsencode(name)).hexdigest()}.json"


def _read(entry: Path) -> tuple[str, tuple[RecordedContent, ...]] | None:
    """The path and the contents in a file of the ledger; None if it is missing or damaged."""
    try:
        found = json.loads(read_regular(entry, LARGEST))
        written = (
            RecordedContent(str(each["sha256"]), int(each["bytes"]), int(each["mtime_ns"]))
            for each in found["written"]
        )
        return str(found["file"]), tuple(written)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
