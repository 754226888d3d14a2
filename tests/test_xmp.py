"""The XMP packet: any text comes back out of it, and a machine finds the label it looks for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svi_story.cut.extras import DC, IPTC, OWN, RDF, TRAINED, XMP, xmp_packet

ABOUT = ("Fog", "svi-story 0.1", "Stable Video Infinity 2.0", {"storyboard": "version: 1\n"})


def properties(packet: bytes) -> dict[str, str]:
    """The simple properties by qualified name, and the title."""
    (description,) = ET.fromstring(packet).iter(f"{{{RDF}}}Description")
    found = {child.tag: child.text or "" for child in description if not len(child)}
    (title,) = description.iterfind(f"{{{DC}}}title/{{{RDF}}}Alt/{{{RDF}}}li")
    assert title.attrib == {"{http://www.w3.org/XML/1998/namespace}lang": "x-default"}
    return {**found, "title": title.text or ""}


def test_a_packet_says_what_made_the_film() -> None:
    assert properties(xmp_packet(*ABOUT)) == {
        "title": "Fog",
        f"{{{XMP}}}CreatorTool": "svi-story 0.1",
        f"{{{IPTC}}}DigitalSourceType": TRAINED,
        f"{{{IPTC}}}AISystemUsed": "Stable Video Infinity 2.0",
        f"{{{OWN}}}storyboard": "version: 1\n",
    }


def test_the_label_is_the_term_of_the_iptc() -> None:
    assert TRAINED == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    packet = xmp_packet(*ABOUT).decode()
    assert 'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"' in packet
    assert f"<Iptc4xmpExt:DigitalSourceType>{TRAINED}</Iptc4xmpExt:DigitalSourceType>" in packet


def test_what_no_model_made_has_no_label() -> None:
    found = properties(xmp_packet("Fog", "svi-story", "", {}))
    assert set(found) == {"title", f"{{{XMP}}}CreatorTool"}


def test_a_packet_is_wrapped_as_readers_scan_for_it() -> None:
    lines = xmp_packet(*ABOUT).decode("utf-8").split("\n")
    assert lines[0] == '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    assert lines[-1] == '<?xpacket end="r"?>'


@pytest.mark.parametrize(
    "text",
    [
        "</svistory:storyboard><x/>",
        "]]>",
        "<!-- -->",
        "&amp; &#0; &lt;",
        "<?xpacket end='w'?>",
        "a\r\nb\rc\td ",
        "猫 \U0001f431",
    ],
)
def test_text_is_never_markup(text: str) -> None:
    found = properties(xmp_packet(text, text, text, {"storyboard": text}))
    assert found["title"] == found[f"{{{XMP}}}CreatorTool"] == found[f"{{{OWN}}}storyboard"] == text


@given(st.text())
def test_any_text_comes_back_but_for_what_xml_cannot_hold(text: str) -> None:
    found = properties(xmp_packet(text, "t", "", {}))["title"]
    assert found == re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "", text)


GOLDEN = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" \
xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" \
xmlns:svistory="urn:svi-story:film:1#" xmlns:x="adobe:ns:meta/" xmlns:xmp="http://ns.adobe.com/xap/1.0/">\
<rdf:RDF><rdf:Description rdf:about=""><dc:title><rdf:Alt><rdf:li xml:lang="x-default">\
Fog &amp; &lt;sea&gt; "x"&#13;
'</rdf:li></rdf:Alt></dc:title><xmp:CreatorTool>svi-story 0.1</xmp:CreatorTool>\
<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia\
</Iptc4xmpExt:DigitalSourceType>\
<Iptc4xmpExt:AISystemUsed>Stable Video Infinity 2.0</Iptc4xmpExt:AISystemUsed>\
<svistory:storyboard>version: 1
]]&gt;</svistory:storyboard><svistory:storyboardName>猫\U0001f408.yaml</svistory:storyboardName>\
<svistory:engine /></rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""
GOLDEN_WITHOUT = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:dc="http://purl.org/dc/elements/1.1/" \
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:x="adobe:ns:meta/" \
xmlns:xmp="http://ns.adobe.com/xap/1.0/"><rdf:RDF><rdf:Description rdf:about=""><dc:title><rdf:Alt>\
<rdf:li xml:lang="x-default" /></rdf:Alt></dc:title><xmp:CreatorTool>t</xmp:CreatorTool></rdf:Description>\
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


def test_the_bytes_are_those_of_every_film_so_far() -> None:
    """A film is compared with what was made before by its bytes."""
    facts = {"storyboard": "version: 1\n]]>\x07", "storyboardName": "猫\U0001f408.yaml", "engine": ""}
    about = ('Fog & <sea> "x"\r\n\'', "svi-story 0.1", "Stable Video Infinity 2.0", facts)
    assert xmp_packet(*about).decode() == GOLDEN
    assert xmp_packet("", "t", "", {}).decode() == GOLDEN_WITHOUT


def test_packets_of_several_threads_and_of_other_users_of_the_same_names() -> None:
    """The preview's thread makes packets while the film's does; a library may have other prefixes."""
    wanted = xmp_packet(*ABOUT)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with (
            patch.dict("xml.etree.ElementTree._namespace_map", {RDF: "other"}),
            ThreadPoolExecutor(2) as threads,
        ):
            made = list(threads.map(lambda _: {xmp_packet(*ABOUT) for _ in range(2000)}, range(2)))
    finally:
        sys.setswitchinterval(before)
    assert made == [{wanted}] * 2


def test_the_same_bytes_in_another_process() -> None:
    code = "import sys\nfrom svi_story.cut.extras import xmp_packet\n"
    code += f"sys.stdout.buffer.write(xmp_packet(*{ABOUT!r}))"
    root = str(Path(__file__).parent.parent)
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
        assert done.stdout == xmp_packet(*ABOUT)
