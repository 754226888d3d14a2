"""Every byte of a bundle belongs to one member, or to the list of them: nothing can hide in it."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, BinaryIO
from zipfile import BadZipFile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from zipfile import ZipInfo

_LOCAL = struct.Struct("<4s5H3L2H")
"""What stands before each member: see 4.3.7 of PKWARE's APPNOTE.TXT."""
_LISTED = 46
"""Bytes for each member in the list at the end, besides its name and what is too large for 32 bits."""
_END, _END_64, _LOCATOR_64 = 22, 56, 20

PLAIN_DATE = (0, 33)
"""1980-01-01, as a zip writes it: bundles know no time."""
LARGE = 2**31 - 1
"""Larger numbers are written with 64 bits."""
MOST = 2**32 - 1


def check_seamless(file: BinaryIO, infos: Sequence[ZipInfo]) -> None:
    """Raises BadZipFile for bytes before, between or after the members, or that belong to two of them."""
    at, listed = 0, 0
    for info in infos:
        if info.header_offset != at or info.comment or info.extra != _large_numbers(info):
            raise BadZipFile(f"bytes around its member {info.filename[:100]!r} belong to none")
        at = _after(file, info)
        listed += _LISTED + len(_name(info)) + len(info.extra)
    _check_end(file, at + listed)


def _after(file: BinaryIO, info: ZipInfo) -> int:
    """Where a member ends, if all that stands before it is what the list says of it."""
    file.seek(info.header_offset)
    head = file.read(_LOCAL.size)
    if len(head) != _LOCAL.size:
        raise BadZipFile("it ends within a member")
    sign, _version, flags, method, *date, crc, packed, size, length, more = _LOCAL.unpack(head)
    name, extra = file.read(length), file.read(more)
    wide = struct.pack("<HHQQ", 1, 16, info.file_size, info.file_size)
    sizes = (packed, size, extra) in (
        (info.file_size, info.file_size, b""),
        (MOST, MOST, wide),
    )
    said = (sign, flags, method, tuple(date), crc, name)
    if not sizes or said != (b"PK\3\4", 0, 0, PLAIN_DATE, info.CRC, _name(info)):
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
    end = file.read(_END_64 + _LOCATOR_64 + _END + 1)
    if len(end) == _END_64 + _LOCATOR_64 + _END:
        (length,) = struct.unpack_from("<Q", end, 4)
        if (end[:4], length, end[_END_64 : _END_64 + 4]) != (b"PK\6\6", _END_64 - 12, b"PK\6\7"):
            raise BadZipFile("bytes behind its members belong to none")
        end = end[-_END:]
    if len(end) != _END or end[:4] != b"PK\5\6" or end[-2:] != b"\0\0":
        raise BadZipFile("bytes behind its members belong to none")


def _name(info: ZipInfo) -> bytes:
    return info.orig_filename.encode("cp437")  # as zipfile decodes what is not flagged as UTF-8
