"""Ogg files and Vorbis headers, before libav parses them.

Each page may begin a stream, and any packet may be a header: so all pages are read.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.media.audio_files import MAX_PACKET, MAX_PARTS, FileView, check_comments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.media.audio_files import AudioSource

CODEBOOK_BYTES = 2**18
"""Of a Vorbis header; some thousands are usual."""

_MAX_ENTRIES = 2**18
_MAX_ALL_ENTRIES = 2**21
"""In the codebooks of one Vorbis header, and of all in a file. Encoders write some ten thousand in one."""
_MAX_VALUES = 2**22
"""In the codebooks of one header: each entry has some."""
_MAX_SETUPS = 4096
_BIT_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_OGG_HEADER = 27
_OGG_KINDS = {b"\x01vorbis": 7, b"OpusHead": 8, b"\x7fFLAC": 4, b"fLaC": 4, b"\x80theora": 7, b"Speex   ": 0}
"""How streams start, and where the comments start in a packet of them."""
_OGG_FIRST = 1024
"""So many first packets of a stream are treated as headers, also where they do not look like one."""


@dataclass
class _OggStream:
    comments_at: int | None = None
    packets: int = 0
    length: int = 0
    """Bytes so far of the packet that is not complete yet."""
    kept: bytearray | None = None
    """The first of them, if the packet may be a header."""


def inspect_ogg(source: AudioSource, start: int) -> FileView:
    """Inspect every page: each may start a stream, and any packet may be a header."""
    streams: dict[bytes, _OggStream] = {}
    books = Codebooks(source)
    for serial, goes_on, lacing, payload in _ogg_pages(source, start):
        stream = streams.setdefault(serial, _OggStream())
        if len(streams) > MAX_PARTS:
            source.refuse(f"is damaged: it consists of more than {MAX_PARTS} streams")
        if not goes_on:
            stream.length, stream.kept = 0, None
        if (
            stream.packets < _OGG_FIRST
            or stream.kept is not None
            or b"vorbis" in payload
            or b"Opus" in payload
        ):
            _check_ogg_packets(source, books, stream, lacing, payload)
        else:
            unfinished = len(lacing.rstrip(b"\xff"))
            stream.length = 255 * (len(lacing) - unfinished) + (0 if unfinished else stream.length)
        if stream.length > MAX_PACKET:
            source.refuse(f"has a packet of more than {MAX_PACKET // 2**20} MiB")
    return FileView("ogg", start)


def _ogg_pages(source: AudioSource, start: int) -> Iterator[tuple[bytes, bool, bytes, bytes]]:
    """All whole pages: the stream's number, whether a packet goes on, packet lengths and data."""
    at = start
    while (at := source.find(b"OggS", at)) >= 0:
        source.count_part()
        head = source.read(at, _OGG_HEADER)
        if len(head) < _OGG_HEADER:
            return
        lacing = source.read(at + _OGG_HEADER, head[26])
        at += _OGG_HEADER + len(lacing)
        payload = source.read(at, sum(lacing))
        checked = head[:22] + bytes(4) + head[26:] + lacing + payload
        if _ogg_checksum(checked) == head[22:26]:  # after another page libav goes on inside of it
            at += len(payload)
            yield head[14:18], bool(head[5] & 1), lacing, payload


def _ogg_checksum(page: bytes) -> bytes:
    """zlib computes it with the bits of all bytes reversed, and inverts before and after."""
    mirrored = zlib.crc32(page.translate(_BIT_REVERSED), 2**32 - 1) ^ (2**32 - 1)
    return mirrored.to_bytes(4, "big").translate(_BIT_REVERSED)


def _check_ogg_packets(
    source: AudioSource, books: Codebooks, stream: _OggStream, lacing: bytes, payload: bytes
) -> None:
    at = 0
    for length in lacing:
        if stream.length == 0:
            stream.kept = bytearray()
        if stream.kept is not None and len(stream.kept) < CODEBOOK_BYTES:
            stream.kept += payload[at : at + length]
        at += length
        stream.length += length
        if length < 255:
            if stream.kept is not None:
                _check_ogg_packet(source, books, stream, bytes(stream.kept))
            stream.packets += 1
            stream.length, stream.kept = 0, None


def _check_ogg_packet(source: AudioSource, books: Codebooks, stream: _OggStream, packet: bytes) -> None:
    if stream.packets == 0:
        stream.comments_at = next((at for kind, at in _OGG_KINDS.items() if packet.startswith(kind)), None)
    elif packet.startswith(b"\x05vorbis"):
        books.check(packet)
    elif packet.startswith((b"\x03vorbis", b"OpusTags")):
        check_comments(source, packet[packet.startswith(b"Opus") + 7 :])
    elif stream.packets < _OGG_FIRST and stream.comments_at is not None:
        flac = stream.comments_at == _OGG_KINDS[b"fLaC"]
        if packet[:1] == b"\x81" or (flac and packet[:1] in b"\x04\x84") or stream.comments_at == 0:
            check_comments(source, packet[stream.comments_at :])


class Codebooks:
    """The codebooks of all Vorbis headers in a file: a few bits may declare one of a gigabyte."""

    def __init__(self, source: AudioSource) -> None:
        self._source = source
        self._entries = 0
        self._setups = 0

    def check(self, setup: bytes) -> None:
        """Check a setup header, as far as there is one. Raises SoundError if its codebooks are too large."""
        self._setups += 1
        if self._setups > _MAX_SETUPS:
            self._source.refuse(f"changes its codebooks more than {_MAX_SETUPS} times")
        values, entries = 0, 0
        try:
            for declared, dimensions in _codebooks(setup[7:]):
                entries += declared
                values += declared * dimensions
                if entries > _MAX_ENTRIES or values > _MAX_VALUES:
                    self._source.refuse(f"is damaged: a codebook of it declares {declared} entries")
        except EOFError:
            if len(setup) >= CODEBOOK_BYTES:
                self._source.refuse(f"is damaged: it has a header of {len(setup)} bytes")
        self._entries += entries
        if self._entries > _MAX_ALL_ENTRIES:
            self._source.refuse("changes its codebooks too often")


def _codebooks(setup: bytes) -> Iterator[tuple[int, int]]:
    """Entries and dimensions of the codebooks in a Vorbis setup header. Raises EOFError if cut off."""
    bits = _Bits(setup)
    for _ in range(bits.read(8) + 1):
        if bits.read(24) != 0x564342:  # "BCV"
            return
        dimensions, entries = bits.read(16), bits.read(24)
        yield entries, dimensions
        _skip_lengths(bits, entries)
        lookup = bits.read(4)
        if lookup:
            bits.skip(64)
            width = bits.read(4) + 1
            bits.skip(1 + width * (_root(entries, dimensions) if lookup == 1 else entries * dimensions))


def _skip_lengths(bits: _Bits, entries: int) -> None:
    """The lengths of a codebook's entries."""
    if bits.read(1):  # ordered: how many there are of each length
        bits.skip(5)
        for _ in range(32):
            entries -= bits.read(entries.bit_length()) if entries > 0 else 0
    elif bits.read(1):  # sparse: only of the entries in use
        for _ in range(entries):
            if bits.read(1):
                bits.skip(5)
    else:
        bits.skip(5 * entries)


class _Bits:
    """Reads numbers bit by bit, least significant bit first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self, count: int) -> int:
        start = self._at
        self.skip(count)
        word = int.from_bytes(self._data[start >> 3 : (start >> 3) + 8], "little")
        return word >> (start & 7) & ((1 << count) - 1)

    def skip(self, count: int) -> None:
        self._at += count
        if self._at > 8 * len(self._data):
            raise EOFError


def _root(entries: int, dimensions: int) -> int:
    """The largest whole number that, to the power of `dimensions`, is at most `entries`."""
    root = round(entries ** (1 / dimensions)) if dimensions else 0
    while root**dimensions > entries:
        root -= 1
    return root
