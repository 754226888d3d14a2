"""Matroska and WebM files, before libav parses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.media.audio_files import MAX_COMMENTS, MAX_HEADER, MAX_PACKET, MAX_TRACKS, FileView
from svi_story.media.containers.ogg import CODEBOOK_BYTES, Codebooks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.media.audio_files import AudioSource

_CLUSTER_BYTES = 2**24
"""Larger clusters are inspected too."""
_MAX_STRIPPED = 64
"""Bytes that may be left out at the start of every packet."""

EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_INFO = b"\x15\x49\xa9\x66"
_TRACKS = b"\x16\x54\xae\x6b"
_CLUSTER = b"\x1f\x43\xb6\x75"
_VOID = b"\xec"
_CRC = b"\xbf"
_BLOCK_GROUP = b"\xa0"
_IN_CLUSTERS = (_VOID, _CRC, b"\xe7", b"\xa3", _BLOCK_GROUP, b"\xab", b"\xa7", b"\xaf", b"\x58\x54")
_TRACK = b"\xae"
_TRACK_TYPE = b"\x83"
_COMPLEX = b"\x03"
"""A track type that libav ignores."""
_CODEC = b"\x86"
_ENCODINGS = b"\x6d\x80"
_ENCODING = b"\x62\x40"
_COMPRESSION = b"\x50\x34"
_ALGORITHM = b"\x42\x54"
_STRIPPED = b"\x42\x55"
_LISTS_OF_TRACKS = (b"\xe2", b"\x41\xe4", b"\x66\x24")
"""Operations on tracks, mappings of additions and translations: each may be a long list."""


@dataclass(frozen=True)
class _Element:
    id: bytes
    at: int
    body: int
    end: int | None
    """None where the length is not known."""


class Matroska:
    """Matroska and WebM: what is not needed becomes a Void element of the same length."""

    def __init__(self, source: AudioSource, start: int) -> None:
        self._source = source
        self.view = FileView("matroska", start)
        self._tracks: int | None = None
        self._found = False
        at: int | None = start
        segments = 0
        while at is not None and at < source.size and (element := self._element(at)):
            segments += element.id == _SEGMENT
            if segments > 1:
                what = f"holds a second recording from byte {at} on, which many programs ignore"
                source.refuse(what, "join them with an audio editor")
            if element.id == EBML and (element.end or source.size) - element.body > MAX_HEADER:
                source.refuse("is damaged: its header is too long")
            at = self._inspect_segment(element) if element.id == _SEGMENT else element.end

    def _inspect_segment(self, segment: _Element) -> int | None:
        at: int | None = segment.body
        stop = min(segment.end or self._source.size, self._source.size)
        while at is not None and at < stop:
            element = self._element(at)
            if element is None:
                if self._tracks is None:
                    self._source.refuse("is damaged")
                return None
            if element.id in (EBML, _SEGMENT) and segment.end is None:
                return at
            at = self._inspect_part(element, stop)
        return segment.end

    def _inspect_part(self, element: _Element, stop: int) -> int | None:
        """One part of a segment. Where the next one is, or None."""
        if element.id == _CLUSTER:
            if self._tracks is None:
                self._source.refuse("is damaged: no list of tracks comes before its sound")
            if element.end is None or element.end - element.body > _CLUSTER_BYTES:
                return self._inspect_cluster(element, stop)
            return element.end
        if element.end is None or (element.id == _INFO and element.end - element.body > MAX_HEADER):
            self._source.refuse("is damaged: a part of its header is too long")
        if element.id == _TRACKS:
            self._inspect_tracks(element, element.end)
        elif element.id not in (_INFO, _VOID, _CRC):
            self._hide(element)
        return element.end

    def _inspect_cluster(self, cluster: _Element, stop: int) -> int | None:
        at = cluster.body
        while at < min(cluster.end or stop, stop):
            element = self._element(at)
            if element is None or element.id not in _IN_CLUSTERS:
                return cluster.end or (None if element is None else at)
            if element.end is None or element.end - element.body > MAX_PACKET:
                self._source.refuse(f"has a packet of more than {MAX_PACKET // 2**20} MiB")
            if element.id == _BLOCK_GROUP and element.end - element.body > _CLUSTER_BYTES:
                self._source.refuse(f"has a group of blocks of more than {_CLUSTER_BYTES // 2**20} MiB")
            at = element.end
        return cluster.end or at

    def _inspect_tracks(self, tracks: _Element, end: int) -> None:
        if end > self._source.size or end - tracks.body > _CLUSTER_BYTES:
            self._source.refuse_short(f"its list of tracks ends at byte {end}")
        vorbis = False
        for element in self._elements(tracks.body, end):
            if element.id == _TRACK and element.end is not None:
                self._tracks = (self._tracks or 0) + 1
                if self._tracks > MAX_TRACKS:
                    self._source.refuse(f"has more than {MAX_TRACKS} tracks")
                vorbis |= self._is_vorbis(element.body, element.end)
            elif element.id not in (_VOID, _CRC):
                self._hide(element)
        self._tracks = self._tracks or 0
        if not vorbis:
            return
        books, at = Codebooks(self._source), self.view.start
        while (at := self._source.find(b"\x05vorbis", at)) >= 0:  # every packet may hold new codebooks
            books.check(self._source.read(at, CODEBOOK_BYTES))
            at += 7

    def _is_vorbis(self, body: int, end: int) -> bool:
        """Inspect a track; whether it is Vorbis. Tracks that are not needed get a type that libav ignores."""
        parts = list(self._elements(body, end))
        if len(parts) > MAX_COMMENTS:
            self._source.refuse("is damaged: the header of a track is too long")
        kinds = [part for part in parts if part.id == _TRACK_TYPE]
        codec = b"".join(self._bytes(part) for part in parts if part.id == _CODEC)
        chosen = bool(not self._found and codec and kinds and self._bytes(kinds[-1])[-1:] == b"\x02")
        self._found |= chosen
        self.view.others |= not chosen
        for part in parts:
            if part.id in _LISTS_OF_TRACKS or (part.id == _ENCODINGS and not chosen):
                self._hide(part)
            elif part.id == _ENCODINGS and (b"VORBIS" in codec or not self._only_strips(part)):
                self._source.refuse("has compressed or encrypted packets of sound")
        if not chosen:
            self.view.patches += [
                (kind.end - 1, _COMPLEX) for kind in kinds if kind.end != kind.body and kind.end
            ]
        return chosen and b"VORBIS" in codec

    def _only_strips(self, encodings: _Element) -> bool:
        """Whether packets are encoded only by stripping a constant header."""
        for encoding in self._inside(encodings):
            parts = list(self._inside(encoding)) if encoding.id == _ENCODING else []
            compressions = [list(self._inside(part)) for part in parts if part.id == _COMPRESSION]
            if len(parts) > 8 or len(compressions) != 1:
                return False
            settings = {part.id: self._bytes(part) for part in compressions[0]}
            if settings.get(_ALGORITHM, b"")[-1:] != b"\x03" or len(settings) != len(compressions[0]):
                return False
            if len(settings.get(_STRIPPED, b"")) > _MAX_STRIPPED:
                return False
        return True

    def _inside(self, element: _Element) -> Iterator[_Element]:
        return self._elements(element.body, element.body if element.end is None else element.end)

    def _bytes(self, element: _Element) -> bytes:
        return self._source.read(element.body, min((element.end or element.body) - element.body, MAX_HEADER))

    def _elements(self, at: int, end: int) -> Iterator[_Element]:
        """All elements in a part of the header, which must hold them."""
        while at < end:
            element = self._element(at)
            if element is None or element.end is None or element.end > end:
                self._source.refuse("is damaged: a part of its header is longer than the whole")
            yield element
            at = element.end

    def _element(self, at: int) -> _Element | None:
        """The element at an offset, or None where there is none."""
        self._source.count_part()
        head = self._source.read(at, 12)
        width = _vint_width(head[:1])
        size_width = _vint_width(head[width : width + 1])
        if not 1 <= width <= 4 or not size_width or len(head) < width + size_width:
            return None
        body = at + width + size_width
        size = int.from_bytes(head[width : width + size_width], "big") & ((1 << 7 * size_width) - 1)
        unknown = size == (1 << 7 * size_width) - 1
        return _Element(head[:width], at, body, None if unknown else body + size)

    def _hide(self, element: _Element) -> None:
        """Turn it into a Void element of the same length; the rest of a long header becomes content."""
        if element.end is not None:
            width = min(element.body - element.at - 1, 8)
            size = element.end - element.at - 1 - width
            self.view.patches.append((element.at, _VOID + (size | 1 << 7 * width).to_bytes(width, "big")))


def _vint_width(first: bytes) -> int:
    """How many bytes a number has that starts with this one; 0 for none."""
    return 9 - first[0].bit_length() if first and first[0] else 0
