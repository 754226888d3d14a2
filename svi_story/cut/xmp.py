"""What a film tells machines about itself: an XMP packet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping

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
class About:
    """What there is to say about a film. Nothing of it depends on when it is said."""

    title: str
    tool: str
    """Name and version."""
    system: str
    """The trained model that made the pictures; empty where none did."""
    facts: Mapping[str, str]
    """More, in a namespace of our own; the names are XML names."""


def xmp_packet(about: About) -> bytes:
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
