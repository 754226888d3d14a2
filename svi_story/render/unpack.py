"""Unpacking a stranger's bundle: once, checked to the last byte, into a folder of its own in the cache.

Nothing in the zip is believed. A member is as large as its hash says, or refused; all members together are no
larger than the zip. The folder is seen complete or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, LargeZipFile, ZipFile, ZipInfo

from svi_story.cache.aside import quarantine
from svi_story.cache.entry import open_entry
from svi_story.cache.files import (
    CorruptError,
    disk,
    is_temp_of_this_host,
    make_folder,
    regular_size,
    remove,
    sync,
    temp_name,
)
from svi_story.cache.layout import BOARD_FOLDER, FRAMES, Layout, names, own_cache
from svi_story.cache.locks import Hold, locked
from svi_story.cache.sealed import publish
from svi_story.errors import InputError, Problem
from svi_story.events import Warned
from svi_story.render.bundle import (
    AGAIN,
    BOARD,
    ENTRIES,
    LARGEST_MANIFEST,
    MANIFEST,
    MODE,
    Manifest,
    entry_members,
    read_manifest,
    write_manifest,
)
from svi_story.storyboard.files import absent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from svi_story.cache.entry import Entry
    from svi_story.events import Reporter
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.render.bundle import Sealed

CHUNK = 2**20
DOING = "unpacking the bundle"
LARGEST_READ = 16 * 2**20
"""Bytes: zipfile reads the list of members at once, as long as the zip says it is."""
SLACK = 192
"""Bytes of the zip's own for each member, besides its name twice; and at the end of the zip."""

BROKEN = (
    *(BadZipFile, LargeZipFile, NotImplementedError, RuntimeError, struct.error),
    *(EOFError, LookupError, ValueError, ArithmeticError),
)
"""What zipfile raises on files that are none."""


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
        return _look(path, folder, layout, fingerprints)

    found = look()
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


def _look(path: Path, folder: Path, layout: Layout, fingerprints: Fingerprints) -> Unpacked | None:
    """What was unpacked before, if its files are as they were; a damaged one is set aside with a warning.

    Its entries are verified by the store, when they are used.
    """
    if not os.path.lexists(folder):
        return None
    reason = "it is not whole"
    try:
        if regular_size(folder / MANIFEST) is not None:
            found = Unpacked(path, folder, read_manifest((folder / MANIFEST).read_bytes(), path))
            outside = (name for name in found.manifest.members if not name.startswith(ENTRIES))
            if all(_is_whole(found, name, fingerprints) for name in outside):
                return found
    except (InputError, OSError) as error:
        reason = str(error)
    what = f"{folder} is damaged: {reason}"
    quarantine(layout, fingerprints.report, folder.name, what, {"bundle": folder})
    return None


def _is_whole(found: Unpacked, member: str, fingerprints: Fingerprints) -> bool:
    wanted, place = found.manifest.members[member], found.place(member)
    return regular_size(place) == wanted.bytes and fingerprints.file(place) == wanted.sha256


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
        with _opened(path, folder.name) as archive:
            made = Unpacked(path, temp, _manifest_of(archive, path))
            for name, wanted in made.manifest.members.items():
                _extract(archive, name, wanted, made.place(name), path)
        for key in made.manifest.entries:
            _judge(made, key, report)
        with disk(folder, DOING):
            _write(temp / MANIFEST, (write_manifest(made.manifest),))
            _sync_folders(temp)
            theirs = publish(temp, folder, look)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return theirs or Unpacked(path, folder, made.manifest)


@contextmanager
def _opened(path: Path, digest: str) -> Iterator[ZipFile]:
    """The zip, opened once. Raises InputError when it is none, or changes while it is read."""
    try:
        with os.fdopen(_open_regular(path), "rb") as file:
            before = _state(file)
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise _refused(path, "changed while it was read; run the same command again")
            with ZipFile(_Careful(file)) as archive:
                yield archive
            if _state(file) != before:
                raise _refused(path, "changed while it was read; run the same command again")
    except BROKEN as error:
        detail = str(error)[:200] or type(error).__name__
        raise _refused(path, f"is not a bundle, or is damaged ({detail}); {AGAIN}") from error
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror or error}); check the file") from error


def _open_regular(path: Path) -> int:
    """Open what is still a regular file: a pipe put in its place would be waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError("not a regular file")
    return fd


def _state(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Careful:
    """A file that is never read in one large piece, whatever a zip says of its size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """At most LARGEST_READ bytes. Raises BadZipFile when asked for more."""
        if size > LARGEST_READ:
            raise BadZipFile("it lists too many members")
        return self._file.read(size if size >= 0 else LARGEST_READ)


def _manifest_of(archive: ZipFile, path: Path) -> Manifest:
    """The manifest, when the zip holds what it names and nothing else. Raises InputError."""
    infos = archive.infolist()
    _check_members(infos, path)
    sizes = {info.filename: info.file_size for info in infos}
    if sizes.get(MANIFEST, LARGEST_MANIFEST + 1) > LARGEST_MANIFEST:
        raise _refused(path, f"is not a bundle: it holds no {MANIFEST}; {AGAIN}")
    _check_size(infos, path)
    manifest = read_manifest(archive.read(MANIFEST), path)
    named = {name: sealed.bytes for name, sealed in manifest.members.items()}
    odd = sorted(sizes.keys() - {MANIFEST} ^ named.keys())
    if odd:
        raise _refused(path, f"its {MANIFEST} and its members differ: {odd[0][:100]!r}; {AGAIN}")
    if any(sizes[name] != size for name, size in named.items()):
        raise _refused(path, f"its members are not as large as its {MANIFEST} says; {AGAIN}")
    return manifest


def _check_members(infos: list[ZipInfo], path: Path) -> None:
    """No links, folders, devices, compression or encryption; no name twice, or one that is cut short."""
    seen: set[str] = set()
    for info in infos:
        name = info.orig_filename
        plain = (info.compress_type, info.flag_bits, info.external_attr) == (ZIP_STORED, 0, MODE)
        if not plain or info.file_size != info.compress_size or name != info.filename:
            raise _refused(path, f"its member {name[:100]!r} is not a plain, stored file; {AGAIN}")
        if name in seen:
            raise _refused(path, f"its member {name[:100]!r} is there twice; {AGAIN}")
        seen.add(name)


def _check_size(infos: list[ZipInfo], path: Path) -> None:
    """Every byte belongs to one member: what is hidden before, between or after them is refused."""
    own = sum(2 * len(info.filename.encode()) + SLACK for info in infos) + SLACK
    content, size = sum(info.file_size for info in infos), path.stat().st_size
    if not content <= size <= content + own or min(info.header_offset for info in infos) != 0:
        raise _refused(path, f"its size is not that of its members; {AGAIN}")


def _extract(archive: ZipFile, name: str, wanted: Sealed, target: Path, path: Path) -> None:
    digest = hashlib.sha256()

    def chunks() -> Iterator[bytes]:
        left = wanted.bytes
        with archive.open(name) as source:
            while left and (chunk := source.read(min(CHUNK, left))):
                left -= len(chunk)
                digest.update(chunk)
                yield chunk

    with disk(target, DOING):
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, chunks())
    if digest.hexdigest() != wanted.sha256:
        raise _refused(path, f"its member {name} is damaged (by its sha256); {AGAIN}")


def _write(target: Path, chunks: Iterator[bytes] | tuple[bytes, ...]) -> None:
    with target.open("xb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _sync_folders(folder: Path) -> None:
    for parent, _, _ in os.walk(folder):
        sync(Path(parent))


def _judge(made: Unpacked, key: str, report: Reporter) -> None:
    """Leave out an entry that is not what its key says: it is made again."""
    folder = made.place(entry_members(key)[0]).parent
    try:
        _check_frames(open_entry(folder, key))
    except CorruptError as error:
        report(Warned(f"{made.zip}: its entry {key[:12]} is left out, and made again if needed: {error}"))
        with disk(folder, DOING):
            remove(folder)


def _check_frames(entry: Entry) -> None:
    """Raises CorruptError for frames of another size or number than the key's inputs say."""
    inputs = entry.manifest.get("inputs")
    asked = inputs.get("inputs") if isinstance(inputs, dict) else None
    about: Mapping[str, object] = asked if isinstance(asked, dict) else {}
    with entry.frames() as frames:
        made = {"width": frames.width, "height": frames.height, "frames": len(frames)}
        if any(about.get(name) != number for name, number in made.items()):
            raise CorruptError(f"{FRAMES} holds {made}")


def _refused(path: Path, what: str) -> InputError:
    return InputError(Problem(what, file=str(path)))
