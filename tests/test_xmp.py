"""The XMP packet: any text comes back out of it, and a machine finds the label it looks for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svi_story.cut.xmp import DC, IPTC, OWN, RDF, TRAINED, XMP, About, xmp_packet

ABOUT = About("Fog", "svi-story 0.1", "Stable Video Infinity 2.0", {"storyboard": "version: 1\n"})


def properties(packet: bytes) -> dict[str, str]:
    """The simple properties by qualified name, and the title."""
    (description,) = ET.fromstring(packet).iter(f"{{{RDF}}}Description")
    found = {child.tag: child.text or "" for child in description if not len(child)}
    (title,) = description.iterfind(f"{{{DC}}}title/{{{RDF}}}Alt/{{{RDF}}}li")
    assert title.attrib == {"{http://www.w3.org/XML/1998/namespace}lang": "x-default"}
    return {**found, "title": title.text or ""}


def test_a_packet_says_what_made_the_film() -> None:
    assert properties(xmp_packet(ABOUT)) == {
        "title": "Fog",
        f"{{{XMP}}}CreatorTool": "svi-story 0.1",
        f"{{{IPTC}}}DigitalSourceType": TRAINED,
        f"{{{IPTC}}}AISystemUsed": "Stable Video Infinity 2.0",
        f"{{{OWN}}}storyboard": "version: 1\n",
    }


def test_the_label_is_the_term_of_the_iptc() -> None:
    assert TRAINED == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    packet = xmp_packet(ABOUT).decode()
    assert 'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"' in packet
    assert f"<Iptc4xmpExt:DigitalSourceType>{TRAINED}</Iptc4xmpExt:DigitalSourceType>" in packet


def test_what_no_model_made_has_no_label() -> None:
    found = properties(xmp_packet(About("Fog", "svi-story", "", {})))
    assert set(found) == {"title", f"{{{XMP}}}CreatorTool"}


def test_a_packet_is_wrapped_as_readers_scan_for_it() -> None:
    lines = xmp_packet(ABOUT).decode("utf-8").split("\n")
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
    found = properties(xmp_packet(About(text, text, text, {"storyboard": text})))
    assert found["title"] == found[f"{{{XMP}}}CreatorTool"] == found[f"{{{OWN}}}storyboard"] == text


@given(st.text())
def test_any_text_comes_back_but_for_what_xml_cannot_hold(text: str) -> None:
    found = properties(xmp_packet(About(text, "t", "", {})))["title"]
    assert found == re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "", text)


def test_the_same_bytes_in_another_process() -> None:
    code = "import sys\nfrom svi_story.cut.xmp import About, xmp_packet\n"
    code += f"sys.stdout.buffer.write(xmp_packet({ABOUT!r}))"
    root = str(Path(__file__).parent.parent)
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
        assert done.stdout == xmp_packet(ABOUT)
