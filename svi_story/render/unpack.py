"""Unpacking a stranger's bundle: once, checked to the last byte, into a folder of its own in the cache.

Nothing in the zip is believed. A member is as large as its hash says, or refused; all members together are no
larger than the zip. The folder is seen complete or not at all.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story.cache.entry import open_entry, publish
from svi_story.cache.layout import BOARD_FOLDER, FRAMES, LATENTS, Layout, names, own_cache
from svi_story.cache.quarantine import quarantine
from svi_story.errors import InputError, Problem
from svi_story.events import Warned
from svi_story.files import (
    DAMAGED,
    CorruptError,
    Hold,
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
from svi_story.render.bundle import (
    BOARD,
    ENTRIES,
    LARGEST_MANIFEST,
    MANIFEST,
    Manifest,
    entry_members,
    read_manifest,
    write_manifest,
)
from svi_story.render.members import content, manifest_of, opened
from svi_story.storyboard.files import absent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from zipfile import ZipFile

    from svi_story.cache.entry import Entry
    from svi_story.events import Reporter
    from svi_story.plan.fingerprints import Fingerprints

LARGEST_LATENTS = 256 * 2**20
"""Bytes of a segment's latents in a bundle: thirty times as many as 81 frames of 832x480 need."""
_SYNCS = 16

DOING = "unpacking the bundle"


@dataclass(frozen=True)
class Unpacked:
    """A bundle's content on the disk."""

    zip: Path
    folder: Path
    manifest: Manifest

    @property
    def board(self) -> Path:
        """The board's file, under its author's name for it."""
        return self.folder / BOARD_FOLDER / self.manifest.board

    @property
    def cache(self) -> Path | None:
        """The cache of its own, where it brings finished segments: they may be forged."""
        return own_cache(self.folder).root if self.manifest.entries else None

    def place(self, member: str) -> Path:
        """Where a member lies."""
        if member == BOARD:
            return self.board
        if member.startswith(ENTRIES):
            _, key, name = member.split("/")
            return own_cache(self.folder).entry(key) / name
        return self.folder / member


def unpack(path: Path, cache: Path, fingerprints: Fingerprints) -> Unpacked:
    """A bundle, unpacked into the cache unless it is there already.

    Raises InputError for whatever is no bundle of ours, and RenderError when the disk refuses.
    """
    reason = absent(path)
    if reason:
        raise InputError(Problem(f"{reason}; check the path", file=str(path)))
    layout = Layout(cache.absolute())
    digest = fingerprints.file(path)
    folder = layout.bundle(digest)

    def look() -> Unpacked | None:
        return _look(path, folder, fingerprints) or _mend(path, folder, layout, fingerprints)

    found = _look(path, folder, fingerprints)
    if found is None:
        layout.create()
        waiting = Warned(f"another process is unpacking {path}; waiting for it")
        with locked(layout.lock(digest), lambda: fingerprints.report(waiting)) as hold:
            if hold is Hold.HELD:
                _sweep(folder)
            found = look() or _unpack(path, folder, look, fingerprints.report)
    with suppress(OSError):  # the time of last use is for `gc` only, and a cache may be read-only
        os.utime(found.folder)
    return found


def _look(path: Path, folder: Path, fingerprints: Fingerprints) -> Unpacked | None:
    """What was unpacked before, if its files are as they were.

    Its entries are verified by the store, when they are used. Raises RenderError for what cannot be read now:
    that says nothing about its content.
    """
    try:
        raw = read_regular(folder / MANIFEST, LARGEST_MANIFEST)
        found = Unpacked(path, folder, read_manifest(raw, path))
    except (InputError, OSError) as error:
        _check_damage(error, folder)
        return None
    return found if all(_is_whole(found, name, fingerprints) for name in _outside(found)) else None


def _outside(found: Unpacked) -> Iterator[str]:
    """The members that are in no cache."""
    return (name for name in found.manifest.members if not name.startswith(ENTRIES))


def _is_whole(found: Unpacked, member: str, fingerprints: Fingerprints) -> bool:
    wanted, place = found.manifest.members[member], found.place(member)
    try:
        return regular_size(place) == wanted.bytes and fingerprints.file(place) == wanted.sha256
    except (InputError, OSError) as error:
        _check_damage(error, place)
        return False


def _check_damage(error: Exception, place: Path) -> None:
    """Raises RenderError for what may be read another time: it is not damaged."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno not in DAMAGED:
        with disk(place, "reading what was unpacked of the bundle"):
            raise cause


def _mend(path: Path, folder: Path, layout: Layout, fingerprints: Fingerprints) -> Unpacked | None:
    """Unpack again what is damaged, and nothing else: segments that were rendered since lie beside it.

    None where nothing was unpacked. What is replaced is set aside with a warning.
    """
    if not os.path.lexists(folder):
        return None

    def out_of_the_way(thing: Path) -> None:
        quarantine(layout, fingerprints.report, folder.name, f"{thing} is damaged", {thing.name: thing})

    if folder.is_symlink() or not folder.is_dir():
        out_of_the_way(folder)
        return None
    with opened(path, folder.name) as archive:
        found = Unpacked(path, folder, manifest_of(archive, path))
        for name in _outside(found):
            place = found.place(name)
            if not _is_whole(found, name, fingerprints):
                out_of_the_way(place if place.parent.is_dir() else place.parent)
                _put(place, content(archive, name, found.manifest.members[name], path))
    _mend_manifest(found, out_of_the_way)
    return found


def _mend_manifest(found: Unpacked, out_of_the_way: Callable[[Path], None]) -> None:
    place, text = found.folder / MANIFEST, write_manifest(found.manifest)
    with disk(place, DOING):
        try:
            if read_regular(place, len(text)) == text:
                return
        except OSError as error:
            _check_damage(error, place)
        out_of_the_way(place)
        _put(place, (text,))


def _put(place: Path, pieces: Iterable[bytes]) -> None:
    """A file under its name, complete or not at all."""
    with disk(place, DOING):
        make_folder(place.parent)
        temp = place.with_name(temp_name())
        try:
            with temp.open("xb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            temp.replace(place)
            sync(place.parent)
        finally:
            temp.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left of this bundle, half unpacked."""
    for path in names(folder.parent):
        if is_temp_of_this_host(path.name) and path.name.endswith(folder.name):
            shutil.rmtree(path, ignore_errors=True)


def _unpack(path: Path, folder: Path, look: Callable[[], Unpacked | None], report: Reporter) -> Unpacked:
    temp = folder.with_name(f"{temp_name()}-{folder.name}")
    try:
        with disk(folder, DOING):
            make_folder(temp)
        with opened(path, folder.name) as archive:
            made = Unpacked(path, temp, manifest_of(archive, path))
            _extract(archive, made)
        _drop_unfit(made, report)
        with disk(folder, DOING):
            (temp / MANIFEST).write_bytes(write_manifest(made.manifest))
            _settle(temp)
            theirs = publish(temp, folder, look)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return theirs or Unpacked(path, folder, made.manifest)


def _extract(archive: ZipFile, found: Unpacked) -> None:
    for name, wanted in found.manifest.members.items():
        target = found.place(name)
        with disk(target, DOING):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                file.writelines(content(archive, name, wanted, found.zip))


def _settle(folder: Path) -> None:
    """Force all to the disk but the entries, which the store verifies when they are used."""
    own = own_cache(folder).root
    files: list[Path] = []
    folders: list[Path] = []
    for parent, names_, held in os.walk(folder):
        names_[:] = sorted(name for name in names_ if Path(parent, name) != own)
        files += (Path(parent, name) for name in sorted(held))
        folders.append(Path(parent))
    with ThreadPoolExecutor(_SYNCS) as pool:  # a disk takes many at once, and there may be thousands
        for paths in (files, folders):
            for _ in pool.map(sync, paths):
                pass


def _drop_unfit(found: Unpacked, report: Reporter) -> None:
    """Leave out entries that are not what their keys say: they are made again."""
    reasons: list[str] = []
    for key in sorted(found.manifest.entries):
        folder = found.place(entry_members(key)[0]).parent
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
    """Raises CorruptError for frames of another size or number than the key's inputs say.

    And for latents that would fill the memory: they are read whole.
    """
    latents = (entry.folder / LATENTS).stat().st_size
    if latents > LARGEST_LATENTS:
        raise CorruptError(f"{entry.folder / LATENTS} has {latents} bytes, more than {LARGEST_LATENTS}")
    entry.latents()
    inputs = entry.manifest.get("inputs")
    asked = inputs.get("inputs") if isinstance(inputs, dict) else None
    about: Mapping[str, object] = asked if isinstance(asked, dict) else {}
    with entry.frames() as frames:
        held = {"width": frames.width, "height": frames.height, "frames": len(frames)}
    if any(about.get(name) != number for name, number in held.items()):
        raise CorruptError(f"{entry.folder / FRAMES} holds {held}, which its key does not say")
