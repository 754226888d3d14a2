"""Untrusted audio files, opened without blocking, and read with bounded work and no access to other files.

libav trusts headers: a table of a few bytes may declare millions of packets, a tag of a few kilobytes may
unpack to gigabytes, and each of a million comments is compared with all before it. So an `AudioSource` reads
the headers first, and libav gets a `FileView` of the file.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from svi_story.errors import InputError, Problem
from svi_story.files import open_regular, why_not_opened
from svi_story.portable import read_at

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO, Literal


MAX_BYTES = 4 * 2**30
"""What a WAV file can hold: four hours of studio sound."""

REMEDY = "save it again as WAV or MP3"

_READS_PER_BYTE = 32
_SPARE_BYTES = 64 * 2**20
_CALL_BYTES = 512
"""What each call counts at least, so that endless empty reads are stopped too."""

UNKNOWN_LENGTH = 0x7FFF_0000
"""From here on, the length of a WAV file is a placeholder for one that was not known yet."""

_LONGEST_PAGE = 65_307
"""Bytes of an Ogg page."""


class SoundError(InputError):
    """A recording that cannot be used. `reason` says why and what to do, without naming the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(Problem(f"the sound {path} {reason}"))
        self.reason = reason


def open_sound(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises SoundError for anything else, and never waits."""
    try:
        file = open_regular(path)
    except (OSError, ValueError) as error:
        raise SoundError(path, why_not_opened(error, "an audio file")) from None
    try:
        _check_complete(path, file)
    except BaseException:
        file.close()
        raise
    return file


def _check_complete(path: Path, file: BinaryIO) -> None:
    """Raise SoundError for a file that is empty, too large or cut off.

    libav plays what is left of a WAV or Ogg file that was cut off, without an error.
    """
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise SoundError(path, "is empty (0 bytes); copy or save it again")
    if size > MAX_BYTES:
        raise SoundError(path, f"is larger than {MAX_BYTES // 2**30} GiB; cut it, or save it as MP3 or FLAC")
    head = read_at(file.fileno(), 12, 0)
    declared = size
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        # Some programs count the first 8 bytes too, some a padding byte too many
        declared = int.from_bytes(head[4:8], "little") & ~1
    elif head[:4] == b"OggS":
        start = max(size - _LONGEST_PAGE, 0)
        declared = start + _end_of_last_page(read_at(file.fileno(), _LONGEST_PAGE, start))
    if UNKNOWN_LENGTH > declared > size:
        what = f"should have at least {declared} bytes, and has {size}"
        raise SoundError(path, f"is cut off: it {what}; copy or save it again")


def _end_of_last_page(tail: bytes) -> int:
    """The end of the last Ogg page in a file's last bytes: 27 bytes, a table of lengths, the data."""
    page = max(tail.rfind(b"OggS"), 0)
    if len(tail) < page + 27:
        return page + 27
    lengths = tail[page + 27 :][: tail[page + 26]]
    return page + 27 + tail[page + 26] + sum(lengths)


class BoundedFile:
    """An open file for libav: without a name, only as much as `view` allows, and with a limit on reads.

    A damaged index can make a reader loop; after many times the file's size it gets an OSError.
    """

    def __init__(self, file: BinaryIO, view: FileView | None = None) -> None:
        size = os.fstat(file.fileno()).st_size
        self._file = file
        self._view = view
        self._left = _READS_PER_BYTE * size + _SPARE_BYTES
        edges = [view.start, *chain.from_iterable(view.cuts), size] if view else [0, size]
        self._ranges = [each for each in zip(edges[::2], edges[1::2], strict=True) if each[0] < each[1]]
        self._starts = list(accumulate((stop - start for start, stop in self._ranges), initial=0))
        """Where each range begins in the view; then the view's size."""
        self._at = 0

    def read(self, count: int) -> bytes:
        """At most `count` bytes; empty at the end."""
        number = bisect_right(self._starts, self._at) - 1
        data = b""
        if number < len(self._ranges):
            start, stop = self._ranges[number]
            at = start + self._at - self._starts[number]
            self._file.seek(at)
            data = self._file.read(min(count, stop - at))
        self._left -= max(len(data), _CALL_BYTES)
        if self._left < 0:
            raise OSError(None, "its index goes round in circles")
        self._at += len(data)
        return self._view.patched(at, data) if data and self._view else data

    def seek(self, offset: int, whence: int) -> int:
        """As of a file."""
        self._left -= _CALL_BYTES
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._starts[-1]}
        if whence not in bases or bases[whence] + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = bases[whence] + offset
        return self._at

    def tell(self) -> int:
        """As of a file."""
        return self._at


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


_BLOCK, _LONGEST_PATTERN = 2**20, 16


@dataclass
class FileView:
    """What libav may read of a file: the bytes from `start` on, some of them left out or replaced."""

    formats: str
    """libav's names of the demuxers that may read it, separated by commas."""
    start: int
    patches: list[tuple[int, bytes]] = field(default_factory=list)
    """Offsets in the file and the bytes that replace those there; in order, without overlaps."""
    cuts: list[tuple[int, int]] = field(default_factory=list)
    """Where bytes are left out: from one offset in the file to another; in order, without overlaps."""
    others: bool = False
    """Whether tracks were left out. The duration that the file declares may be theirs."""

    def patched(self, at: int, data: bytes) -> bytes:
        """`data`, read at offset `at` of the file, with all replacements."""
        end, result = at + len(data), None
        for place, patch in self.patches[max(bisect_right(self.patches, (at,)) - 1, 0) :]:
            if place >= end:
                break
            first, last = max(at, place), min(end, place + len(patch))
            if first < last:
                result = result or bytearray(data)
                result[first - at : last - at] = patch[first - place : last - place]
        return bytes(result) if result else data


class AudioSource:
    """The file as the inspection reads it: small pieces, from anywhere, and a limited number of them."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._descriptor = file.fileno()
        self.size = os.fstat(self._descriptor).st_size
        self._parts = _PARTS + self.size // _BYTES_PER_PART
        self._window, self._window_at = b"", 0

    def read(self, at: int, count: int) -> bytes:
        """Bytes [at, at + count); fewer at the end of the file, none for a negative count."""
        if count <= 0:
            return b""
        if count > 2**12:
            return read_at(self._descriptor, count, at)
        if not 0 <= at - self._window_at <= len(self._window) - count:
            self._window, self._window_at = read_at(self._descriptor, 2**14, at), at
        return self._window[at - self._window_at :][:count]

    def number(self, at: int, count: int, order: Literal["big", "little"] = "big") -> int:
        """The number in bytes [at, at + count)."""
        return int.from_bytes(self.read(at, count), order)

    def find(self, words: bytes, at: int) -> int:
        """The next place of some bytes, from `at` on; -1 for none."""
        if self.read(at, len(words)) == words:
            return at
        while block := self.read(at, 2**20):
            if (found := block.find(words)) >= 0:
                return at + found
            if len(block) < len(words):
                break
            at += len(block) - len(words) + 1
        return -1

    def find_all(self, pattern: re.Pattern[bytes], at: int, stop: int) -> Iterator[int]:
        """All places between two where a pattern of a few bytes is."""
        while block := self.read(at, min(_BLOCK + _LONGEST_PATTERN, stop - at)):
            for match in pattern.finditer(block):
                if match.start() < _BLOCK:
                    self.count_part()
                    yield at + match.start()
            at += _BLOCK

    def count_part(self) -> None:
        """Count one more box, page, element or the like. Raises SoundError when there are too many."""
        self._parts -= 1
        if self._parts < 0:
            self.refuse("is damaged: it consists of more parts than a file of its size can")

    def refuse(self, what: str, remedy: str = REMEDY) -> NoReturn:
        """Raise SoundError, with a remedy."""
        raise SoundError(self._path, f"{what}; {remedy}")

    def refuse_short(self, what: str) -> NoReturn:
        """Raise SoundError for a header that declares more than there is."""
        self.refuse(f"is cut off or damaged: {what}, and the file has {self.size} bytes")


def check_comments(source: AudioSource, block: bytes) -> None:
    """Check Vorbis comments: the length of a text, the text, the number of comments, the comments."""
    vendor = int.from_bytes(block[:4], "little")
    count = int.from_bytes(block[4 + vendor : 8 + vendor], "little")
    if vendor > MAX_HEADER or count > MAX_COMMENTS:
        source.refuse(f"is damaged: its header declares {max(vendor, count)} comments")
