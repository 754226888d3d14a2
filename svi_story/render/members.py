"""Reading a stranger's zip: nothing in it is believed."""

from __future__ import annotations

import hashlib
import os
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, LargeZipFile, ZipFile, ZipInfo

from svi_story.errors import InputError, Problem
from svi_story.files import open_regular
from svi_story.render.bundle import AGAIN, LARGEST_MANIFEST, MANIFEST, MODE, Manifest, read_manifest
from svi_story.render.seamless import check_seamless

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from svi_story.render.bundle import Sealed

CHUNK = 2**20
LOCAL = 30
"""Bytes of what a zip says of a member before its name."""
LARGEST_READ = 16 * 2**20
"""Bytes: zipfile reads the list of members at once, as long as the zip says it is."""

BROKEN = (
    *(BadZipFile, LargeZipFile, NotImplementedError, RuntimeError, struct.error),
    *(EOFError, LookupError, ValueError, ArithmeticError),
)
"""What zipfile raises on files that are none."""


@contextmanager
def opened(path: Path, digest: str) -> Iterator[ZipFile]:
    """The zip, opened once, of plain members and nothing besides them.

    Raises InputError when it is none, or changes while it is read.
    """
    try:
        with open_regular(path) as file:
            before = _state(file)
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise _refused(path, "changed while it was read; run the same command again")
            with ZipFile(_Careful(file)) as archive:
                _check_members(archive.infolist(), path)
                check_seamless(file, archive.infolist())
                yield archive
            if _state(file) != before:
                raise _refused(path, "changed while it was read; run the same command again")
    except BROKEN as error:
        detail = str(error)[:200] or type(error).__name__
        raise _refused(path, f"is not a bundle, or is damaged ({detail}); {AGAIN}") from error
    except OSError as error:
        raise _refused(path, f"cannot be read ({error.strerror or error}); check the file") from error


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


def first_manifest(path: Path) -> Manifest | None:
    """The manifest that a file begins with, if it is a bundle that svi-story packed; nothing else is read."""
    with suppress(OSError, InputError, struct.error), open_regular(path) as file:
        head = file.read(LOCAL)
        signature, method, size, name_size, extra = struct.unpack("<4s4xH8x4xIHH", head)
        if (signature, method, extra) == (b"PK\3\4", ZIP_STORED, 0) and size <= LARGEST_MANIFEST:
            name = file.read(min(name_size, len(MANIFEST) + 1))
            return read_manifest(file.read(size), path) if name == MANIFEST.encode() else None
    return None


def manifest_of(archive: ZipFile, path: Path) -> Manifest:
    """The manifest, when the zip holds what it names and nothing else. Raises InputError."""
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    if sizes.get(MANIFEST, LARGEST_MANIFEST + 1) > LARGEST_MANIFEST:
        raise _refused(path, f"is not a bundle: it holds no {MANIFEST}; {AGAIN}")
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


def content(archive: ZipFile, name: str, wanted: Sealed, path: Path) -> Iterator[bytes]:
    """A member piece by piece, never more than the manifest says. Raises InputError when it is not that."""
    digest, left = hashlib.sha256(), wanted.bytes
    with archive.open(name) as source:
        while left and (chunk := source.read(min(CHUNK, left))):
            left -= len(chunk)
            digest.update(chunk)
            yield chunk
    if digest.hexdigest() != wanted.sha256:
        raise _refused(path, f"its member {name} is damaged (by its sha256); {AGAIN}")


def _refused(path: Path, what: str) -> InputError:
    return InputError(Problem(what, file=str(path)))
