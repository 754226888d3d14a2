"""Content hashes of the files a board names, memoised by inode, size and times."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from svi_story.errors import InputError, Problem, RenderError
from svi_story.events import Hashing, Warned
from svi_story.files import (
    UnfitError,
    chunks_of,
    open_regular,
    read_regular,
    remove_stale_temps,
    write_atomic,
)
from svi_story.plan.keys import version_of
from svi_story.plan.model import Anchor, Recording, Size
from svi_story.settings import user_cache

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from typing import BinaryIO

    from svi_story.events import Reporter
    from svi_story.plan.model import Fit

READING = 1
"""Raised whenever recordings are decoded differently than before."""

LARGEST = 64 * 2**20
"""Bytes of the memo file: 400,000 hashes."""

RULES = 2
"""Raised whenever files are read in another way: results found under older rules are not trusted."""

CHUNK = 64 * 2**20
"""Bytes hashed at a time."""


@dataclass
class Fingerprints:
    """Hashes found so far. `memo` is the JSON file that stores them; losing it only costs time."""

    memo: Path
    known: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    report: Reporter = lambda _event: None
    hashed: int = 0
    """Bytes that had to be read."""

    @classmethod
    def load(
        cls, memo: Path, report: Reporter = lambda _event: None, older: Iterable[Path] = ()
    ) -> Fingerprints:
        """The hashes of a memo file, and of older ones, which are only read; unreadable ones are ignored."""
        known: dict[str, str] = {}
        for path in (*older, memo):
            with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
                known |= {str(k): str(v) for k, v in json.loads(read_regular(path, LARGEST)).items()}
        return cls(memo, known, report=report)

    @classmethod
    def of_this_machine(cls, report: Reporter, caches: Iterable[Path] = ()) -> Fingerprints:
        """The hashes that all projects share, and those that older versions kept in these caches."""
        return cls.load(user_cache() / "hashes.json", report, [cache / "memo.json" for cache in caches])

    def save(self, min_bytes: int = 0) -> None:
        """Write the new hashes, if that many bytes were read for them.

        A memo file that cannot be written is ignored.
        """
        if not self.fresh or self.hashed < min_bytes:
            return
        with contextlib.suppress(OSError, RenderError):
            self.memo.parent.mkdir(parents=True, exist_ok=True)
            remove_stale_temps(self.memo.parent)
            write_atomic(self.memo, json.dumps(Fingerprints.load(self.memo).known | self.fresh).encode())

    def file(self, path: Path) -> str:
        """A file's sha256 in hex; reports progress while it is computed. Raises InputError."""
        memo_key = f"sha256 {_file_state(path)}"
        digest = self.known.get(memo_key)
        if digest is None:
            try:
                with open_regular(path) as file:
                    digest = self._hash(path, file)
            except UnfitError as error:
                raise InputError(Problem(f"{error.strerror}; check the path", file=str(path))) from error
            except (OSError, ValueError) as error:
                raise InputError(Problem(f"cannot be read: {error}", file=str(path))) from error
            self._learn(memo_key, digest)
        return digest

    def remembered(self, path: Path) -> str:
        """A file's sha256 if it is known already, else nothing."""
        return self.known.get(f"sha256 {_file_state(path)}", "")

    def _learn(self, memo_key: str, value: str) -> None:
        self.known[memo_key] = self.fresh[memo_key] = value

    def _hash(self, path: Path, file: BinaryIO) -> str:
        digest, done, total = hashlib.sha256(), 0, os.fstat(file.fileno()).st_size
        for chunk in chunks_of(path, file, CHUNK):
            digest.update(chunk)
            done += len(chunk)
            self.hashed += len(chunk)
            self.report(Hashing(path, done, total))
        return digest.hexdigest()

    def anchor(self, path: Path, size: Size, fit: Fit) -> Anchor:
        """A reference image with the hash of its pixels after fit. Raises InputError for an invalid image."""
        state = _file_state(path)
        memo_key = f"pixels {size} {fit} rules-{RULES} pillow-{version_of('pillow')} {state}"
        size_key = f"picture-size rules-{RULES} pillow-{version_of('pillow')} {state}"
        pixels, source = self.known.get(memo_key), self.known.get(size_key)
        if pixels is None or source is None:
            pixels, (width, height) = _hash_pixels(path, size, fit)
            source = f"{width}x{height}"
            if _file_state(path) == state:
                self._learn(memo_key, pixels)
                self._learn(size_key, source)
        return Anchor(path, size, fit, pixels, Size(*map(int, source.split("x"))))

    def recording(self, path: Path) -> Recording:
        """An audio file, read completely once for each state of it. Raises InputError.

        Exactly the bytes that were decoded are hashed, because later readers trust a file with that hash.
        """
        state = _file_state(path)
        samples = self.known.get(_samples_key(state))
        if samples is None or f"sha256 {state}" not in self.known:
            state, samples = self._read(path)
        return Recording(path, self.known[f"sha256 {state}"], int(samples))

    def _read(self, path: Path) -> tuple[str, str]:
        """The state of a recording that did not change while it was read and hashed, and its samples."""
        from svi_story.media.audio_files import SoundError, open_sound
        from svi_story.media.containers import count_joined_files
        from svi_story.media.guard import count_samples

        with open_sound(path) as file:
            state = _state(os.fstat(file.fileno()))
            samples = self.known.get(_samples_key(state)) or str(count_samples(path, file))
            joined = count_joined_files(path, file)
            if joined > 1:
                what = f"consists of {joined} sound files, one behind the other; all of them are read"
                self.report(Warned(f"{path}: {what}"))
            file.seek(0)
            try:
                digest = self._hash(path, file)
            except OSError as error:
                raise InputError(Problem(f"cannot be read: {error}", file=str(path))) from error
            if _state(os.fstat(file.fileno())) != state:
                raise SoundError(path, "changed while it was read; run the same command again")
        self._learn(f"sha256 {state}", digest)
        self._learn(_samples_key(state), samples)
        return state, samples


def _samples_key(state: str) -> str:
    return f"samples {READING} rules-{RULES} av-{version_of('av')} {state}"


def _file_state(path: Path) -> str:
    """A text that changes whenever the file does; a missing file is reported when it is read."""
    try:
        stat = os.stat(path)  # noqa: PTH116 - Path.stat raises ValueError for a NUL in some versions, as this does
    except (OSError, ValueError):
        return f"unreadable {path}"
    return _state(stat)


def _state(stat: os.stat_result) -> str:
    return f"{stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def _hash_pixels(path: Path, size: Size, fit: Fit) -> tuple[str, tuple[int, int]]:
    """The hash of a picture's pixels after fit, and its size before."""
    from svi_story.media.guard import fitted_and_size
    from svi_story.media.images import pixels_digest

    pixels, source = fitted_and_size(path, size.width, size.height, fit)
    return pixels_digest(pixels), source
