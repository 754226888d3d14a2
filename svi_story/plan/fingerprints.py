"""Content hashes of the files a board names, memoised by inode, size and times."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

from svi_story.errors import InputError, Problem
from svi_story.events import Hashing
from svi_story.files import write_atomic
from svi_story.plan.model import Anchor, Recording

if TYPE_CHECKING:
    from pathlib import Path

    from svi_story.events import Reporter
    from svi_story.plan.model import Fit, Size

READING = 1
"""Raised whenever a recording is read otherwise than before."""

CHUNK = 64 * 2**20
"""Bytes hashed at a time."""


@dataclass
class Fingerprints:
    """Hashes found so far. `memo` is the JSON file that keeps them; losing it costs time, nothing else."""

    memo: Path
    known: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    report: Reporter = lambda _event: None

    @classmethod
    def load(cls, memo: Path, report: Reporter = lambda _event: None) -> Fingerprints:
        """The hashes a memo holds; an unreadable memo is an empty one."""
        known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, AttributeError):
            known = {str(k): str(v) for k, v in json.loads(memo.read_text("utf-8")).items()}
        return cls(memo, known, report=report)

    def save(self) -> None:
        """Write what is new. A memo that cannot be written is done without."""
        if not self.fresh:
            return
        with contextlib.suppress(OSError):
            self.memo.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.memo, json.dumps(Fingerprints.load(self.memo).known | self.fresh).encode())

    def file(self, path: Path) -> str:
        """A file's sha256 in hex, told while it is found the first time. Raises InputError."""
        memo_key = f"sha256 {_file_state(path)}"
        digest = self.known.get(memo_key)
        if digest is None:
            digest = self.known[memo_key] = self.fresh[memo_key] = self._hash(path)
        return digest

    def _hash(self, path: Path) -> str:
        digest, done = hashlib.sha256(), 0
        try:
            total = path.stat().st_size
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                    done += len(chunk)
                    self.report(Hashing(path, done, total))
        except (OSError, ValueError) as error:
            raise InputError(Problem(f"cannot be read: {error}", file=str(path))) from error
        return digest.hexdigest()

    def anchor(self, path: Path, size: Size, fit: Fit) -> Anchor:
        """A reference image with the hash of its pixels after fit. Raises InputError for a bad picture."""
        memo_key = f"pixels {size} {fit} pillow-{version('pillow')} {_file_state(path)}"
        pixels = self.known.get(memo_key)
        if pixels is None:
            pixels = self.known[memo_key] = self.fresh[memo_key] = _hash_pixels(path, size, fit)
        return Anchor(path, size, fit, pixels)

    def recording(self, path: Path) -> Recording:
        """An audio file, read to its end once for each state of it. Raises InputError where it cannot be."""
        memo_key = f"samples {READING} av-{version('av')} {_file_state(path)}"
        samples = self.known.get(memo_key)
        if samples is None:
            samples = self.known[memo_key] = self.fresh[memo_key] = _count_samples(path)
        return Recording(path, self.file(path), int(samples))


def _count_samples(path: Path) -> str:
    from svi_story.media.audio import count_samples

    return str(count_samples(path))


def _file_state(path: Path) -> str:
    """What changes whenever a file's content does; empty when it cannot be asked (reading it says why)."""
    try:
        stat = os.stat(path)  # noqa: PTH116 - Path.stat raises ValueError for a NUL in some versions, as this does
    except (OSError, ValueError):
        return f"unreadable {path}"
    return f"{stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def _hash_pixels(path: Path, size: Size, fit: Fit) -> str:
    from svi_story.media.images import fit_picture, open_picture, pixels_digest

    return pixels_digest(fit_picture(open_picture(path), size.width, size.height, fit))
