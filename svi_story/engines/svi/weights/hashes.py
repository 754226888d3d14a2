"""Hashes of big files, with progress; and records of what the hub states about downloaded files."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from svi_story.engines.svi.weights.tensors import MAX_FILE
from svi_story.errors import InputError, Problem, RenderError
from svi_story.files import read_chunks, read_regular, remove_stale_temps, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from svi_story.engines import Digest

    Progress = Callable[[str, int, int], None]
    """Called with a file's name, the bytes done and the bytes in all."""

CHUNK = 16 * 2**20
RECORDS = ".svi-story-downloads.json"


def name_of(file: Path) -> str:
    """A file's name for people; shards are called the same in both experts' folders."""
    return f"{file.parent.name}/{file.name}"


def ignore_progress(_name: str, _done: int, _total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class Expected:
    """A file's size and content as the hub states them: by sha256, or git's hash where that is all it has."""

    bytes: int
    sha256: str = ""
    git: str = ""

    @property
    def short(self) -> str:
        """The beginning of its hash."""
        return (self.sha256 or self.git)[:12]

    def differs(self, file: Path, progress: Progress = ignore_progress) -> str:
        """How a file's content differs from this, in words; empty when it does not. Raises OSError."""
        size = file.stat().st_size
        if size != self.bytes:
            return f"has {size} bytes instead of {self.bytes}"
        if self.sha256 and hash_file(file, progress) != self.sha256:
            return "has another content than the hub's (by its sha256)"
        if not self.sha256 and self.git:  # only small files have no sha256 on the hub
            content = b"blob %d\0" % size + read_regular(file, MAX_FILE)
            if hashlib.sha1(content, usedforsecurity=False).hexdigest() != self.git:
                return "has another content than the hub's (by git's hash)"
        return ""


def hash_file(file: Path, progress: Progress = ignore_progress) -> str:
    """A file's sha256 in hex, read now. Raises OSError."""
    digest, done, total = hashlib.sha256(), 0, file.stat().st_size
    for chunk in read_chunks(file, chunk=CHUNK):
        digest.update(chunk)
        done += len(chunk)
        progress(name_of(file), done, total)
    return digest.hexdigest()


def hash_each_once(progress: Progress = ignore_progress) -> Digest:
    """A function that reads and hashes a file when it is first asked for it. It raises InputError."""

    @cache
    def digest(file: Path) -> str:
        try:
            return hash_file(file, progress)
        except OSError as error:
            raise InputError(Problem(f"cannot be read: {error.strerror}", file=str(file))) from error

    return digest


@dataclass(frozen=True)
class DownloadRecord:
    """A file that was once found to be what the hub has."""

    expected: Expected
    repo: str
    commit: str
    written: int
    """When it was last written (ns); another time means that it must be looked at again."""
    downloaded: bool = True
    """Whether svi-story wrote it (older records do not say); else it existed, and was found to be this."""


@dataclass
class DownloadRecords:
    """What is known of the files under a models folder. Losing it costs hashing, nothing else."""

    root: Path
    known: dict[str, DownloadRecord] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path) -> DownloadRecords:
        """The records of a models folder; empty when unreadable."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
            stored = json.loads(read_regular(root / RECORDS, MAX_FILE))
            known = {
                name: DownloadRecord(**{**record, "expected": Expected(**record["expected"])})
                for name, record in stored.items()
            }
            return cls(root, known)
        return cls(root)

    def of(self, file: Path) -> DownloadRecord | None:
        """What is known of a file under the models folder."""
        return self.known.get(self._name(file)) if file.is_relative_to(self.root) else None

    def is_known(self, file: Path, expected: Expected) -> bool:
        """Whether a file was found to be this before, and was not written to since."""
        record = self.of(file)
        if record is None or record.expected != expected:
            return False
        stat = file.stat()
        return (stat.st_size, stat.st_mtime_ns) == (expected.bytes, record.written)

    def add(self, file: Path, offered: tuple[Expected, str, str], *, downloaded: bool) -> None:
        """Remember that a file is what the hub has: its content, repository and commit.

        A record that cannot be written is done without.
        """
        self.known[self._name(file)] = DownloadRecord(*offered, file.stat().st_mtime_ns, downloaded)
        known = {name: asdict(record) for name, record in self.known.items()}
        with contextlib.suppress(OSError, RenderError):
            remove_stale_temps(self.root)
            write_atomic(self.root / RECORDS, json.dumps(known, indent=1).encode())

    def _name(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()
