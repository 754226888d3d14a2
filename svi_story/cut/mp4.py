"""Reads and adds boxes of an mp4 file, without moving existing ones."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO

from svi_story.files import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

XMP = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")
"""The name of the box that holds an XMP packet (XMP specification, part 3, MPEG-4)."""

MOST_BOXES = 1000
LARGEST_XMP = 32 * 2**20
"""Bytes; a packet holds a storyboard of 2 MB at most, and XML makes some characters longer."""

ENABLED = 1
"""The flag of a track that players show by default."""


@dataclass(frozen=True)
class Box:
    """A box, and the position of its content in the file: bytes [start, stop)."""

    kind: bytes
    start: int
    stop: int


def boxes(file: BinaryIO, start: int, stop: int) -> Iterator[Box]:
    """The boxes in a range of a file. Raises ValueError for one that does not fit into it."""
    while start < stop:
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            head, size = 16, struct.unpack(">Q", file.read(8))[0]
        if size == 0:
            size = stop - start
        if not head <= size <= stop - start:
            raise ValueError(f"box {kind!r} at byte {start} does not fit")
        yield Box(kind, start + head, start + size)
        start += size


def add_xmp(file: BinaryIO, packet: bytes) -> None:
    """Put an XMP packet behind everything else, so that nothing before it moves."""
    file.seek(0, 2)
    file.write(struct.pack(">I4s", 8 + len(XMP) + len(packet), b"uuid") + XMP + packet)


def read_xmp(path: Path) -> bytes:
    """The XMP packet of an mp4, not decoded; empty for any other file, and for one that cannot be read."""
    try:
        with open_regular(path) as file:
            for box in islice(boxes(file, 0, file.seek(0, 2)), MOST_BOXES):
                size = box.stop - box.start - len(XMP)
                if box.kind == b"uuid" and 0 <= size <= LARGEST_XMP:
                    file.seek(box.start)
                    if file.read(len(XMP)) == XMP:
                        return file.read(size)
    except (OSError, ValueError, struct.error):
        pass
    return b""


def hide_captions(file: BinaryIO) -> None:
    """Clear the flag that makes players show the captions by default; libav always sets it."""
    end = file.seek(0, 2)
    (moov,) = (box for box in boxes(file, 0, end) if box.kind == b"moov")
    for track in boxes(file, moov.start, moov.stop):
        if track.kind != b"trak":
            continue
        (media,) = (box for box in boxes(file, track.start, track.stop) if box.kind == b"mdia")
        (handler,) = (box for box in boxes(file, media.start, media.stop) if box.kind == b"hdlr")
        file.seek(handler.start + 8)  # after version, flags and a reserved word
        if file.read(4) == b"sbtl":
            (head,) = (box for box in boxes(file, track.start, track.stop) if box.kind == b"tkhd")
            file.seek(head.start + 3)  # the last of the three bytes of flags after the version
            flags = file.read(1)[0]
            file.seek(head.start + 3)
            file.write(bytes([flags & ~ENABLED]))
