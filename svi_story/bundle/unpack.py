"""Unpacking a bundle, once, into a folder of its own in the cache.

The zip may be hostile. Every member is checked against its size and hash, and all members together are no
larger than the zip. The folder appears complete or not at all.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story.bundle.archive import content, manifest_of, open_archive
from svi_story.bundle.format import (
    BOARD,
    ENTRIES,
    LARGEST_MANIFEST,
    MANIFEST,
    Manifest,
    entry_members,
    read_manifest,
    write_manifest,
)
from svi_story.cache.entry import open_entry, publish
from svi_story.cache.layout import (
    BOARD_FOLDER,
    FRAMES,
    LATENTS,
    LONGEST_PATH_IN_BUNDLE,
    Layout,
    check_length,
    names,
    own_cache,
)
from svi_story.cache.quarantine import quarantine
from svi_story.errors import InputError, Problem
from svi_story.events import Warned
from svi_story.files import (
    DAMAGED,
    CorruptError,
    LockState,
    atomic_file,
    disk,
    is_temp_of_this_host,
    locked,
    make_folder,
    read_regular,
    regular_size,
    remove,
    sync,
    temp_name,
)
from svi_story.storyboard.files import absent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from svi_story.cache.entry import Entry
    from svi_story.events import Reporter
    from svi_story.plan.fingerprints import Fingerprints

LARGEST_LATENTS = 256 * 2**20
"""Bytes of a segment's latents in a bundle: thirty times as many as 81 frames of 832x480 need."""
SYNC_THREADS = 16

DOING = "unpacking the bundle"


@dataclass(frozen=True)
class UnpackedBundle:
    """A bundle's content on disk."""

    zip: Path
    folder: Path
    manifest: Manifest

    @property
    def board(self) -> Path:
        """The board's file, under the name that its author gave it."""
        return self.folder / BOARD_FOLDER / self.manifest.board

    @property
    def cache(self) -> Path | None:
        """Its own cache if it brings finished segments, as they may be forged."""
        return own_cache(self.folder).root if self.manifest.entries else None

    def path(self, member: str) -> Path:
        """The path of a member."""
        if member == BOARD:
            return self.board
        if member.startswith(ENTRIES):
            _, key, name = member.split("/")
            return own_cache(self.folder).entry(key) / name
        return self.folder / member


def unpack(path: Path, cache: Path, fingerprints: Fingerprints) -> UnpackedBundle:
    """A bundle, unpacked into the cache unless it is there already.

    Raises InputError for files that are not bundles, and RenderError when the disk fails.
    """
    reason = absent(path)
    if reason:
        raise InputError(Problem(f"{reason}; check the path", file=str(path)))
    layout = Layout(cache.absolute())
    digest = fingerprints.file(path)
    folder = layout.bundle(digest)

    def look() -> UnpackedBundle | None:
        return _valid_copy(path, folder, fingerprints) or _repair(path, folder, layout, fingerprints)

    found = _valid_copy(path, folder, fingerprints)
    if found is None:
        layout.create()
        waiting = Warned(f"another process is unpacking {path}; waiting for it")
        with locked(layout.lock(digest), lambda: fingerprints.report(waiting)) as lock_state:
            if lock_state is LockState.HELD:
                for temp in names(folder.parent):  # of processes that were killed
                    if is_temp_of_this_host(temp.name) and temp.name.endswith(folder.name):
                        shutil.rmtree(temp, ignore_errors=True)
            found = look() or _unpack(path, folder, look, fingerprints.report)
    with suppress(OSError):  # the time of last use is for `gc` only, and a cache may be read-only
        os.utime(found.folder)
    return found


def _valid_copy(path: Path, folder: Path, fingerprints: Fingerprints) -> UnpackedBundle | None:
    """What was unpacked earlier, if its files are unchanged.

    Its entries are verified by the store when they are used. Raises RenderError for files that cannot be read
    at the moment, which does not mean that they are damaged.
    """
    try:
        raw = read_regular(folder / MANIFEST, LARGEST_MANIFEST)
        found = UnpackedBundle(path, folder, read_manifest(raw, path))
    except (InputError, OSError) as error:
        _raise_unless_damage(error, folder)
        return None
    return found if all(_is_intact(found, name, fingerprints) for name in _files(found)) else None


def _files(found: UnpackedBundle) -> Iterator[str]:
    """The members that are not in the bundle's own cache."""
    return (name for name in found.manifest.members if not name.startswith(ENTRIES))


def _is_intact(found: UnpackedBundle, member: str, fingerprints: Fingerprints) -> bool:
    expected, path = found.manifest.members[member], found.path(member)
    try:
        return regular_size(path) == expected.bytes and fingerprints.file(path) == expected.sha256
    except (InputError, OSError) as error:
        _raise_unless_damage(error, path)
        return False


def _raise_unless_damage(error: Exception, path: Path) -> None:
    """Raises RenderError for an error that does not mean that the content is damaged."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno not in DAMAGED:
        with disk(path, "reading the unpacked bundle"):
            raise cause


def _repair(path: Path, folder: Path, layout: Layout, fingerprints: Fingerprints) -> UnpackedBundle | None:
    """Unpack damaged files again, and only those, as the folder contains segments that were rendered since.

    None if nothing was unpacked yet. Damaged files go to quarantine with a warning.
    """
    if not os.path.lexists(folder):
        return None

    def move_away(damaged: Path) -> None:
        quarantine(layout, fingerprints.report, folder.name, f"{damaged} is damaged", {damaged.name: damaged})

    if folder.is_symlink() or not folder.is_dir():
        move_away(folder)
        return None
    with open_archive(path, folder.name) as archive:
        found = UnpackedBundle(path, folder, manifest_of(archive, path))
        for name in _files(found):
            if not _is_intact(found, name, fingerprints):
                target = found.path(name)
                move_away(target if target.parent.is_dir() else target.parent)
                _write(target, content(archive, name, found.manifest.members[name], path))
    manifest, text = folder / MANIFEST, write_manifest(found.manifest)
    with disk(manifest, DOING):
        try:
            intact = read_regular(manifest, len(text)) == text
        except OSError as error:
            _raise_unless_damage(error, manifest)
            intact = False
        if not intact:
            move_away(manifest)
            _write(manifest, (text,))
    return found


def _write(target: Path, chunks: Iterable[bytes]) -> None:
    """Write a file completely or not at all."""
    with disk(target, DOING):
        make_folder(target.parent)
        with atomic_file(target, doing=DOING) as temp, temp.open("wb") as file:
            file.writelines(chunks)


def _unpack(
    path: Path, folder: Path, look: Callable[[], UnpackedBundle | None], report: Reporter
) -> UnpackedBundle:
    temp = folder.with_name(f"{temp_name()}-{folder.name}")
    try:
        with disk(folder, DOING):
            make_folder(temp)
        with open_archive(path, folder.name) as archive:
            unpacked = UnpackedBundle(path, temp, manifest_of(archive, path))
            if unpacked.cache:
                check_length(folder.parents[1], LONGEST_PATH_IN_BUNDLE)
            for name, expected in unpacked.manifest.members.items():
                target = unpacked.path(name)
                with disk(target, DOING):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("xb") as file:
                        file.writelines(content(archive, name, expected, path))
        _drop_invalid_entries(unpacked, report)
        with disk(folder, DOING):
            (temp / MANIFEST).write_bytes(write_manifest(unpacked.manifest))
            _fsync(temp)
            theirs = publish(temp, folder, look)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return theirs or UnpackedBundle(path, folder, unpacked.manifest)


def _fsync(folder: Path) -> None:
    """Sync everything to disk except the entries, which the store verifies when they are used."""
    own = own_cache(folder).root
    files: list[Path] = []
    folders: list[Path] = []
    for parent, subfolders, file_names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if Path(parent, name) != own)
        files += (Path(parent, name) for name in sorted(file_names))
        folders.append(Path(parent))
    with ThreadPoolExecutor(SYNC_THREADS) as pool:  # there may be thousands
        for paths in (files, folders):
            for _ in pool.map(sync, paths):
                pass


def _drop_invalid_entries(found: UnpackedBundle, report: Reporter) -> None:
    """Leave out entries that do not match their keys: they are rendered again."""
    reasons: list[str] = []
    for key in sorted(found.manifest.entries):
        folder = found.path(entry_members(key)[0]).parent
        try:
            _check_entry(open_entry(folder, key))
        except CorruptError as error:
            reasons.append(str(error).replace(f"{found.folder}{os.sep}", ""))
            with disk(folder, DOING):
                remove(folder)
    if reasons:
        what = f"{len(reasons)} of its segments cannot be used, and are left out: {reasons[0]}"
        report(Warned(f"{found.zip}: {what}"))


def _check_entry(entry: Entry) -> None:
    """Raises CorruptError for frames whose size or number is not that of the key's inputs.

    Also for latents that would fill the memory, as they are read at once.
    """
    latents = (entry.folder / LATENTS).stat().st_size
    if latents > LARGEST_LATENTS:
        raise CorruptError(f"{entry.folder / LATENTS} has {latents} bytes, more than {LARGEST_LATENTS}")
    entry.latents()
    inputs = entry.manifest.get("inputs")
    asked = inputs.get("inputs") if isinstance(inputs, dict) else None
    about: Mapping[str, object] = asked if isinstance(asked, dict) else {}
    with entry.frames() as frames:
        found = {"width": frames.width, "height": frames.height, "frames": len(frames)}
    if any(about.get(name) != number for name, number in found.items()):
        raise CorruptError(f"{entry.folder / FRAMES} has {found}, unlike the inputs of its key")
