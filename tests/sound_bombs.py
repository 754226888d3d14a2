"""Small audio files that declare, unpack to, or consist of very much. Each is made in memory.

What libav would make of them without inspection is measured in the tests.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MANY = 2**32 - 1
PIECES = 60_000_000
"""Packets or samples that are declared: an index of them takes gigabytes."""

# -- MP4


def box(kind: bytes, *parts: bytes, size: int | None = None) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I4s", 8 + len(data) if size is None else size, kind) + data


def full(kind: bytes, *numbers: int, flags: int = 0, more: bytes = b"", version: int = 0) -> bytes:
    """A box of 32-bit numbers after its version and flags."""
    return box(kind, struct.pack(f">{1 + len(numbers)}I", version << 24 | flags, *numbers), more)


def table(kind: bytes, rows: list[tuple[int, ...]], *before: int) -> bytes:
    return full(kind, *before, len(rows), *(number for row in rows for number in row))


AAC_CONFIG = bytes([0x11, 0x90])
AAC_SILENCE = bytes.fromhex("21100460 8c1c0000".replace(" ", ""))


def descriptor(tag: int, data: bytes) -> bytes:
    return bytes([tag, 0x80, 0x80, 0x80, len(data)]) + data


def aac_entry(*more: bytes) -> bytes:
    config = struct.pack(">BBII", 0x40, 0x15, 0, 0)
    config = descriptor(4, config[:2] + b"\0\0\0" + config[2:] + descriptor(5, AAC_CONFIG))
    stream = descriptor(3, b"\0\1\0" + config + descriptor(6, b"\2"))
    return sound_entry(b"mp4a", 48_000, full(b"esds", more=stream), *more)


def sound_entry(kind: bytes, rate: int, *more: bytes, bits: int = 16, channels: int = 2) -> bytes:
    fields = bytes(6) + b"\0\1" + bytes(8) + struct.pack(">HHII", channels, bits, 0, rate << 16)
    return box(kind, fields, *more)


def description(entry: bytes) -> bytes:
    return full(b"stsd", 1, more=entry)


HANDLER = full(b"hdlr", 0, more=b"soun" + bytes(13))
MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def track(tables: bytes, *, edits: bytes = b"", handler: bytes = HANDLER) -> bytes:
    header = full(b"tkhd", 0, 0, 1, 0, 3000, 0, 0, flags=7, more=bytes(8) + MATRIX + bytes(8))
    media = box(b"mdia", full(b"mdhd", 0, 0, 48_000, 48_000 * 3, 0x55C40000), handler, box(b"minf", tables))
    return box(b"trak", header, edits, media)


def movie(*inside: bytes, sound: bytes = AAC_SILENCE * 64, after: bytes = b"") -> bytes:
    header = full(b"mvhd", 0, 0, 1000, 3000, 0x10000, more=bytes(12) + MATRIX + bytes(24) + b"\0\0\0\2")
    start = box(b"ftyp", b"M4A \0\0\0\0M4A isom")
    return start + box(b"mdat", sound) + box(b"moov", header, *inside) + after


def tables(**other: bytes) -> bytes:
    """The tables of 64 packets of eight bytes, or others in place of some."""
    usual = {
        "stsd": description(aac_entry()),
        "stts": table(b"stts", [(64, 1024)]),
        "stsc": table(b"stsc", [(1, 64, 1)]),
        "stsz": full(b"stsz", 8, 64),
        "stco": table(b"stco", [(48,)]),
    }
    return box(b"stbl", *(usual | other).values())


def plain_tables(run: int, chunks: int, *, length: int = 1, size: int = 1, samples: int = 0) -> bytes:
    """Those of uncompressed sound of one channel and eight bits."""
    return tables(
        stsd=description(sound_entry(b"raw ", 48_000, bits=8, channels=1)),
        stts=table(b"stts", [(samples or run * chunks, length)]),
        stsc=table(b"stsc", [(1, run, 1)]),
        stsz=full(b"stsz", size, samples or run * chunks),
        stco=full(b"stco", chunks, more=struct.pack(">I", 48) * chunks),
    )


PLAIN = track(plain_tables(4800, 1))
MDIR = full(b"hdlr", 0, more=b"mdirappl" + bytes(9))
PICTURE = box(b"data", bytes([0, 0, 0, 14, 0, 0, 0, 0]), b"\x89PNG" + bytes(3_000_000))


def fragments(*boxes: bytes) -> bytes:
    """A film in fragments, of one track with packets of one byte."""
    empty = tables(
        stts=table(b"stts", []), stsc=table(b"stsc", []), stsz=full(b"stsz", 0, 0), stco=table(b"stco", [])
    )
    extends = box(b"mvex", full(b"trex", 1, 1, 1024, 1, 0))
    return movie(track(empty), extends, after=b"".join(boxes))


def fragment(*runs: bytes) -> bytes:
    return box(b"moof", full(b"mfhd", 1), box(b"traf", full(b"tfhd", 1), *runs))


def tags(count: int) -> bytes:
    def tag(number: int) -> bytes:
        name = full(b"name", more=b"%08d" % number)
        return box(b"----", full(b"mean", more=b"a"), name, box(b"data", bytes(8), b"x"))

    return box(b"udta", full(b"meta", more=MDIR + box(b"ilst", *map(tag, range(count)))))


def zipped_movie() -> bytes:
    packed = zlib.compress(bytes(2**20))
    inside = box(b"dcom", b"zlib") + box(b"cmvd", struct.pack(">I", 2**20), packed)
    return box(b"ftyp", b"qt  \0\0\0\0qt  ") + box(b"mdat") + box(b"moov", box(b"cmov", inside))


MP4 = {
    "mp4 packets of one size": lambda: movie(
        track(tables(stts=table(b"stts", [(PIECES, 1024)]), stsz=full(b"stsz", 8, PIECES)))
    ),
    "mp4 table of sizes": lambda: movie(track(tables(stsz=full(b"stsz", 0, PIECES)))),
    "mp4 small table of sizes": lambda: movie(track(tables(stsz=full(b"stz2", 4, PIECES)))),
    "mp4 table of times": lambda: movie(track(tables(stts=full(b"stts", PIECES)))),
    "mp4 table of chunks": lambda: movie(track(tables(stco=full(b"stco", PIECES)))),
    "mp4 table of large chunks": lambda: movie(track(tables(stco=full(b"co64", PIECES)))),
    "mp4 table of runs": lambda: movie(track(tables(stsc=full(b"stsc", PIECES)))),
    "mp4 table of key packets": lambda: movie(track(tables(stss=full(b"stss", PIECES)))),
    "mp4 tables in a description": lambda: movie(
        track(tables(stsd=description(aac_entry(full(b"stsz", 8, PIECES)))))
    ),
    "mov chunks of many samples": lambda: movie(track(plain_tables(MANY, 100, samples=1000))),
    "mov chunks one over the other": lambda: movie(
        track(plain_tables(4_000_000, 1_000_000, samples=1000)), sound=bytes(4_000_000)
    ),
    "mov packets of one sample": lambda: movie(
        track(plain_tables(1_000_000, 1, length=2)), sound=bytes(1_000_000)
    ),
    "mp4 edits": lambda: movie(
        track(
            tables(
                stts=table(b"stts", [(100_000, 1024)]),
                stsz=full(b"stsz", 8, 100_000),
                stsc=table(b"stsc", [(1, 100_000, 1)]),
            ),
            edits=box(b"edts", table(b"elst", [(2_000_000, 0, 0x10000)] * 5000)),
        ),
        sound=AAC_SILENCE * 100_000,
    ),
    "mp4 fragment of many packets": lambda: fragments(fragment(full(b"trun", PIECES))),
    "mp4 fragments of many packets": lambda: fragments(
        *[fragment(full(b"trun", 30_000))] * 2000, bytes(40_000)
    ),
    "mp4 fragments": lambda: fragments(box(b"moof") * 320_000),
    "mp4 fragments and an index": lambda: fragments(
        *[full(b"sidx", 1, 48_000, 0, 0, 65_535, more=bytes(12 * 65_535))] * 4,
        fragment(*[full(b"trun", 0)] * 300_000),
    ),
    "mp4 alac of large packets": lambda: movie(
        track(
            tables(
                stsd=description(
                    sound_entry(
                        b"alac",
                        48_000,
                        full(b"alac", 2**24, 16 << 16 | 40 << 8 | 10, 14 << 24 | 2 << 16 | 255, 0, 0, 48_000),
                    )
                )
            )
        ),
        sound=bytes.fromhex("20000012ffffff00") * 64,
    ),
    "mp4 boxes": lambda: movie(box(b"free") * 320_000),
    "mp4 tracks of nothing": lambda: movie(box(b"trak") * 10_000),
    "mp4 compressed": zipped_movie,
    "mp4 longer than the file": lambda: movie(track(tables()))[:-40],
}

# -- ID3 and APE


def seven_bits(number: int) -> bytes:
    return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))


@cache
def packed_text() -> bytes:
    """What unpacks to 255 MB."""
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(b"\3" + b"a" * (2**20 - 1)) for _ in range(255)) + packer.flush()


def packed_id3(version: int, frames: int = 2) -> bytes:
    """A tag of compressed frames of 255 MB each."""
    size, packed = 255 * 2**20, packed_text()
    if version == 4:
        frame = b"TXXX" + seven_bits(len(packed) + 4) + b"\0\x09" + seven_bits(size) + packed
    else:
        frame = b"TXXX" + struct.pack(">I", len(packed) + 4) + b"\0\x80" + struct.pack(">I", size) + packed
    return id3(version, frame * frames)


def id3(version: int, data: bytes) -> bytes:
    return b"ID3" + bytes([version, 0, 0]) + seven_bits(len(data)) + data


def many_id3_frames(count: int) -> bytes:
    return id3(3, b"".join(b"TXXX" + struct.pack(">IH", 12, 0) + b"\0%08d\0a\0" % n for n in range(count)))


def ape(fields: int) -> bytes:
    items = b"".join(struct.pack("<II", 1, 0) + b"%08d\0a" % number for number in range(fields))
    return items + b"APETAGEX" + struct.pack("<IIII", 2000, len(items) + 32, fields, 0) + bytes(8)


MP3_FRAME = bytes.fromhex("fffb9000") + bytes(413)
ADTS_FRAME = bytes.fromhex("fff14c8001e0fc") + AAC_SILENCE

# -- RIFF, AIFF and FLAC


def chunk(name: bytes, data: bytes, order: str = "<") -> bytes:
    return name + struct.pack(f"{order}I", len(data)) + data + bytes(len(data) % 2)


def wav(*before: bytes, after: bytes = b"") -> bytes:
    head = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 48_000, 96_000, 2, 16))
    inside = b"WAVE" + head + b"".join(before) + chunk(b"data", bytes(9600)) + after
    return b"RIFF" + struct.pack("<I", len(inside)) + inside


def aiff(*before: bytes) -> bytes:
    head = struct.pack(">HIHHQ", 1, 4800, 16, 0x400E, 48_000 << 48)
    inside = b"AIFF" + chunk(b"COMM", head, ">") + b"".join(before) + chunk(b"SSND", bytes(9608), ">")
    return b"FORM" + struct.pack(">I", len(inside)) + inside


def comments(count: int, declared: int | None = None) -> bytes:
    texts = (b"N%07d=a" % number for number in range(count))
    listed = b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return struct.pack("<I", 0) + struct.pack("<I", count if declared is None else declared) + listed


def flac_block(kind: int, data: bytes = b"", *, last: bool = False, size: int | None = None) -> bytes:
    return bytes([kind | last << 7]) + (len(data) if size is None else size).to_bytes(3, "big") + data


FLAC_INFO = struct.pack(">HH", 4096, 4096) + bytes(6) + (48_000 << 44 | 1 << 41 | 15 << 36).to_bytes(8, "big")
FLAC_INFO += bytes(16)


def flac(*blocks: bytes) -> bytes:
    return b"fLaC" + flac_block(0, FLAC_INFO) + b"".join(blocks) + flac_block(1, last=True)


# -- Ogg and Vorbis


def ogg_checksum(page: bytes) -> int:
    """The same as in the specification, bit by bit of a byte at a time."""
    remainder = 0
    for byte in page:
        remainder = remainder << 8 & MANY ^ CHECKSUMS[remainder >> 24 ^ byte]
    return remainder


def _checksum_of(byte: int) -> int:
    value = byte << 24
    for _ in range(8):
        value = value << 1 ^ (0x104C11DB7 if value & 0x80000000 else 0)
    return value


CHECKSUMS = [_checksum_of(byte) for byte in range(256)]


def page(lacing: bytes, data: bytes, serial: int = 1, flags: int = 0, number: int = 0) -> bytes:
    head = b"OggS\0" + bytes([flags]) + struct.pack("<QII", 0, serial, number)
    rest = bytes([len(lacing)]) + lacing + data
    return head + struct.pack("<I", ogg_checksum(head + bytes(4) + rest)) + rest


def pages(packet: bytes, serial: int = 1, flags: int = 0) -> bytes:
    lacing = b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
    made = []
    for first in range(0, len(lacing), 255):
        part = lacing[first : first + 255]
        goes_on = flags if first == 0 else 1
        made.append(page(part, packet[255 * first :][: sum(part)], serial, goes_on, first))
    return b"".join(made)


OPUS_HEAD = b"OpusHead\1\2" + struct.pack("<HIHB", 312, 48_000, 0, 0)
VORBIS_HEAD = b"\1vorbis" + struct.pack("<IBIIIIBB", 0, 2, 48_000, 0, 0, 0, 0xB8, 1)


def opus(*packets: bytes, tags: bytes = b"OpusTags" + comments(0)) -> bytes:
    return pages(OPUS_HEAD, flags=2) + pages(tags) + b"".join(map(pages, packets))


def codebooks(count: int, entries: int, dimensions: int) -> bytes:
    """A Vorbis header with codebooks whose entries all are equally long, and have values."""
    bits, length = 0, 0

    def put(value: int, width: int) -> None:
        nonlocal bits, length
        bits |= value << length
        length += width

    put(count - 1, 8)
    for _ in range(count):
        put(0x564342, 24)
        put(dimensions, 16)
        put(entries, 24)
        put(1, 1)
        put((entries - 1).bit_length() - 1, 5)
        put(entries, entries.bit_length())
        put(1, 4)
        put(0, 64)
        put(0, 4)
        put(0, 1)
        put(0, int(entries ** (1 / dimensions)))
    for width in (6, 1, 16, 16, 8):  # one mode
        put(0, width)
    put(1, 1)
    return b"\5vorbis" + bits.to_bytes(-(-length // 8), "little")


def vorbis(setup: bytes) -> bytes:
    head = pages(VORBIS_HEAD, flags=2)
    return head + pages(b"\3vorbis" + comments(0) + b"\1") + pages(setup) + pages(bytes(100))


# -- Matroska


def element(ident: str, *parts: bytes, size: int | None = None) -> bytes:
    data = b"".join(parts)
    length = len(data) if size is None else size
    return bytes.fromhex(ident) + (length | 1 << 56).to_bytes(8, "big") + data


def number(ident: str, value: int) -> bytes:
    return element(ident, value.to_bytes(4, "big"))


def matroska_track(codec: bytes, private: bytes = b"", *more: bytes, bits: int = 8) -> bytes:
    audio = element("e1", element("b5", struct.pack(">d", 48_000)), number("9f", 1), number("6264", bits))
    kept = element("63a2", private) if private else b""
    return element(
        "ae", number("d7", 1), number("73c5", 1), number("83", 2), element("86", codec), kept, audio, *more
    )


def matroska(tracks: bytes, *parts: bytes) -> bytes:
    head = element("1a45dfa3", element("4282", b"matroska"))
    info = element("1549a966", number("2ad7b1", 1_000_000), element("4489", struct.pack(">d", 100)))
    return head + element("18538067", info, element("1654ae6b", tracks), *parts)


def cluster(*blocks: bytes) -> bytes:
    return element("1f43b675", number("e7", 0), *blocks)


def block(data: bytes, flags: int = 0x80) -> bytes:
    return element("a3", b"\x81\0\0" + bytes([flags]), data)


PCM = matroska_track(b"A_PCM/INT/LIT")
PCM_SOUND = cluster(block(b"\x80" * 4800))


def xiph(*packets: bytes) -> bytes:
    sizes = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets[:-1])
    return bytes([len(packets) - 1]) + sizes + b"".join(packets)


def zlib_encoding() -> bytes:
    return element("6d80", element("6240", element("5034", number("4254", 0))))


def other_track(codec: bytes) -> bytes:
    """One of pictures, with the number 2."""
    size = element("e0", number("b0", 64), number("ba", 64))
    return element("ae", number("d7", 2), number("73c5", 2), number("83", 1), element("86", codec), size)


def laced(track: int, data: bytes = bytes(256)) -> bytes:
    """A block of 256 packets of a byte each, or of other equal ones."""
    return element("a3", bytes([0x80 | track, 0, 0, 0x84, 0xFF]), data)


BOMBS: dict[str, Callable[[], bytes]] = {
    **MP4,
    "aac compressed tag between frames": lambda: ADTS_FRAME * 9 + packed_id3(4, 1) + ADTS_FRAME * 9,
    "aac empty frames": lambda: bytes.fromhex("fff14c8000fffc") * 1_400_000,
    "aac many frames in a tag": lambda: ADTS_FRAME * 9 + many_id3_frames(40_000) + ADTS_FRAME * 9,
    "mp3 tag longer than the file": lambda: id3(4, bytes(100))[:-50],
    "wav chunks": lambda: wav(chunk(b"abcd", b"") * 100_000),
    "aiff chunks": lambda: aiff(chunk(b"abcd", b"", ">") * 100_000),
    "wav vorbis": lambda: wav(chunk(b"fmt ", codebooks(256, 2**14, 16))),
    "flac comments": lambda: flac(flac_block(4, comments(60_000))),
    "flac blocks": lambda: flac(flac_block(2) * 100_000),
    "flac block longer than the file": lambda: flac(flac_block(6, size=2**24 - 1)),
    "ogg comments": lambda: opus(tags=b"OpusTags" + comments(60_000)),
    "ogg comments later": lambda: opus(*[b"\xfc"] * 2000, b"OpusTags" + comments(60_000)),
    "ogg streams": lambda: b"".join(page(b"\x13", OPUS_HEAD, serial, 2) for serial in range(5000)),
    "ogg codebooks": lambda: vorbis(codebooks(256, 2**14, 16)),
    "ogg codebooks again and again": lambda: (
        vorbis(codebooks(8, 2**14, 16)) + pages(codebooks(8, 2**14, 16)) * 40
    ),
    "mkv codebooks": lambda: matroska(
        matroska_track(
            b"A_VORBIS", xiph(VORBIS_HEAD, b"\3vorbis" + comments(0) + b"\1", codebooks(256, 2**14, 16))
        ),
        cluster(block(bytes(100))),
    ),
    "mkv tracks": lambda: matroska(bytes.fromhex("ae80") * 300_000),
    "mkv compressed": lambda: matroska(
        matroska_track(b"A_PCM/INT/LIT", b"", zlib_encoding()),
        cluster(*[block(zlib.compress(bytes(9_000_000), 9))] * 200),
    ),
    "mkv vorbis without its headers": lambda: matroska(
        matroska_track(b"A_VORBIS"), cluster(*[laced(1)] * 35_000)
    ),
    "mkv packets of one sample": lambda: matroska(PCM, cluster(*[laced(1, b"\x80" * 256)] * 1000)),
}
"""What must be refused."""

HARMLESS: dict[str, Callable[[], bytes]] = {
    "mp3 compressed tag, version 3": lambda: packed_id3(3) + MP3_FRAME * 60,
    "mp3 compressed tag, version 4": lambda: packed_id3(4) + MP3_FRAME * 60,
    "mp3 many frames in a tag": lambda: many_id3_frames(60_000) + MP3_FRAME * 60,
    "mp3 tags": lambda: id3(4, bytes(20)) * 20_000 + MP3_FRAME * 60,
    "mp3 ape": lambda: MP3_FRAME * 60 + ape(65_536),
    "wav compressed tag": lambda: wav(chunk(b"id3 ", packed_id3(4))),
    "wav compressed tag at the end": lambda: wav(after=chunk(b"ID3 ", packed_id3(3))),
    "wav texts": lambda: wav(
        chunk(b"LIST", b"INFO" + b"".join(chunk(b"%04d" % (n % 10_000), b"a") for n in range(100_000)))
    ),
    "aiff compressed tag": lambda: aiff(chunk(b"ID3 ", packed_id3(4), ">")),
    "mov tags": lambda: movie(PLAIN, tags(30_000), sound=bytes(4800)),
    "mov index of fragments": lambda: movie(
        PLAIN, sound=bytes(4800), after=box(b"mfra", full(b"tfra", 1, 0, 700_000, more=bytes(11 * 700_000)))
    ),
    "mov pictures": lambda: movie(
        PLAIN,
        box(
            b"udta", full(b"meta", more=MDIR + box(b"ilst", box(b"covr", PICTURE), box(b"\xa9nam", PICTURE)))
        ),
        sound=bytes(4800),
    ),
    "mkv tags": lambda: matroska(
        PCM, element("1254c367", bytes.fromhex("7373806380 67c880".replace(" ", "")) * 300_000), PCM_SOUND
    ),
    "mkv index": lambda: matroska(PCM, PCM_SOUND, element("1c53bb6b", bytes.fromhex("bb80") * 300_000)),
    "mkv index from a list of parts": lambda: matroska(
        PCM, element("114d9b74", bytes.fromhex("4dbb80") * 300_000), PCM_SOUND
    ),
    "mkv chapters": lambda: matroska(
        PCM, element("1043a770", element("45b9", bytes.fromhex("b680") * 300_000)), PCM_SOUND
    ),
    "mkv other packets of one byte": lambda: matroska(
        PCM + other_track(b"V_OTHER"), cluster(*[laced(2)] * 35_000, block(b"\x80" * 4800))
    ),
    "mkv other packets of one byte, of a known kind": lambda: matroska(
        PCM + other_track(b"V_MPEG4/ISO/AVC"), cluster(*[laced(2)] * 35_000, block(b"\x80" * 4800))
    ),
    "mkv files": lambda: matroska(PCM, element("1941a469", bytes.fromhex("61a780") * 300_000), PCM_SOUND),
}
"""What is read, because the sound is: its tags and indexes are not."""


PLAIN_SAMPLES = 4800
"""In the sounds that are not MP3."""


def write_all(folder: str) -> None:
    """For a look at them with other programs."""
    from pathlib import Path

    for name, make in (BOMBS | HARMLESS).items():
        Path(folder, name.replace(" ", "_")).write_bytes(make())


if __name__ == "__main__":
    import sys

    write_all(sys.argv[1])
