"""Reading a zip that may be hostile.

Every byte of it must belong to one plain, stored member, or to the list of them: nothing can hide in it.
"""

from __future__ import annotations

import hashlib
import os
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, LargeZipFile, ZipFile, ZipInfo

from svi_story.bundle.format import AGAIN, LARGEST_MANIFEST, MANIFEST, MODE, Manifest, read_manifest
from svi_story.errors import InputError, Problem
from svi_story.files import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from svi_story.bundle.format import FileHash

CHUNK = 2**20
LARGEST_READ = 16 * 2**20
"""Bytes: zipfile reads the list of members at once, as long as the zip says it is."""

BROKEN = (
    *(BadZipFile, LargeZipFile, NotImplementedError, RuntimeError, struct.error),
    *(EOFError, LookupError, ValueError, ArithmeticError),
)
"""What zipfile raises on files that are none."""


LOCAL = struct.Struct("<4s5H3L2H")
"""The local header before each member: see 4.3.7 of PKWARE's APPNOTE.TXT."""
LISTED = 46
"""Bytes for each member in the list at the end, besides its name and what is too large for 32 bits."""
END, END_64, LOCATOR_64 = 22, 56, 20

PLAIN_DATE = (0, 33)
"""1980-01-01, as a zip writes it: bundles know no time."""
LARGE = 2**31 - 1
"""Larger numbers are written with 64 bits."""
MOST = 2**32 - 1


@contextmanager
def open_archive(path: Path, digest: str) -> Iterator[ZipFile]:
    """The zip, opened once, of plain members and nothing besides them.

    Raises InputError when it is none, or changes while it is read.
    """
    try:
        with open_regular(path) as file:
            before = _state(file)
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise _refused(path, "changed while it was read; run the same command again")
            with ZipFile(_BoundedReader(file)) as archive:
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


class _BoundedReader:
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
        head = file.read(LOCAL.size)
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


def content(archive: ZipFile, name: str, wanted: FileHash, path: Path) -> Iterator[bytes]:
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


def check_seamless(file: BinaryIO, infos: Sequence[ZipInfo]) -> None:
    """Raises BadZipFile for bytes before, between or after the members, or that belong to two of them."""
    at, listed = 0, 0
    for info in infos:
        if info.header_offset != at or info.comment or info.extra != _large_numbers(info):
            raise BadZipFile(f"bytes around its member {info.filename[:100]!r} belong to none")
        at = _after(file, info)
        listed += LISTED + len(_raw_name(info)) + len(info.extra)
    _check_end(file, at + listed)


def _after(file: BinaryIO, info: ZipInfo) -> int:
    """Where a member ends, if all that stands before it is what the list says of it."""
    file.seek(info.header_offset)
    head = file.read(LOCAL.size)
    if len(head) != LOCAL.size:
        raise BadZipFile("it ends within a member")
    sign, _version, flags, method, *date, crc, packed, size, length, more = LOCAL.unpack(head)
    name, extra = file.read(length), file.read(more)
    wide = struct.pack("<HHQQ", 1, 16, info.file_size, info.file_size)
    sizes = (packed, size, extra) in (
        (info.file_size, info.file_size, b""),
        (MOST, MOST, wide),
    )
    said = (sign, flags, method, tuple(date), crc, name)
    if not sizes or said != (b"PK\3\4", 0, 0, PLAIN_DATE, info.CRC, _raw_name(info)):
        raise BadZipFile(f"its member {info.filename[:100]!r} is not what its list says")
    return file.tell() + info.file_size


def _large_numbers(info: ZipInfo) -> bytes:
    """What the list holds of a member besides its name: its numbers that 32 bits are too few for."""
    sizes = [info.file_size] * 2 if info.file_size > LARGE else []
    numbers = [*sizes, *([info.header_offset] if info.header_offset > LARGE else [])]
    return struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""


def _check_end(file: BinaryIO, at: int) -> None:
    """The zip ends right behind its list, with the few bytes that every zip ends with, and no comment."""
    size = file.seek(0, os.SEEK_END)
    file.seek(min(at, size))
    end = file.read(END_64 + LOCATOR_64 + END + 1)
    if len(end) == END_64 + LOCATOR_64 + END:
        (length,) = struct.unpack_from("<Q", end, 4)
        if (end[:4], length, end[END_64 : END_64 + 4]) != (b"PK\6\6", END_64 - 12, b"PK\6\7"):
            raise BadZipFile("bytes behind its members belong to none")
        end = end[-END:]
    if len(end) != END or end[:4] != b"PK\5\6" or end[-2:] != b"\0\0":
        raise BadZipFile("bytes behind its members belong to none")


def _raw_name(info: ZipInfo) -> bytes:
    return info.orig_filename.encode("cp437")  # as zipfile decodes what is not flagged as UTF-8
