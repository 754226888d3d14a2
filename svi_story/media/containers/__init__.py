"""What the headers of an audio file declare, checked against the file's size before libav parses them.

libav reads a file only through the `FileView` that `inspect` returns. The view leaves out what decoding does
not need (pictures, comments, chapters, other tracks) and names the demuxers that may read the rest, so that
what was inspected is what is parsed.

Only headers and tables are read here, not the sound, except where any packet may be a header: in Ogg files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.media.audio_files import (
    MAX_COMMENTS,
    MAX_HEADER,
    MAX_PARTS,
    AudioSource,
    FileView,
    check_comments,
)
from svi_story.media.containers.matroska import EBML, Matroska
from svi_story.media.containers.mp4 import FIRST_BOXES, Movie
from svi_story.media.containers.ogg import inspect_ogg

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO, Literal

_ID3_HEADER = 10


def inspect(path: Path, file: BinaryIO) -> FileView:
    """What libav may read of an open audio file.

    Raises SoundError where headers declare more than the file can hold, or more than is allowed.
    """
    source = AudioSource(path, file)
    start = _after_id3(source)
    head = source.read(start, 12)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:] == b"WAVE":
        view = _inspect_wave(source, start)
    elif head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        view = _inspect_aiff(source, start)
    elif head[:4] == b"fLaC":
        view = _inspect_flac(source, start)
    elif head[:4] == b"OggS":
        view = inspect_ogg(source, start)
    elif head[:4] == EBML:
        view = Matroska(source, start).view
    elif head[4:8] in FIRST_BOXES:
        view = Movie(source, start).view
    else:
        view = _inspect_frames(source, start)
    view.patches.sort()
    return view


# -- MP3 and AAC, and the tags around and between their frames


def _after_id3(source: AudioSource) -> int:
    """Where the sound starts, after any ID3 tags, whose frames may be compressed and are not needed."""
    start = 0
    while length := _id3_length(source.read(start, _ID3_HEADER)):
        source.count_part()
        start += length
        if start > source.size:
            source.refuse_short(f"its ID3 tag ends at byte {start}")
    return start


def _id3_length(header: bytes) -> int:
    """The bytes of the ID3v2 tag with this header; 0 where it is none."""
    if len(header) < _ID3_HEADER or header[:3] != b"ID3" or 0xFF in header[3:5] or max(header[6:]) > 0x7F:
        return 0
    footer = _ID3_HEADER if header[5] & 0x10 else 0
    return _ID3_HEADER + _seven_bits(header[6:]) + footer


def _seven_bits(number: bytes) -> int:
    return sum(byte << shift for byte, shift in zip(number, (21, 14, 7, 0), strict=True))


def _inspect_frames(source: AudioSource, start: int) -> FileView:
    """MP3 or AAC frames one after the other, or an unknown format."""
    view = FileView("mp3", start)
    sync = int.from_bytes(source.read(start, 2**12).lstrip(b"\0")[:2], "big")
    if sync & 0xFFE0 != 0xFFE0 or sync & 0x0006 == 0:  # no frame of MPEG audio, layer 1 to 3
        view.formats = "aac,flac,mp3"
        _check_id3_between_frames(source, start)
    if source.read(max(source.size - 32, 0), 8) == b"APETAGEX":
        view.patches.append((source.size - 32, bytes(8)))  # an APE tag's footer
    return view


def _check_id3_between_frames(source: AudioSource, start: int) -> None:
    """libav's AAC demuxer parses every tag between frames, as where files were concatenated."""
    at = start
    while (at := source.find(b"ID3", at)) >= 0:
        source.count_part()
        length = _id3_length(source.read(at, _ID3_HEADER))
        if length and not _harmless_id3(source, at, min(at + length, source.size)):
            source.refuse("has a compressed or very large ID3 tag between its frames")
        at += max(length, 3)


def _harmless_id3(source: AudioSource, at: int, stop: int) -> bool:
    """Whether a tag has few frames and none of them is compressed; in other versions, whether it is short."""
    version, flags = source.number(at + 3, 1), source.number(at + 5, 1)
    if version not in (3, 4) or flags & 0xC0:
        return stop - at <= 2**10
    at += _ID3_HEADER
    for _ in range(MAX_COMMENTS):
        frame = source.read(at, 10)
        if at + 10 > stop or frame[0] == 0:
            return True
        if frame[9] & (0x80 if version == 3 else 0x08):
            return False
        at += 10 + (int.from_bytes(frame[4:8], "big") if version == 3 else _seven_bits(frame[4:8]))
    return False


# -- WAV, AIFF and FLAC


def _inspect_wave(source: AudioSource, start: int) -> FileView:
    head = source.read(start, 36)
    size = int.from_bytes(head[28:36], "little") if head[:4] in (b"RF64", b"BW64") else None
    order: Literal["big", "little"] = "big" if head[:4] == b"RIFX" else "little"
    view = FileView("wav", start)
    _hide_chunks(source, view, order, (b"fmt ", b"fact", b"ds64"), size)
    return view


def _inspect_aiff(source: AudioSource, start: int) -> FileView:
    view = FileView("aiff", start)
    _hide_chunks(source, view, "big", (b"COMM", b"FVER", b"CHAN"), None)
    return view


def _hide_chunks(
    source: AudioSource,
    view: FileView,
    order: Literal["big", "little"],
    needed: tuple[bytes, ...],
    sound: int | None,
) -> None:
    """Rename all chunks but those `needed` and the sound; `sound` is its length where its header has none."""
    at = view.start + 12
    for _ in range(MAX_PARTS):
        if at + 8 > source.size:
            return
        name, size = source.read(at, 4), source.number(at + 4, 4, order)
        if name in (b"data", b"SSND"):
            size = size if sound is None else sound
            if name == b"data" and size in (0, 2**32 - 1):
                return  # until the end of the file
        elif name not in needed:
            view.patches.append((at, b"JUNK"))
        elif size > MAX_HEADER:
            source.refuse(f"is damaged: its chunk {name.decode()!r} declares {size} bytes")
        elif b"\x05vorbis" in source.read(at + 8, size):
            source.refuse("holds Vorbis, which is read from Ogg, MKV and WebM files only")
        at += 8 + size + size % 2
    source.refuse(f"is damaged: it has more than {MAX_PARTS} chunks")


def _inspect_flac(source: AudioSource, start: int) -> FileView:
    view = FileView("flac", start)
    at = start + 4
    for _ in range(MAX_PARTS):
        kind, size = source.number(at, 1), source.number(at + 1, 3)
        if at + 4 + size > source.size:
            source.refuse_short(f"a block of its header ends at byte {at + 4 + size}")
        if kind & 0x7F == 4:  # comments: one of them may say which channels there are
            check_comments(source, source.read(at + 4, size))
        elif kind & 0x7F:
            view.patches.append((at, bytes([kind & 0x80 | 1])))  # padding
        at += 4 + size
        if kind & 0x80:
            return view
    return source.refuse(f"is damaged: its header has more than {MAX_PARTS} blocks")
