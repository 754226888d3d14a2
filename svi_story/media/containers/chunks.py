"""WAV and AIFF files, before libav parses them.

Headers that were written too early, or by programs that join files byte by byte, describe only a part of the
sound, and libav reads no further. So only chunks, tags and zeros may follow the sound, or another file of the
same format, whose samples are then read too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from svi_story.media.audio_files import MAX_HEADER, MAX_PARTS, REMEDY, UNKNOWN_LENGTH, FileView

if TYPE_CHECKING:
    from typing import Literal, NoReturn

    from svi_story.media.audio_files import AudioSource

_FILE = re.compile(rb"(?:RIFF|RIFX|RF64|BW64)....WAVE|FORM....AIF[FC]", re.DOTALL)
_MARKS = ((re.compile(b"WAVE"), -8), (re.compile(b"FORM"), 0))
"""A part of such a header that is found quickly, and where the header starts from there."""
_FILE_HEADER, _CHUNK_HEADER = 12, 8
_SOUND = (b"data", b"SSND")
_FORMAT = (b"fmt ", b"COMM")
_NEEDED = (*_FORMAT, b"fact", b"ds64", b"FVER", b"CHAN")
_FOLLOWING = (
    b"LIST",
    b"id3 ",
    b"ID3 ",
    b"bext",
    b"iXML",
    b"JUNK",
    b"junk",
    b"FLLR",
    b"cue ",
    b"smpl",
    b"fact",
)
"""Chunks that often follow the sound. They may be cut off."""
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")
_NOT_KNOWN_YET = (0, 2**32 - 1)
_MAX_JOINED = 2**14
"""Chunks with sound in all joined files: half an hour with a header every tenth of a second."""
_NEGLIGIBLE = 128
"""Bytes that are no sound worth hearing: a millisecond or so."""
_NOT_ZERO = re.compile(rb"[^\0]")
_PCM = (1, 3, 6, 7, 0xFFFE)
"""WAV's codecs whose samples can be joined."""


def is_chunked(head: bytes) -> bool:
    """Whether a file with these first bytes is a WAV or AIFF file."""
    return _FILE.match(head) is not None


class ChunkedFile:
    """WAV and AIFF: chunks that are not needed are renamed, and the sound of all joined files becomes one."""

    def __init__(self, source: AudioSource, start: int) -> None:
        self._source = source
        self._wave = source.read(start + 8, 4) == b"WAVE"
        self._order: Literal["big", "little"] = "little" if self._wave else "big"
        self.view = FileView("wav" if self._wave else "aiff", start)
        self._format: tuple[bytes, int] | None = None
        """What must be equal in joined files, and the bytes of one sample of all channels."""
        self._sound: list[tuple[int, int]] = []
        """Where the samples start and end, in every chunk that holds some."""
        self._length_at = 0
        """Where the length of the first of these chunks is."""
        self.files = 0
        at = start
        while at < source.size:
            at = self._inspect_file(at)
            self.files += 1
        if len(self._sound) > 1:
            self._join()

    def _inspect_file(self, start: int) -> int:
        """Inspect a file that starts at a place; where the next one does, or the end."""
        source, at, found = self._source, start + _FILE_HEADER, False
        if (source.read(start + 8, 4) == b"WAVE") != self._wave:
            self._refuse_other_format()
        if source.read(start, 4) == b"RIFX":  # libav would take its samples for little-endian ones
            source.refuse("is a big-endian WAV file (RIFX)")
        for _ in range(MAX_PARTS):
            source.count_part()
            if at + _CHUNK_HEADER > source.size:
                return source.size
            if is_chunked(source.read(at, _FILE_HEADER)):
                return at
            if found and not self._is_chunk(at):
                if not self._is_chunk(at - 1):  # after an odd number of bytes, some write no padding
                    self._check_rest(at)
                    return source.size
                at -= 1
                continue
            name, length = source.read(at, 4), source.number(at + 4, 4, self._order)
            if name in _SOUND:
                found = True
                if source.read(start, 4) in (b"RF64", b"BW64"):
                    length = source.number(start + 28, 8, "little")
                is_known = not self._wave or length not in _NOT_KNOWN_YET
                at = self._inspect_sound(at, length if is_known else None)
                continue
            if name in _NEEDED:
                self._inspect_header(name, at + _CHUNK_HEADER, length)
            elif self.files == 0:  # nothing of the following files is shown to libav but their samples
                self.view.patches.append((at, b"JUNK"))
            at += _CHUNK_HEADER + length + length % 2
        return source.refuse(f"is damaged: it has more than {MAX_PARTS} chunks")

    def _inspect_header(self, name: bytes, at: int, length: int) -> None:
        """A chunk that libav needs. Joined files must agree in their format."""
        if length > MAX_HEADER:
            self._source.refuse(f"is damaged: its chunk {name.decode()!r} declares {length} bytes")
        content = self._source.read(at, length)
        if b"\x05vorbis" in content:
            self._source.refuse("holds Vorbis, which is read from Ogg, MKV and WebM files only")
        if name not in _FORMAT:
            return
        if name == b"fmt ":
            codec, align = (int.from_bytes(content[place : place + 2], self._order) for place in (0, 12))
            found = content[:8] + content[14:16] + content[24:40], align if codec in _PCM else 0
        else:
            channels, bits = (int.from_bytes(content[place : place + 2], "big") for place in (0, 6))
            found = content[:2] + content[6:22], channels * -(-bits // 8)
        if self._format not in (None, found):
            self._refuse_other_format()
        self._format = self._format or found

    def _inspect_sound(self, at: int, length: int | None) -> int:
        """A chunk with sound; where the next one starts. What follows an unknown length is sound."""
        source, size = self._source, self._source.size
        begin = at + _CHUNK_HEADER
        end = size if length is None else begin + length
        if self._sound and size < end < size + UNKNOWN_LENGTH:
            source.refuse_short(f"the last of the joined files ends at byte {end}")
        end = min(end, size)
        stop = end  # or where the header of another file is
        for mark, offset in _MARKS:
            places = (place + offset for place in source.find_all(mark, begin, stop))
            headers = (at for at in places if at >= begin and is_chunked(source.read(at, _FILE_HEADER)))
            stop = next(headers, stop)
        if not self._sound:
            self._length_at = at + 4
        if not self._wave:
            begin += 8 + source.number(begin, 4)
        if len(self._sound) == _MAX_JOINED:
            source.refuse(f"consists of more than {_MAX_JOINED} files or pieces")
        self._sound.append((begin, stop))
        return stop if stop < end else end + (end - begin) % 2

    def _is_chunk(self, at: int) -> bool:
        """Whether there is a chunk at a place, or the start of another file."""
        name, length = self._source.read(at, 4), self._source.number(at + 4, 4, self._order)
        named = all(32 <= byte < 127 for byte in name)
        whole = at + _CHUNK_HEADER + length <= self._source.size + 1
        return named and (whole or name in _FOLLOWING or is_chunked(self._source.read(at, _FILE_HEADER)))

    def _check_rest(self, at: int) -> None:
        """Refuse a file that goes on behind its sound, unless with tags or zeros."""
        if self._source.read(at, 11).startswith(_TAGS):
            return
        rest = self._source.size - at
        if rest <= _NEGLIGIBLE or not any(self._source.find_all(_NOT_ZERO, at, self._source.size)):
            return
        what = f"is damaged: its header describes only a part of it, and {rest} more bytes follow"
        if self._wave:
            remedy = "if they are sound, repair it with `ffmpeg -ignore_length 1 -i old.wav new.wav`"
            self._source.refuse(what, f"{remedy}, else {REMEDY}")
        self._source.refuse(what)

    def _refuse_other_format(self) -> NoReturn:
        self._source.refuse("is several files of different formats in one", "join them with an audio editor")

    def _join(self) -> None:
        """Leave out what is between the samples and after them."""
        _, align = self._format or (b"", 0)
        if not align:
            self._source.refuse("is several files in one, and their sound cannot be joined")
        sound = [(begin, end - (end - begin) % align) for begin, end in self._sound]
        stops = [begin for begin, _ in sound[1:]]
        self.view.cuts = list(zip((end for _, end in sound), [*stops, self._source.size], strict=True))
        # The lengths in the header of the first file
        total = sum(end - begin for begin, end in sound)
        first = sound[0][0] - self._length_at - 4 + total
        start, size = self.view.start, sound[0][0] + total - self.view.start
        self.view.patches += [
            (start + 4, (size - 8).to_bytes(4, self._order)),
            (self._length_at, first.to_bytes(4, self._order)),
        ]
        if self._source.read(start, 4) in (b"RF64", b"BW64"):
            self.view.patches[-1] = (start + 28, first.to_bytes(8, "little"))
