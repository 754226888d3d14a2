"""How audio files are inspected: a `Source` to read headers from, and the `View` of it that libav may parse.

libav believes headers: a table of a few bytes may promise millions of packets, a tag of a few kilobytes may
unpack to gigabytes, and each of a million comments is compared with all before it.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from svi_story.media.audio_files import CURE, SoundError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO, Literal

MAX_PACKETS = 6_000_000
"""In a file's index, where libav takes up to 100 bytes for each: four hours of Opus, 2.5 ms in each."""
MAX_TRACKS = 64
MAX_COMMENTS = 1024
"""In one header."""
MAX_PARTS = 4096
"""Chunks, blocks of a header or streams in a file."""
MAX_HEADER = 2**16
"""Bytes that describe a file or a codec; some hundreds are usual."""
MAX_PACKET = 2**26
"""Bytes of one packet, also of one with comments and pictures."""

_PARTS = 2**18
_BYTES_PER_PART = 64
"""A file may consist of `_PARTS` boxes, pages, elements and so on, and of one more for so many bytes."""


@dataclass
class View:
    """The part of a file that libav sees: all bytes from `start` on, some of them replaced."""

    formats: str
    """libav's names of the demuxers that may read it, with commas between them."""
    start: int
    patches: list[tuple[int, bytes]] = field(default_factory=list)
    """Offsets in the file and the bytes that stand there instead; in order, and none over another."""
    others: bool = False
    """Whether tracks were left out. What the file says about its length may be theirs."""

    def masked(self, at: int, data: bytes) -> bytes:
        """`data`, read at offset `at` of the file, with all replacements."""
        end, masked = at + len(data), None
        for place, patch in self.patches[max(bisect_right(self.patches, (at,)) - 1, 0) :]:
            if place >= end:
                break
            first, last = max(at, place), min(end, place + len(patch))
            if first < last:
                masked = masked or bytearray(data)
                masked[first - at : last - at] = patch[first - place : last - place]
        return bytes(masked) if masked else data


class Source:
    """The file as the inspection reads it: small pieces of it, from anywhere, and not too many."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._descriptor = file.fileno()
        self.size = os.fstat(self._descriptor).st_size
        self._parts = _PARTS + self.size // _BYTES_PER_PART
        self._window, self._window_at = b"", 0

    def read(self, at: int, count: int) -> bytes:
        """Bytes [at, at + count), or what is there of them."""
        if count > 2**12:
            return os.pread(self._descriptor, count, at)
        if not 0 <= at - self._window_at <= len(self._window) - count:
            self._window, self._window_at = os.pread(self._descriptor, 2**14, at), at
        return self._window[at - self._window_at :][:count]

    def number(self, at: int, count: int, order: Literal["big", "little"] = "big") -> int:
        """The number in bytes [at, at + count)."""
        return int.from_bytes(self.read(at, count), order)

    def find(self, words: bytes, at: int) -> int:
        """Where some bytes come next, from `at` on; -1 for nowhere."""
        if self.read(at, len(words)) == words:
            return at
        while block := self.read(at, 2**20):
            if (found := block.find(words)) >= 0:
                return at + found
            if len(block) < len(words):
                break
            at += len(block) - len(words) + 1
        return -1

    def count_part(self) -> None:
        """Note one more box, page, element or the like. Raises SoundError when there are too many."""
        self._parts -= 1
        if self._parts < 0:
            self.refuse("is damaged: it consists of more parts than a file of its size can")

    def refuse(self, what: str) -> NoReturn:
        """Raise SoundError, with the cure."""
        raise SoundError(self._path, f"{what}; {CURE}")

    def refuse_short(self, what: str) -> NoReturn:
        """Raise SoundError for a header that declares more than there is."""
        self.refuse(f"is cut off or damaged: {what}, and the file has {self.size} bytes")


def check_comments(source: Source, block: bytes) -> None:
    """Vorbis comments: the length of a text, the text, the number of comments, and they."""
    vendor = int.from_bytes(block[:4], "little")
    count = int.from_bytes(block[4 + vendor : 8 + vendor], "little")
    if vendor > MAX_HEADER or count > MAX_COMMENTS:
        source.refuse(f"is damaged: its header declares {max(vendor, count)} comments")
