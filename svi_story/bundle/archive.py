"""Reading a zip that may be hostile.

Every byte of it must belong to one plain, stored member or to the central directory: nothing can hide in it.
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
"""Bytes: zipfile reads the central directory at once, however long the zip says it is."""

BROKEN = (
    *(BadZipFile, LargeZipFile, NotImplementedError, RuntimeError, struct.error),
    *(EOFError, LookupError, ValueError, ArithmeticError),
)
"""What zipfile raises for files that are not zips."""

LOCAL = struct.Struct("<4s5H3L2H")
"""The local header before each member: see 4.3.7 of PKWARE's APPNOTE.TXT."""
LISTED = 46
"""Bytes for each member in the central directory, without its name and numbers that exceed 32 bits."""
END, END_64, LOCATOR_64 = 22, 56, 20

PLAIN_DATE = (0, 33)
"""1980-01-01 as a zip stores it: bundles contain no times."""
LARGE = 2**31 - 1
"""Larger numbers are written with 64 bits."""
MOST = 2**32 - 1


@contextmanager
def open_archive(path: Path, digest: str) -> Iterator[ZipFile]:
    """A zip of plain members and nothing else, opened once.

    Raises InputError when it is something else, or changes while it is read.
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
    """A file of which no read returns more than LARGEST_READ bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """As of a file. Raises BadZipFile for more than LARGEST_READ bytes."""
        if size > LARGEST_READ:
            raise BadZipFile("it lists too many members")
        return self._file.read(size if size >= 0 else LARGEST_READ)


def first_manifest(path: Path) -> Manifest | None:
    """The manifest at the beginning of a file, if it is a bundle of svi-story; reads nothing else."""
    with suppress(OSError, InputError, struct.error), open_regular(path) as file:
        head = file.read(LOCAL.size)
        signature, method, size, name_size, extra = struct.unpack("<4s4xH8x4xIHH", head)
        if (signature, method, extra) == (b"PK\3\4", ZIP_STORED, 0) and size <= LARGEST_MANIFEST:
            name = file.read(min(name_size, len(MANIFEST) + 1))
            return read_manifest(file.read(size), path) if name == MANIFEST.encode() else None
    return None


def manifest_of(archive: ZipFile, path: Path) -> Manifest:
    """The manifest, if the zip contains what it names and nothing else. Raises InputError."""
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    if sizes.get(MANIFEST, LARGEST_MANIFEST + 1) > LARGEST_MANIFEST:
        raise _refused(path, f"is not a bundle: it contains no {MANIFEST}; {AGAIN}")
    manifest = read_manifest(archive.read(MANIFEST), path)
    listed = {name: member.bytes for name, member in manifest.members.items()}
    differences = sorted(sizes.keys() - {MANIFEST} ^ listed.keys())
    if differences:
        raise _refused(path, f"its {MANIFEST} and its members differ: {differences[0][:100]!r}; {AGAIN}")
    if any(sizes[name] != size for name, size in listed.items()):
        raise _refused(path, f"its members do not have the sizes in its {MANIFEST}; {AGAIN}")
    return manifest


def _check_members(infos: list[ZipInfo], path: Path) -> None:
    """No links, folders, devices, compression or encryption; no duplicate or truncated names."""
    if all(info.filename != MANIFEST for info in infos):
        what = f"is a zip, but not a bundle: it contains no {MANIFEST}"
        raise _refused(path, f"{what}; unpack it and name the board in it, or {AGAIN}")
    seen: set[str] = set()
    for info in infos:
        name = info.orig_filename
        plain = (info.compress_type, info.flag_bits, info.external_attr) == (ZIP_STORED, 0, MODE)
        if not plain or info.file_size != info.compress_size or name != info.filename:
            raise _refused(path, f"its member {name[:100]!r} is not a plain, stored file; {AGAIN}")
        if name in seen:
            raise _refused(path, f"its member {name[:100]!r} is listed twice; {AGAIN}")
        seen.add(name)


def content(archive: ZipFile, name: str, expected: FileHash, path: Path) -> Iterator[bytes]:
    """A member in chunks, never more bytes than the manifest says. Raises InputError for another hash."""
    digest, rest = hashlib.sha256(), expected.bytes
    with archive.open(name) as source:
        while rest and (chunk := source.read(min(CHUNK, rest))):
            rest -= len(chunk)
            digest.update(chunk)
            yield chunk
    if digest.hexdigest() != expected.sha256:
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
    """The end of a member, if its local header agrees with the central directory."""
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
    header = (sign, flags, method, tuple(date), crc, name)
    if not sizes or header != (b"PK\3\4", 0, 0, PLAIN_DATE, info.CRC, _raw_name(info)):
        raise BadZipFile(f"its member {info.filename[:100]!r} is not as the central directory describes it")
    return file.tell() + info.file_size


def _large_numbers(info: ZipInfo) -> bytes:
    """The extra field of a member in the central directory: its numbers that exceed 32 bits."""
    sizes = [info.file_size] * 2 if info.file_size > LARGE else []
    numbers = [*sizes, *([info.header_offset] if info.header_offset > LARGE else [])]
    return struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""


def _check_end(file: BinaryIO, at: int) -> None:
    """The central directory is followed by the record that ends every zip, and by no comment."""
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
