"""What the headers of an audio file declare, checked against the file's size before libav parses them.

libav reads a file only through the `FileView` that `inspect` returns. The view leaves out what decoding does
not need (pictures, comments, chapters, other tracks) and names the demuxers that may read the rest, so that
what was inspected is what is parsed.

Files that were joined byte by byte have headers and tags in the middle, where most programs stop. They are
left out too, so that the sound is read to its end; where that is not possible, the file is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from svi_story.media.audio_files import MAX_COMMENTS, MAX_PARTS, AudioSource, FileView, check_comments
from svi_story.media.containers.chunks import ChunkedFile, is_chunked
from svi_story.media.containers.matroska import EBML, Matroska
from svi_story.media.containers.mp4 import FIRST_BOXES, Movie
from svi_story.media.containers.ogg import inspect_ogg

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

_ID3_HEADER = 10


def inspect(path: Path, file: BinaryIO) -> FileView:
    """What libav may read of an open audio file.

    Raises SoundError where headers declare more than the file can hold, or more than is allowed.
    """
    source = AudioSource(path, file)
    start = _after_id3(source)
    head = source.read(start, 12)
    if is_chunked(head):
        view = ChunkedFile(source, start).view
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


def count_joined_files(path: Path, file: BinaryIO) -> int:
    """How many WAV or AIFF files an open file consists of, one behind the other; 1 for all other kinds.

    Raises SoundError as `inspect`.
    """
    source = AudioSource(path, file)
    start = _after_id3(source)
    return ChunkedFile(source, start).files if is_chunked(source.read(start, 12)) else 1


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
    if sync & 0xFFE0 == 0xFFE0 and sync & 0x0006:  # a frame of MPEG audio, layer 1 to 3
        view.cuts = list(_tags_among_mp3_frames(source, start))
    else:
        view.formats = "aac,flac,mp3"
        _check_id3_between_frames(source, start)
    if source.read(max(source.size - 32, 0), 8) == b"APETAGEX":
        view.patches.append((source.size - 32, bytes(8)))  # an APE tag's footer
    return view


def _tags_among_mp3_frames(source: AudioSource, start: int) -> Iterator[tuple[int, int]]:
    """Where tags are that libav takes for damage or counts as sound: between frames, or large and at the end.

    What only looks like a tag is sound, so a frame must follow, or nothing.
    """
    done = start
    for at in source.find_all(_TAG, start, source.size):
        tag = _mp3_tag(source, at)
        if tag is None or tag[0] < done:
            continue
        first, end = tag
        while following := _mp3_tag(source, end):
            source.count_part()
            end = following[1]
        last = end == source.size and end - first > _ID3V1_BYTES
        if last or _is_mp3_frame(source.read(end, 4)):
            yield first, end
            done = end


_TAG = re.compile(rb"ID3|TAG|APETAGEX")
_ID3V1_BYTES, _APE_HEADER = 128, 32
_APE_IS_HEADER = 1 << 29


def _mp3_tag(source: AudioSource, at: int) -> tuple[int, int] | None:
    """Where the tag starts and ends whose mark is at a place; None where there is none."""
    head = source.read(at, _ID3V1_BYTES)
    if length := _id3_length(head[:_ID3_HEADER]):
        return at, at + length
    if head[:3] == b"TAG" and len(head) == _ID3V1_BYTES and not any(0 < byte < 32 for byte in head[3:93]):
        return at, at + _ID3V1_BYTES  # title, artist and album are text
    if head[:8] == b"APETAGEX" and len(head) >= _APE_HEADER:
        size, flags = (int.from_bytes(head[place : place + 4], "little") for place in (12, 20))
        # The size includes the items and the footer
        return (
            (at, at + _APE_HEADER + size)
            if flags & _APE_IS_HEADER
            else (at + _APE_HEADER - size, at + _APE_HEADER)
        )
    return None


def _is_mp3_frame(header: bytes) -> bool:
    """Whether these are the first bytes of an MPEG audio frame: none of its fields has a forbidden value."""
    if len(header) < 4:
        return False
    version, layer, rate = header[1] >> 3 & 3, header[1] >> 1 & 3, header[2] >> 2 & 3
    return (
        header[0] == 0xFF
        and header[1] >= 0xE0
        and version != 1
        and layer != 0
        and header[2] < 0xF0
        and rate != 3
    )


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


# -- FLAC


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
