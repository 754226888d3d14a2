"""What a film file carries besides pictures: metadata, chapters, captions, XMP. `stop` is exclusive."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from svi_story.plan.keys import Json


@dataclass(frozen=True)
class Chapter:
    """A part of the film that a player can jump to."""

    title: str
    start: int
    stop: int


@dataclass(frozen=True)
class Cue:
    """Words that are to be read while frames [start, stop) are shown."""

    text: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a cue needs 0 <= start < stop, got [{self.start}, {self.stop})")


@dataclass(frozen=True)
class Extras:
    """All that is put into a film's file beside its pictures; nothing by default."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    """What mp4 knows: title, artist, comment, date, ..."""
    chapters: tuple[Chapter, ...] = ()
    captions: tuple[Cue, ...] = ()
    """A track of text of its own."""
    captions_on: bool = True
    """Whether players show that track unasked: not where the same words are in the picture."""
    audio: Path | None = None
    """A file of AAC packets whose decoded sample 0 is heard with film frame 0."""
    xmp: bytes = b""
    """An XMP packet."""

    def identity(self) -> dict[str, Json]:
        """All that decides the film's bytes, besides its pieces and the content of `audio`."""
        return {
            "metadata": {**self.metadata},
            "chapters": [[each.title, each.start, each.stop] for each in self.chapters],
            "captions": [[each.text, each.start, each.stop] for each in self.captions],
            "captions_on": self.captions_on,
            "xmp": self.xmp.decode("utf-8"),
        }


def in_turn(cues: Iterable[Cue]) -> list[Cue]:
    """Cues as a reader meets them: by start, none blank, each over when the next begins."""
    ordered = sorted((cue for cue in cues if cue.text.strip()), key=lambda cue: (cue.start, cue.stop))
    return [
        Cue(cue.text, cue.start, min(cue.stop, after.start) if after else cue.stop)
        for cue, after in zip_longest(ordered, ordered[1:])
        if after is None or cue.start < after.start
    ]


RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
XMP = "http://ns.adobe.com/xap/1.0/"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
OWN = "urn:svi-story:film:1#"
META = "adobe:ns:meta/"

_PREFIXES = {"Iptc4xmpExt": IPTC, "dc": DC, "rdf": RDF, "svistory": OWN, "x": META, "xmp": XMP}
"""In the order in which a packet declares them."""

TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for media that a trained model made: the label that machines look for."""

# U+FEFF and an id that readers scan files for (XMP specification, part 1, 7.3.2)
_BEGIN = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_END = '\n<?xpacket end="r"?>'

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, however it is escaped."""


@dataclass(frozen=True)
class XmpFields:
    """What there is to say about a film. Nothing of it depends on when it is said."""

    title: str
    tool: str
    """Name and version."""
    system: str
    """The trained model that made the pictures; empty where none did."""
    facts: Mapping[str, str]
    """More, in a namespace of our own; the names are XML names."""


def xmp_packet(about: XmpFields) -> bytes:
    """An XMP packet in UTF-8: same values, same bytes. Text is escaped; what XML cannot hold is left out.

    Written as text: `ElementTree` takes prefixes from one table for the whole process, and several threads
    make packets at once.
    """
    title = _element("rdf:li", about.title, ' xml:lang="x-default"')
    properties = [f"<dc:title><rdf:Alt>{title}</rdf:Alt></dc:title>", _element("xmp:CreatorTool", about.tool)]
    if about.system:
        properties.append(_element("Iptc4xmpExt:DigitalSourceType", TRAINED))
        properties.append(_element("Iptc4xmpExt:AISystemUsed", about.system))
    properties += [_element(f"svistory:{name}", value) for name, value in about.facts.items()]
    unused = {*(() if about.system else ("Iptc4xmpExt",)), *(() if about.facts else ("svistory",))}
    spaces = "".join(f' xmlns:{prefix}="{uri}"' for prefix, uri in _PREFIXES.items() if prefix not in unused)
    description = f'<rdf:Description rdf:about="">{"".join(properties)}</rdf:Description>'
    text = f"<x:xmpmeta{spaces}><rdf:RDF>{description}</rdf:RDF></x:xmpmeta>"
    return (_BEGIN + text + _END).encode()


def _element(name: str, value: str, attributes: str = "") -> str:
    text = _NOT_XML.sub("", value)
    if not text:
        return f"<{name}{attributes} />"
    escaped = escape(text, {"\r": "&#13;"})  # every reader would take a carriage return for a line feed
    return f"<{name}{attributes}>{escaped}</{name}>"


def is_own_packet(packet: bytes) -> bool:
    """Whether an XMP packet is one that svi-story wrote."""
    return OWN.encode() in packet
