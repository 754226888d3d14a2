"""What a film tells machines about itself: an XMP packet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Mapping

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
XMP = "http://ns.adobe.com/xap/1.0/"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
OWN = "urn:svi-story:film:1#"
META = "adobe:ns:meta/"
XML = "http://www.w3.org/XML/1998/namespace"

_PREFIXES = {"rdf": RDF, "dc": DC, "xmp": XMP, "Iptc4xmpExt": IPTC, "svistory": OWN, "x": META}

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
    """An XMP packet in UTF-8: same values, same bytes. Text is escaped; what XML cannot hold is left out."""
    for prefix, uri in _PREFIXES.items():
        ET.register_namespace(prefix, uri)
    meta = ET.Element(f"{{{META}}}xmpmeta")
    description = ET.SubElement(ET.SubElement(meta, f"{{{RDF}}}RDF"), f"{{{RDF}}}Description")
    description.set(f"{{{RDF}}}about", "")
    title = ET.SubElement(ET.SubElement(description, f"{{{DC}}}title"), f"{{{RDF}}}Alt")
    _add(title, f"{{{RDF}}}li", about.title).set(f"{{{XML}}}lang", "x-default")
    _add(description, f"{{{XMP}}}CreatorTool", about.tool)
    if about.system:
        _add(description, f"{{{IPTC}}}DigitalSourceType", TRAINED)
        _add(description, f"{{{IPTC}}}AISystemUsed", about.system)
    for name, value in about.facts.items():
        _add(description, f"{{{OWN}}}{name}", value)
    # ElementTree leaves a carriage return in text as it is, and every reader would take it for a line feed
    text = ET.tostring(meta, encoding="unicode").replace("\r", "&#13;")
    return (_BEGIN + text + _END).encode()


def is_own_packet(packet: bytes) -> bool:
    """Whether an XMP packet is one that svi-story wrote."""
    return OWN.encode() in packet


def _add(parent: ET.Element, name: str, value: str) -> ET.Element:
    element = ET.SubElement(parent, name)
    element.text = _NOT_XML.sub("", value)
    return element
