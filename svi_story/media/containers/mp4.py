"""MP4, M4A and MOV files, before libav parses them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from svi_story.media.audio_files import MAX_HEADER, MAX_PACKET, MAX_PACKETS, FileView

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

    from numpy.typing import NDArray

    from svi_story.media.audio_files import AudioSource

_MAX_FRAGMENTS = 2**20
_FRAGMENT_STEPS = 2**31
"""How often libav may look at one."""
_SAMPLES_PER_BYTE = 64
"""Old QuickTime files count a packet of MP3 as 1152 samples."""

FIRST_BOXES = (
    *(b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"udta", b"uuid", b"junk", b"pict"),
    *(b"ediw", b"prfl", b"styp", b"sidx", b"moof"),
)
_BOXES: dict[bytes, tuple[bytes, ...]] = {
    b"": (b"ftyp", b"moov", b"mdat", b"wide", b"moof", b"sidx"),
    b"moov": (b"mvhd", b"trak", b"mvex", b"udta", b"meta"),
    b"mvex": (b"trex",),
    b"trak": (b"tkhd", b"edts", b"mdia"),
    b"edts": (b"elst",),
    b"mdia": (b"mdhd", b"hdlr", b"minf"),
    b"minf": (b"dinf", b"stbl"),
    b"dinf": (b"dref",),
    b"stbl": (b"stsd", b"stts", b"stsc", b"stsz", b"stz2", b"stco", b"co64", b"stss"),
    b"moof": (b"traf",),
    b"traf": (b"tfhd", b"tfdt", b"trun"),
    b"udta": (b"meta", b"\xa9too"),
    b"meta": (b"hdlr", b"ilst"),
    b"ilst": (b"----", b"\xa9too"),
}
"""The boxes that libav needs to decode the sound. Of all tags, one says how much
silence an encoder put before it, and the name of the encoder may tell how to read it."""
_REPEATED = (
    *(b"mdat", b"wide", b"moof", b"sidx", b"trak", b"trex", b"traf", b"trun"),
    *(b"udta", b"meta", b"ilst", b"----"),
)
_SAME = {b"stz2": b"stsz", b"co64": b"stco"}
_TABLES = {
    b"stts": (8, 8),
    b"stsc": (8, 12),
    b"stsz": (12, 4),
    b"stco": (8, 4),
    b"co64": (8, 8),
    b"stss": (8, 4),
}
"""Bytes before a table, the last four of which count its entries, and bytes of an entry."""
_NOT_IN_DESCRIPTIONS = (
    *(b"moov", b"trak", b"stbl", b"stts", b"stsc", b"stsz", b"stz2", b"stco", b"co64", b"stss"),
    *(
        b"stps",
        b"ctts",
        b"sdtp",
        b"sgpd",
        b"sbgp",
        b"elst",
        b"moof",
        b"trun",
        b"tfhd",
        b"sidx",
        b"cmov",
        b"senc",
    ),
    *(b"saiz", b"saio", b"pssh", b"udta", b"meta", b"ilst", b"keys", b"uuid", b"iloc", b"iinf", b"iprp"),
    b"\x05vorbis",
)
_LARGEST_TAG = 4096


@dataclass
class _Track:
    """Where the boxes of a track are."""

    boxes: dict[bytes, tuple[int, int]] = field(default_factory=dict)


class Movie:
    """MP4, M4A and MOV: boxes that are not needed are renamed to `skip`."""

    def __init__(self, source: AudioSource, start: int) -> None:
        self._source = source
        self.view = FileView("mov", start)
        self._time_scale = 0
        self._track = 0
        self._default_sizes: dict[int, int] = {}
        self._packets = 0
        self._found = False
        self._fragments = self._references = self._runs = 0
        self._fragment_track, self._fragment_size = 0, 0
        self._walk(b"", start, source.size, _Track())

    def _boxes(self, at: int, stop: int) -> Iterator[tuple[bytes, int, int, int]]:
        """The boxes from one place to another: kind, where the box, its content and the next box start."""
        while at + 8 <= stop:
            self._source.count_part()
            head = self._source.read(at, 8)
            size, kind, body = int.from_bytes(head[:4], "big"), head[4:], at + 8
            if size == 1 and at + 16 <= stop:
                size, body = self._source.number(body, 8), at + 16
            elif size == 0:
                size = stop - at
            if size < body - at:
                return
            yield kind, at, body, at + size
            at += size

    def _walk(self, parent: bytes, at: int, stop: int, track: _Track) -> None:
        """Inspect the boxes in another one, and hide those that libav does not need."""
        seen: set[bytes] = set()
        for kind, box, body, end in self._boxes(at, stop):
            name = _SAME.get(kind, kind)
            repeated = name in seen and name not in _REPEATED
            seen.add(name)
            if kind == b"cmov":
                self._source.refuse("has a compressed header (cmov)")
            if kind == b"moov" and repeated:
                what = f"holds a second recording from byte {box} on, which most programs ignore"
                self._source.refuse(what, "join them with an audio editor")
            needed = kind in _BOXES[parent] and not repeated
            if needed and end > stop and kind in (b"moov", b"moof"):
                self._source.refuse_short(f"its part {kind.decode()} ends at byte {end}")
            if not needed or not self._is_needed(kind, body, min(end, stop), track):
                self.view.patches.append((box + 4, b"skip"))

    def _is_needed(self, kind: bytes, body: int, end: int, track: _Track) -> bool:
        """Inspect a box that libav may need; whether it does."""
        if kind == b"trak":
            return self._inspect_track(body, end)
        if kind in _BOXES:
            self._count_fragments(fragments=kind == b"moof")
            first = body
            if kind == b"meta":  # some programs put four bytes before its first box
                first = next((at for at in (body, body + 4) if self._source.read(at + 4, 4) == b"hdlr"), end)
            self._walk(kind, first, end, track)
        elif kind in _TABLES or kind == b"stz2":
            track.boxes[kind] = body, end
        elif kind in (b"----", b"\xa9too"):
            tag = self._source.read(body, min(end - body, _LARGEST_TAG))
            return end - body <= _LARGEST_TAG and (b"iTunSMPB" in tag or b"HandBrake" in tag)
        elif kind == b"trun":
            self._inspect_run(body, end)
        elif kind not in (b"mdat", b"wide"):
            self._inspect_fields(kind, body, end, track)
        return True

    def _inspect_fields(self, kind: bytes, body: int, end: int, track: _Track) -> None:
        """A box of a few fields."""
        if end - body > MAX_HEADER and kind != b"sidx":
            what = f"its part {kind.decode('latin-1')!r} declares {end - body} bytes"
            self._source.refuse(f"is damaged: {what}")
        track.boxes[kind] = body, end
        number, long = self._source.number, self._source.number(body, 1) == 1
        if kind == b"mvhd":
            self._time_scale = number(body + (20 if long else 12), 4)
        elif kind == b"tkhd":
            self._track = number(body + (20 if long else 12), 4)
        elif kind == b"trex":
            self._default_sizes[number(body + 4, 4)] = number(body + 16, 4)
        elif kind == b"sidx":
            self._count_fragments(references=number(body + (30 if long else 22), 2))
        elif kind == b"tfhd":
            self._read_fragment_header(body)
        elif kind == b"stsd" and any(
            name in self._source.read(body, end - body) for name in _NOT_IN_DESCRIPTIONS
        ):
            self._source.refuse("is damaged: the description of its sound holds other things")

    def _count_packets(self, packets: int) -> None:
        self._packets += packets
        if self._packets > MAX_PACKETS:
            self._source.refuse(f"declares {self._packets} packets, and {MAX_PACKETS} are allowed")

    # fragments

    def _count_fragments(self, *, fragments: int = 0, references: int = 0, runs: int = 0) -> None:
        """libav keeps data about each fragment in the file, and about each that an index mentions."""
        self._fragments += fragments
        self._references += references
        self._runs += runs
        known = self._fragments + self._references
        if known > _MAX_FRAGMENTS or self._runs * self._references > _FRAGMENT_STEPS:
            self._source.refuse("is damaged: it consists of too many fragments")

    def _read_fragment_header(self, body: int) -> None:
        flags, self._fragment_track = self._source.number(body + 1, 3), self._source.number(body + 4, 4)
        self._fragment_size = self._default_sizes.get(self._fragment_track, 0)
        if flags & 0x10:
            before = 8 * bool(flags & 0x1) + 4 * bool(flags & 0x2) + 4 * bool(flags & 0x8)
            self._fragment_size = self._source.number(body + 8 + before, 4)

    def _inspect_run(self, body: int, end: int) -> None:
        self._count_fragments(runs=1)
        if self._fragment_track != self._track:
            return
        flags, entries = self._source.number(body + 1, 3), self._source.number(body + 4, 4)
        first = body + 8 + 4 * bool(flags & 0x1) + 4 * bool(flags & 0x4)
        fields = [bool(flags & bit) for bit in (0x100, 0x200, 0x400, 0x800)]
        if first + 4 * sum(fields) * entries > end:
            self._source.refuse_short(f"a table (trun) declares {entries} entries")
        self._count_packets(entries)
        if fields[1]:
            self._check_table_of_sizes(self._numbers(first, entries, sum(fields))[:, int(fields[0])])
        else:
            self._check_equal_sizes(entries, max(self._fragment_size, 1))

    # tracks

    def _inspect_track(self, body: int, end: int) -> bool:
        """Inspect a track; whether it is the first audio track, the only one that libav needs."""
        media = [(inner, stop) for kind, _, inner, stop in self._boxes(body, end) if kind == b"mdia"][:1]
        inner = [at for place in media for kind, _, at, _ in self._boxes(*place) if kind == b"hdlr"]
        if self._found or not inner or self._source.read(inner[0] + 8, 4) != b"soun":
            self.view.others = True
            return False
        self._found = True
        track = _Track()
        self._walk(b"trak", body, end, track)
        self._check_index(track)
        return True

    def _check_index(self, track: _Track) -> None:
        times, runs = self._table(track, b"stts"), self._table(track, b"stsc")
        self._table(track, b"stss")
        chunks = len(self._table(track, b"stco")) + len(self._table(track, b"co64"))
        plain = len(times) == 1 and times[0, 1] == 1  # uncompressed sound: every sample has its time
        samples = self._check_samples(track, sized=not plain)
        if plain:
            pieces = self._chunks(track, runs, chunks)
        else:
            counts, durations = times[:, 0], times[:, 1]
            if (missing := samples - int(counts.sum())) > 0:
                counts = np.append(counts, missing)
                durations = np.append(durations, durations[-1:] if len(durations) else [0])
            pieces = _PacketGroups(counts, durations)
        self._count_packets(pieces.packets if plain else samples)
        self._check_edits(track, pieces)

    def _table(self, track: _Track, kind: bytes) -> NDArray[np.int64]:
        """A table of 32-bit numbers; empty where there is none."""
        head, width = _TABLES[kind]
        if kind not in track.boxes:
            return np.zeros((0, width // 4), np.int64)
        body, end = track.boxes[kind]
        entries = self._source.number(body + head - 4, 4)
        if body + head + entries * width > end:
            self._source.refuse_short(f"a table ({kind.decode()}) declares {entries} entries")
        if entries > MAX_PACKETS:
            self._source.refuse(f"declares {entries} packets, and {MAX_PACKETS} are allowed")
        return self._numbers(body + head, entries, width // 4)

    def _numbers(self, at: int, rows: int, columns: int) -> NDArray[np.int64]:
        data = self._source.read(at, 4 * rows * columns)
        return np.frombuffer(data, ">u4").reshape(rows, columns).astype(np.int64)

    def _check_samples(self, track: _Track, *, sized: bool) -> int:
        """The number of samples. Their sizes mean nothing where libav knows better."""
        number = self._source.number
        if b"stz2" in track.boxes:
            body, end = track.boxes[b"stz2"]
            bits, entries = number(body + 7, 1), number(body + 8, 4)
            if 8 * (end - body - 12) < bits * entries:
                self._source.refuse_short(f"a table (stz2) declares {entries} entries")
            return entries
        if b"stsz" not in track.boxes:
            return 0
        body, _ = track.boxes[b"stsz"]
        size, entries = number(body + 4, 4), number(body + 8, 4)
        if size == 0:
            self._check_table_of_sizes(self._table(track, b"stsz")[:, 0])
        elif sized:
            self._check_equal_sizes(entries, size)
        return entries

    def _check_equal_sizes(self, entries: int, size: int) -> None:
        if entries * size > self._source.size or size > MAX_PACKET:
            self._source.refuse_short(f"it declares {entries} packets of {size} bytes")

    def _check_table_of_sizes(self, sizes: NDArray[np.int64]) -> None:
        if sizes.sum() > self._source.size or sizes.max(initial=0) > MAX_PACKET:
            self._source.refuse_short(f"it declares {sizes.sum()} bytes of packets")

    def _chunks(self, track: _Track, runs: NDArray[np.int64], chunks: int) -> _PacketGroups:
        """Uncompressed sound: libav splits every chunk into packets of about a thousand samples."""
        body, _ = track.boxes.get(b"stsd", (0, 0))
        version, per_packet = self._source.number(body + 24, 2), self._source.number(body + 44, 4)
        length = per_packet if version == 1 and per_packet >= 160 else 512
        repeats = np.clip(np.diff(np.append(runs[:, 0], chunks + 1)), 0, chunks)
        declared = float((repeats * runs[:, 1].astype(float)).sum())
        if repeats.sum() > chunks or declared > _SAMPLES_PER_BYTE * self._source.size:
            self._source.refuse_short(f"its tables declare {declared:.0f} samples")
        samples = np.repeat(runs[:, 1], repeats)
        return _PacketGroups(-(-samples // length), np.full(len(samples), length), samples)

    def _check_edits(self, track: _Track, pieces: _PacketGroups) -> None:
        """Each edit adds the packets that it plays, and those of the second before, to libav's index."""
        if b"elst" not in track.boxes:
            return
        body, end = track.boxes[b"elst"]
        scale = self._time_scale
        if b"mdhd" in track.boxes:
            at, _ = track.boxes[b"mdhd"]
            scale = self._source.number(at + (20 if self._source.number(at, 1) == 1 else 12), 4)
        width = 8 if self._source.number(body, 1) == 1 else 4
        began = False
        for at in range(body + 8, end - 2 * width - 3, 2 * width + 4):
            duration = self._source.number(at, width)
            start = int.from_bytes(self._source.read(at + width, width), "big", signed=True)
            began |= start != -1  # before that, there is silence
            if began:
                stop = start + duration * scale // max(self._time_scale, 1)
                self._count_packets(pieces.between(start - scale, stop) if duration else pieces.packets)


class _PacketGroups:
    """A track's packets in groups of equal duration, to count those that an edit plays."""

    def __init__(
        self,
        counts: NDArray[np.int64],
        durations: NDArray[np.int64],
        lengths: NDArray[np.int64] | None = None,
    ) -> None:
        times = counts * durations.astype(float) if lengths is None else lengths.astype(float)
        self._odd = bool((times >= 2**32).any() or (durations >= 2**31).any() or times.sum() >= 2**62)
        """libav corrects such times in its own way."""
        self._counts, self._durations = counts, durations
        self._starts = np.cumsum(np.append([0], counts * durations if lengths is None else lengths))
        self._firsts = np.cumsum(np.append([0], counts))
        self.packets = int(self._firsts[-1])

    def between(self, start: int, stop: int) -> int:
        """At most how many packets are between two times."""
        if self._odd or not len(self._counts):
            return self.packets
        return max(self._until(stop, 1) - self._until(start, 0), 0) + 2

    def _until(self, time: int, also: int) -> int:
        """How many packets start before a time, or `also` at it."""
        side: Literal["left", "right"] = "right" if also else "left"
        piece = int(np.searchsorted(self._starts[:-1], max(min(time, 2**62), -1), side)) - 1
        if piece < 0:
            return 0
        duration, count = int(self._durations[piece]), int(self._counts[piece])
        inside = (time - int(self._starts[piece])) // duration if duration else also * count
        return int(self._firsts[piece]) + min(inside + also, count)
