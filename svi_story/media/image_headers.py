"""Headers of image files, checked before any decoder reads them: format, size, and excessive declarations.

Decoders trust these numbers: they allocate what a header declares, decode as many scans as there are, and
keep every value of a directory. Here nothing is decompressed, and no more is read than the file holds.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

MAX_PIXELS = 100_000_000
MAX_SIDE = 32_768
MAX_SCANS = 64
"""Of a progressive JPEG; encoders write 18 at most. A scan costs time for every pixel, however short."""
MAX_PARTS = 10_000
"""Chunks, segments or frames of any file, and so many more as it has LEAST_PART bytes."""
LEAST_PART = 512
MAX_PREFACE = 2**20
"""Bytes of comments and extensions before a GIF's first frame: collecting them takes quadratic time."""
MAX_TILE = 2**24
"""Pixels of a TIFF's tile: it is decoded whole, however small the picture."""
MAX_SAMPLES = 6
"""Values of a pixel."""

MEMORY = 900_000_000
"""Bytes that decoding one picture may take: 100 megapixels twice, as Pillow keeps 4 bytes a pixel."""
WEBP_BYTES = 22
"""That decoding a pixel of a WebP takes: libwebp's canvases and its frame, and Pillow's two copies."""
AVIF_BYTES = 22
"""The same of an AVIF or HEIC: three or four planes of 16 bits, the RGBA of them, and Pillow's two copies."""

_FIRST_LOOK, _CHUNK = 2**8, 2**20
_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
"""What ends a JPEG's entropy-coded data: neither a stuffed zero nor a restart."""


class HeaderError(ValueError):
    """The file is not valid in its format; the text says why."""


@dataclass(frozen=True)
class Header:
    """What an image file declares."""

    format: str
    """Pillow's name."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height in pixels of everything that a decoder may allocate."""
    most_pixels: int = MAX_PIXELS
    """How many pixels of this format fit into MEMORY."""

    @property
    def kind(self) -> str:
        """Of a format that may have fewer pixels than others, for messages."""
        return {"WEBP": "WebP", "AVIF": "AVIF", "HEIF": "HEIC"}.get(self.format, "progressive JPEG like this")


def read_header(file: BinaryIO) -> Header | None:
    """The header of an image in a seekable file; None when its format is unknown.

    Raises HeaderError for a file that no decoder should get. Leaves the file at any position.
    """
    data = _Data(file)
    read = _reader(data.at(0, 64))
    return read(data) if read else None


class _Data:
    """The bytes of a file, by place; reading numbers past the end is an error."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)

    def at(self, place: int, count: int) -> bytes:
        """Up to `count` bytes."""
        self._file.seek(place)
        return self._file.read(count)

    def unpack(self, layout: str, place: int) -> tuple[Any, ...]:
        """Numbers at a place. Raises HeaderError past the end."""
        wanted = struct.calcsize(layout)
        raw = self.at(place, wanted)
        if len(raw) < wanted:
            raise HeaderError("it ends within its header")
        return struct.unpack(layout, raw)


def _png(data: _Data) -> Header:
    """https://www.w3.org/TR/png-3/#5Chunk-layout"""
    length, name, width, height = data.unpack(">I4sII", 8)
    if name != b"IHDR" or length != 13:
        raise HeaderError("it does not start with its header")
    at, chunks, most = 33, 0, MAX_PARTS + data.size // LEAST_PART
    while name != b"IEND" and at + 12 <= data.size:
        length, name = data.unpack(">I4s", at)
        at += 12 + length
        chunks += 1
        if chunks > most:
            raise HeaderError(f"it has more than {most} chunks")
    return Header("PNG", ((width, height),))


def _bmp(data: _Data) -> Header:
    """https://learn.microsoft.com/windows/win32/gdi/bitmap-storage"""
    pixels_at, length = data.unpack("<II", 10)
    if length == 12:
        width, height, _, bits = data.unpack("<HHHH", 18)
        compression = 0
    elif length >= 16:
        width, height, _, bits = data.unpack("<iiHH", 18)
        compression = data.unpack("<I", 30)[0] if length >= 40 else 0
    else:
        raise HeaderError(f"its header has {length} bytes")
    width, height = abs(width), abs(height)
    runs = compression in (1, 2)
    if not runs and pixels_at + (width * bits + 31) // 32 * 4 * height > data.size + _SPARE:
        raise HeaderError(f"it has fewer bytes than {width}x{height} pixels need")
    return Header("BMP", ((width, height),))


_SPARE = 4
"""Some programs leave out the padding of the last row."""


def _gif(data: _Data) -> Header:
    """https://www.w3.org/Graphics/GIF/spec-gif89a.txt, up to the first frame; no other is ever decoded."""
    width, height, flags = data.unpack("<HHB", 6)
    at = 13 + _colours(flags)
    start = at
    while (kind := data.at(at, 1)) not in (b"", b";"):
        if kind == b",":
            left, top, wide, high, _ = data.unpack("<HHHHB", at + 1)
            return Header("GIF", ((max(width, left + wide), max(height, top + high)),))
        at = _after_blocks(data, at + 2) if kind == b"!" else at + 1
        if at - start > MAX_PREFACE:
            raise HeaderError(f"it has more than {MAX_PREFACE} bytes before its first frame")
    return Header("GIF", ((width, height),))


def _colours(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 128 else 0


def _after_blocks(data: _Data, at: int) -> int:
    """Where a chain of blocks ends, or has become too long."""
    stop = at + MAX_PREFACE + 1
    while at < stop and (length := data.at(at, 1)) not in (b"", b"\0"):
        at += 1 + length[0]
    return at + 1


def _webp(data: _Data) -> Header:
    """https://developers.google.com/speed/webp/docs/riff_container"""
    sizes: list[tuple[int, int]] = []
    at, chunks, most = 12, 0, MAX_PARTS + data.size // LEAST_PART
    while at + 8 <= data.size:
        name = data.at(at, 4)
        (length,) = data.unpack("<I", at + 4)
        sizes += _webp_sizes(data, name, at + 8)
        at += 8 + length + length % 2
        chunks += 1
        if chunks > most:
            raise HeaderError(f"it has more than {most} chunks")
    if not sizes:
        raise HeaderError("it holds no picture")
    return Header("WEBP", tuple(dict.fromkeys(sizes)), MEMORY // WEBP_BYTES)


def _webp_sizes(data: _Data, name: bytes, at: int) -> Iterator[tuple[int, int]]:
    if name == b"VP8X":
        wide, wider, high, higher = data.unpack("<HBHB", at + 4)
        yield wide + (wider << 16) + 1, high + (higher << 16) + 1
    elif name == b"ANMF":
        wide, wider, high, higher = data.unpack("<HBHB", at + 6)
        yield wide + (wider << 16) + 1, high + (higher << 16) + 1
        yield from _webp_sizes(data, data.at(at + 16, 4), at + 24)
    elif name == b"VP8L":
        (bits,) = data.unpack("<I", at + 1)
        yield (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif name == b"VP8 ":
        width, height = data.unpack("<HH", at + 6)
        yield width & 0x3FFF, height & 0x3FFF


def _jpeg(data: _Data) -> Header:
    """ITU-T T.81, annex B: the segments up to the end of the first picture."""
    sizes: list[tuple[int, int]] = []
    most, scans, at = MAX_PIXELS, 0, 2
    for _ in range(MAX_PARTS + data.size // LEAST_PART):
        found = _next_marker(data, at)
        if found is None or found[0] == _END:
            break
        marker, at = found
        if marker in _FRAMES:
            height, width = data.unpack(">HH", at + 3)
            sizes.append((width, height))
            most = min(most, _most_buffered(data, at))
        scans += marker == _SCAN
        if scans > MAX_SCANS:
            raise HeaderError(f"it has more than {MAX_SCANS} scans")
        at += 0 if marker in _BARE else max(data.unpack(">H", at)[0], 2)
    else:
        raise HeaderError("it has too many segments")
    if not sizes:
        raise HeaderError("it holds no picture")
    return Header("JPEG", tuple(dict.fromkeys(sizes)), most if scans > 1 else MAX_PIXELS)


_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END = 0xDA, 0xD9
_BARE = frozenset({0x01, 0xD8})
"""Markers that nothing follows."""


def _next_marker(data: _Data, at: int) -> tuple[int, int] | None:
    """The next marker from a place on, and where what follows it begins; None at the end of the file."""
    length = _FIRST_LOOK
    while True:
        part = data.at(at, length)
        found = _MARKER.search(part)
        if found:
            return part[found.end() - 1], at + found.end()
        if len(part) < length:
            return None
        at += length - 1  # a marker may lie across
        length = min(2 * length, _CHUNK)


def _most_buffered(data: _Data, at: int) -> int:
    """Pixels of which the picture (4 bytes) and all coefficients (2 bytes each) fit into MEMORY."""
    (count,) = data.unpack(">B", at + 7)
    factors = [data.unpack(">B", at + 9 + 3 * k)[0] for k in range(min(count, 4))]
    across = max((factor >> 4 for factor in factors), default=1) or 1
    down = max((factor & 15 for factor in factors), default=1) or 1
    values = sum((factor >> 4) * (factor & 15) for factor in factors) / (across * down)
    return int(MEMORY / (4 + 2 * values))


def _tiff(data: _Data) -> Header:
    """The first directory of a TIFF or BigTIFF: https://www.adobe.io/open/standards/TIFF.html"""
    order = "<" if data.at(0, 2) == b"II" else ">"
    large = b"+" in data.at(2, 2)
    (at,) = data.unpack(order + ("Q" if large else "I"), 8 if large else 4)
    (count,) = data.unpack(order + ("Q" if large else "H"), at)
    entry = 20 if large else 12
    at += 8 if large else 2
    if at + count * entry > data.size:
        raise HeaderError("its directory is longer than the file")
    tags: dict[int, int] = {}
    held = 0
    for place in range(at, at + count * entry, entry):
        tag, kind, number = data.unpack(order + ("HHQ" if large else "HHI"), place)
        length = number * _TIFF_BYTES.get(kind, 0)
        value, outside = place + (12 if large else 8), length > (8 if large else 4)
        held += length if outside else 0
        if tag in _USED:
            if outside:
                (value,) = data.unpack(order + ("Q" if large else "I"), value)
            found = data.unpack(order + _TIFF_LAYOUT.get(kind, "I"), value)[0]
            tags[tag] = max(found, tags.get(tag, 0))
    if held > data.size:
        raise HeaderError("its directory declares more than the file holds")
    return _tiff_header(tags)


_TIFF_BYTES = {
    **dict.fromkeys((1, 2, 6, 7), 1),
    **dict.fromkeys((3, 8), 2),
    **dict.fromkeys((4, 9, 11, 13), 4),
    **dict.fromkeys((5, 10, 12, 16, 17, 18), 8),
}
"""Of a value, by its kind."""
_TIFF_LAYOUT = {1: "B", 3: "H", 4: "I", 16: "Q"}
_WIDTH, _HEIGHT, _PER_PIXEL, _TILE_WIDTH, _TILE_HEIGHT = _USED = 256, 257, 277, 322, 323


def _tiff_header(tags: dict[int, int]) -> Header:
    size = tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)
    if tags.get(_PER_PIXEL, 1) > MAX_SAMPLES:
        raise HeaderError(f"it has {tags[_PER_PIXEL]} values a pixel")
    if tags.get(_TILE_WIDTH, 1) * tags.get(_TILE_HEIGHT, 1) > MAX_TILE:
        raise HeaderError(f"its tiles are {tags[_TILE_WIDTH]}x{tags[_TILE_HEIGHT]} pixels")
    return Header("TIFF", (size,))


_ISO_PARENTS = {
    b"meta": 4,
    **dict.fromkeys((b"iprp", b"ipco", b"moov", b"trak", b"mdia", b"minf", b"stbl"), 0),
    b"stsd": 8,
}
"""Boxes that others are in, and the bytes before the first of them."""


def _avif(data: _Data, name: str = "AVIF") -> Header:
    """ISO/IEC 14496-12 and 23008-12: boxes in boxes, with the sizes of all images and tracks."""
    sizes: list[tuple[int, int]] = []
    waiting, boxes, most = [(0, data.size)], 0, MAX_PARTS + data.size // LEAST_PART
    while waiting:
        at, stop = waiting.pop()
        while at + 8 <= stop:
            length, kind = data.unpack(">I4s", at)
            body = at + (16 if length == 1 else 8)
            if length == 1:
                (length,) = data.unpack(">Q", at + 8)
            end = min(at + length, stop) if length else stop
            if kind in _ISO_PARENTS:
                waiting.append((body + _ISO_PARENTS[kind], end))
            elif kind == b"ispe":
                sizes.append(data.unpack(">II", body + 4))
            elif kind in (b"av01", b"hvc1", b"hev1"):
                sizes.append(data.unpack(">HH", body + 24))
            boxes += 1
            if boxes > most:
                raise HeaderError(f"it has more than {most} boxes")
            at = max(end, body)
    return Header(name, tuple(dict.fromkeys(sizes)), MEMORY // AVIF_BYTES)


_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def _reader(start: bytes) -> Callable[[_Data], Header] | None:
    """What reads the header of a file with these first bytes."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _webp
    brands: set[bytes] = set()
    if start[4:8] == b"ftyp":
        stop = min(int.from_bytes(start[:4], "big"), len(start))
        brands = {start[at : at + 4] for at in (8, *range(16, stop - 3, 4))}
    if brands & _AVIF_BRANDS:
        return _avif
    if brands & _HEIC_BRANDS:
        return lambda data: _avif(data, "HEIF")
    return next((read for magic, read in _READERS if start.startswith(magic)), None)


_READERS = (
    *((b"\x89PNG\r\n\x1a\n", _png), (b"\xff\xd8\xff", _jpeg), (b"BM", _bmp)),
    *((magic, _gif) for magic in (b"GIF87a", b"GIF89a")),
    *((magic, _tiff) for magic in (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")),
)
_OTHER_KINDS = (
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL image"),
    (rb"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (rb"8BPS", "a Photoshop file"),
    (rb"gimp xcf", "a GIMP file"),
    (rb"v/1\x01", "an OpenEXR image"),
    (rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--[^>]*>\s*)?(?:<!DOCTYPE )?<?svg", "an SVG drawing"),
    (rb"\s*<(?:!DOCTYPE html|html)", "a web page, perhaps of a failed download"),
    (rb"version https://git-lfs", "a Git LFS pointer; run `git lfs pull`, or name another image"),
    (rb"\0\x05\x16\x07", "macOS metadata (AppleDouble); name the file without `._` at its start"),
    (rb"%PDF", "a PDF document"),
    (rb"....ftyp|\x1a\x45\xdf\xa3", "a video; name an image, such as one frame of it"),
)


def known_kind(file: BinaryIO) -> str:
    """What a file is that no decoder here reads, maybe with a remedy; empty when that is not known."""
    start = _Data(file).at(0, _FIRST_LOOK)
    return next(
        (kind for magic, kind in _OTHER_KINDS if re.match(magic, start, re.DOTALL | re.IGNORECASE)), ""
    )
