"""The paths of everything below the cache's root."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story.errors import InputError, Problem
from svi_story.files import TEMP, disk, make_folder, read_regular, write_atomic
from svi_story.portable import longest_path

if TYPE_CHECKING:
    from collections.abc import Iterator

LATENTS = "latents.safetensors"
FRAMES = "frames.avi"
CHECKPOINT = "checkpoint.safetensors"
PIECE_FILE = "piece.mp4"
BOARD_FOLDER = "board"
"""The folder of the board in an unpacked bundle."""

BUNDLES = "bundles"

TAG_NAME = "CACHEDIR.TAG"
TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# This folder is a cache of svi-story: finished segments by content address.
# Whatever is missing is rendered again. For this tag see https://bford.info/cachedir/
"""

TRASH = ".trash-"

LARGEST_FILE = 2**28

LONGEST_PATH, LONGEST_PATH_IN_BUNDLE = 165, 245
"""Characters of the longest paths below a cache, where the host's name has 15: unfinished files, in the cache
itself and in that of a bundle which brings segments."""

KEY = re.compile(r"[0-9a-f]{64}")
LOCK = re.compile(r"[0-9a-f]{64}\.lock")
OLD_TEMP = re.compile(r"tmp[a-z0-9_]{8}")
"""How older versions named temporary files in the cache's root."""


@dataclass(frozen=True)
class Layout:
    """The paths of a cache. Asking for one creates nothing."""

    root: Path

    def entry(self, key: str) -> Path:
        """The folder of a finished segment."""
        return self._sharded("entries", key)

    def piece(self, key: str) -> Path:
        """The folder of an encoded piece of film."""
        return self._sharded("pieces", key)

    def embedding(self, key: str) -> Path:
        """The file of an encoded prompt."""
        return self.root / "embeddings" / f"{_checked(key)}.safetensors"

    def embeddings(self) -> Iterator[Path]:
        """The files of all encoded prompts."""
        return (path for path in names(self.root / "embeddings") if KEY.fullmatch(path.stem))

    def work(self, key: str) -> Path:
        """The folder of a segment or piece in progress."""
        return self.root / "work" / _checked(key)

    def lock(self, key: str) -> Path:
        """The lock file of a key."""
        return self.root / "locks" / f"{_checked(key)}.lock"

    @property
    def quarantine(self) -> Path:
        """The folder for what is damaged, or rendered again by force."""
        return self.root / "set-aside"

    @property
    def films(self) -> Path:
        """One small record per film: the entries and pieces it uses."""
        return self.root / "films"

    @property
    def ledger(self) -> Path:
        """One small file for each file that svi-story wrote outside the cache."""
        return self.root / "ledger"

    @property
    def runs(self) -> Path:
        """A folder for each run, with the log of its events."""
        return self.root / "runs"

    def bundle(self, digest: str) -> Path:
        """The folder of an unpacked bundle, by the zip's sha256."""
        return self.root / BUNDLES / _checked(digest)

    def bundles(self) -> Iterator[Path]:
        """The folders of all unpacked bundles."""
        return keyed(self.root / BUNDLES)

    @property
    def origin(self) -> str | None:
        """The sha256 of the bundle whose own cache this is; None for any other.

        Such a cache is untrusted: an entry in it may have other frames than its key promises, so a film made
        of its entries counts as another film.
        """
        bundle = self.root.parent
        is_own = self.root == own_cache(bundle).root and bundle.parent.name == BUNDLES
        return bundle.name if is_own and KEY.fullmatch(bundle.name) else None

    def is_tagged(self) -> bool:
        """Whether it exists and is a cache of svi-story."""
        try:
            return read_regular(self.root / TAG_NAME, LARGEST_FILE) == TAG
        except OSError:
            return False

    def create(self) -> None:
        """Create the root and tag it as a cache, so that backups can exclude it."""
        with disk(self.root, "creating the cache"):
            if not (self.root / TAG_NAME).exists():
                make_folder(self.root)
                write_atomic(self.root / TAG_NAME, TAG, "creating the cache")

    def entries(self) -> Iterator[Path]:
        """The folders of all finished segments, by key."""
        return self._all("entries")

    def pieces(self) -> Iterator[Path]:
        """The folders of all pieces, by key."""
        return self._all("pieces")

    def works(self) -> Iterator[Path]:
        """The folders of all unfinished work."""
        return keyed(self.root / "work")

    def locks(self) -> Iterator[Path]:
        """The lock files of all keys that were ever worked on."""
        return (path for path in names(self.root / "locks") if LOCK.fullmatch(path.name))

    def trash(self) -> Iterator[Path]:
        """The remains of interrupted deletions."""
        shards = [shard for kind in ("entries", "pieces") for shard in names(self.root / kind)]
        for folder in (*shards, *self._folders()):
            yield from (path for path in names(folder) if path.name.startswith(TRASH))
        for bundle in self.bundles():
            yield from own_cache(bundle).trash()

    def temps(self) -> Iterator[Path]:
        """Partly written files of processes that were killed."""
        for folder in self._folders():
            yield from (path for path in names(folder) if path.name.startswith(TEMP))
        yield from (path for path in names(self.root) if OLD_TEMP.fullmatch(path.name))
        for bundle in self.bundles():
            yield from own_cache(bundle).temps()

    def _folders(self) -> Iterator[Path]:
        """Every folder in which files are created and deleted, except the shards of finished folders."""
        yield from (self.root, self.quarantine, self.films, self.ledger)
        yield from (self.root / "locks", self.root / "embeddings")
        yield from (self.root / "work", *self.works())
        yield self.root / BUNDLES
        for bundle in self.bundles():
            for parent, inside, _ in os.walk(bundle):
                inside[:] = sorted(name for name in inside if Path(parent, name) != own_cache(bundle).root)
                yield Path(parent)

    def _sharded(self, kind: str, key: str) -> Path:
        return self.root / f"{kind}/{_checked(key)[:2]}/{key}"  # one join: films have 20,000 segments

    def _all(self, kind: str) -> Iterator[Path]:
        for shard in names(self.root / kind):
            yield from (folder for folder in keyed(shard) if folder.name.startswith(shard.name))


def check_length(root: Path, inside: int) -> None:
    """Raises InputError where paths of so many characters below a cache are too long for the system."""
    most, length = longest_path(), len(str(root.absolute()))
    if most and length + inside > most:
        what = (
            f"its path has {length} characters, and those of the files in it would have more than the {most} "
            "that Windows allows; enable long paths in Windows, or choose another cache with --cache"
        )
        raise InputError(Problem(what, file=str(root)))


def own_cache(bundle: Path) -> Layout:
    """The separate cache of an unpacked bundle: its entries may be forged."""
    return Layout(bundle / "cache")


def _checked(key: str) -> str:
    assert KEY.fullmatch(key), f"not a key: {key!r}"
    return key


def names(folder: Path) -> list[Path]:
    """The paths in a folder, sorted; none where there is no folder. RenderError when it cannot be read."""
    with disk(folder, "reading the cache"):
        try:
            return sorted(folder.iterdir())
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return []


def keyed(folder: Path) -> Iterator[Path]:
    """The paths in a folder that are named by a key; others are ignored."""
    return (path for path in names(folder) if KEY.fullmatch(path.name))
