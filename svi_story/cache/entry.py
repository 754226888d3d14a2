"""Entries and pieces: folders published whole, with a manifest of every file's size and sha256."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from svi_story.cache.frames import Frames
from svi_story.cache.layout import FRAMES, LATENTS, PIECE_FILE
from svi_story.cache.tensors import load_tensors
from svi_story.files import (
    DAMAGED,
    CorruptError,
    UnfitError,
    make_folder,
    read_regular,
    regular_size,
    sha256_file,
    sync,
    write_atomic,
)
from svi_story.plan.keys import canonical, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from svi_story.plan.keys import Json

    Manifest = Mapping[str, Json]

T = TypeVar("T")

FORMAT = 1
LARGEST_MANIFEST = 16 * 2**20

TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


@dataclass(frozen=True)
class FolderKind:
    """The files of a published folder."""

    manifest: str
    files: tuple[str, ...]


ENTRY = FolderKind("entry.json", (LATENTS, FRAMES))
PIECE = FolderKind("piece.json", (PIECE_FILE,))


@dataclass(frozen=True)
class Entry:
    """A finished segment; it was verified when it was looked up."""

    key: str
    folder: Path
    manifest: Manifest
    """What entry.json says: `inputs` (of the key), `frames`, `files` (bytes, sha256), `notes`, `made`."""

    @property
    def frame_count(self) -> int:
        """Frames the model generated, before any drop."""
        count = self.manifest["frames"]
        assert isinstance(count, int)
        return count

    @property
    def frames_sha256(self) -> str:
        """The sha256 of the frames' file: equal frames, equal value."""
        files = self.manifest["files"]
        assert isinstance(files, dict)
        described = files[FRAMES]
        assert isinstance(described, dict)
        return str(described["sha256"])

    @property
    def engine(self) -> str:
        """The name of the engine that rendered it, by its key's inputs."""
        inputs = self.manifest["inputs"]
        assert isinstance(inputs, dict)
        return str(inputs.get("engine"))

    @property
    def notes(self) -> dict[str, Json]:
        """The notes that were made when it was rendered."""
        notes = self.manifest.get("notes")
        return notes if isinstance(notes, dict) else {}

    @property
    def environment(self) -> dict[str, str]:
        """The machine that rendered it, if the notes describe it."""
        noted = self.notes.get("environment")
        return {name: str(value) for name, value in noted.items()} if isinstance(noted, dict) else {}

    def latents(self) -> dict[str, NDArray[Any]]:
        """The segment's latents by name. CorruptError when they changed since the look-up."""
        latents = load_tensors(self.folder / LATENTS, {"key": self.key})
        if latents is None:
            raise self._vanished()
        return latents

    def frames(self) -> Frames:
        """A reader of the segment's frames, to be closed. CorruptError when they are not complete."""
        try:
            frames = Frames(self.folder / FRAMES)
        except CorruptError:
            if os.path.lexists(self.folder / FRAMES):
                raise
            raise self._vanished() from None
        if len(frames) != self.frame_count:
            frames.close()
            raise CorruptError(f"{self.folder} does not have its {self.frame_count} frames")
        return frames

    def _vanished(self) -> CorruptError:
        return CorruptError(f"{self.folder} vanished while it was used; run the same command again")


def open_entry(folder: Path, key: str) -> Entry:
    """The entry in a folder, every byte verified. CorruptError says what is wrong."""
    manifest = verify_folder(folder, ENTRY, key)
    if not isinstance(manifest.get("frames"), int):
        raise CorruptError(f"{ENTRY.manifest} counts no frames")
    return Entry(key, folder, manifest)


def write_manifest(
    folder: Path, kind: FolderKind, key: str, inputs: Mapping[str, Json], about: Mapping[str, Json]
) -> Manifest:
    """Write the manifest of a folder, after its files are complete and synced."""
    assert key_of(inputs) == key, "the inputs are not those of the key"
    body: dict[str, Json] = {
        **about,
        "format": FORMAT,
        "key": key,
        "inputs": dict(inputs),
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
            for name in kind.files
        },
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    text = json.dumps({**body, "sha256": _digest(body)}, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / kind.manifest, text.encode("utf-8", "surrogatepass"), "writing a manifest")
    return body


def read_manifest(path: Path) -> Manifest:
    """A manifest that matches its own sha256; its files are not read. CorruptError or OSError."""
    try:
        manifest = json.loads(read_regular(path, LARGEST_MANIFEST).decode("utf-8", "surrogatepass"))
        body = {name: value for name, value in manifest.items() if name != "sha256"}
        intact = manifest.get("format") == FORMAT and manifest.get("sha256") == _digest(body)
    except (UnfitError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptError(f"{path.name} is not a manifest") from error
    if not intact:
        raise CorruptError(f"{path.name} is not what was written")
    return body


def verify_folder(folder: Path, kind: FolderKind, key: str) -> Manifest:
    """The manifest of a folder, after verifying every byte of its files.

    CorruptError says what is wrong; other files are ignored. An OSError that says nothing about the content
    (no permission, too many open files) is raised as it is.
    """
    try:
        manifest = read_manifest(folder / kind.manifest)
        if manifest.get("key") != key or key_of(_mapping(manifest, "inputs")) != key:
            raise CorruptError(f"{kind.manifest} belongs to another key")
        recorded = _mapping(manifest, "files")
        for name in kind.files:
            size, expected = regular_size(folder / name), recorded.get(name)
            if not isinstance(expected, dict) or size != expected.get("bytes"):
                known = expected.get("bytes") if isinstance(expected, dict) else "no"
                raise CorruptError(f"{name} has {size} bytes instead of {known}")
            if sha256_file(folder / name) != expected.get("sha256"):
                raise CorruptError(f"{name} has other bytes than were written")
    except OSError as error:
        if error.errno not in DAMAGED:
            raise
        raise CorruptError(f"{error.filename or folder}: {error.strerror}") from error
    return manifest


def publish(private: Path, target: Path, look_up: Callable[[], T | None]) -> T | None:
    """Rename a folder with a manifest to its final name: other processes see all of it or nothing.

    Returns None, or what `look_up` finds if there is one already. `look_up` quarantines a damaged one, which
    allows a second attempt. OSError if neither works.
    """
    sync(private)
    make_folder(target.parent)
    for last_attempt in (False, True):
        try:
            private.rename(target)
        except OSError as error:
            # it exists; or a network file system has sent the rename twice
            if (theirs := look_up()) is not None:
                return theirs
            if last_attempt or error.errno not in TAKEN:
                raise
        else:
            break
    sync(target.parent)
    return None


def _digest(body: Manifest) -> str:
    return hashlib.sha256(canonical(body)).hexdigest()


def _mapping(manifest: Manifest, name: str) -> Mapping[str, Json]:
    value = manifest.get(name)
    if not isinstance(value, dict):
        raise CorruptError(f"the manifest has no {name}")
    return value
