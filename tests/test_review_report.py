"""The page: whole, harmless whatever people write, and readable by machines."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from PIL import Image
from review_films import CLIP, at, job_of, level, pan, plant, put, review, scene_in

from svi_story.review.report import Clock, Playback, page_of, write_page
from svi_story.review.summary import summarize
from svi_story.review.thresholds import TABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    Write = Callable[..., Path]

HOSTILE = (
    "</title></style></script><script>alert(1)</script> \"><img src=x onerror='alert(2)'> "
    "{{ 7*7 }} {% raw %} "
    "<!-- \u202e\u2066 & &amp; ]]> https://evil.example/x.png"
)
VOID = {"meta", "img", "input", "link", "br", "hr"}


@pytest.fixture
def board_of(write_board: Write, tmp_path: Path) -> Write:
    """A board whose anchor is the films' first view."""
    return lambda **fields: write_board(**{"reference": scene_in(tmp_path), **fields})


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether all is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def page_for(board: Path, film: str | None = None, note: str = "") -> str:
    found = review(plant(board, pan(810, (64, 64), 0.0001)))
    return page_of(found, Playback(Path(film) if film else None, note), Path("renders/board.review.html"))


def test_the_page_is_well_formed_and_says_what_was_made(board_of: Write) -> None:
    page = Page(page_for(board_of(seed=40), "renders/board.mp4"))
    assert page.open == []
    for clip in (1, 2, 3):
        assert f"Clip {clip} is drifting through the fog." in page.text
    assert "seed 40" in page.text
    assert "time spent 14.0 s 12.5 s sampling, 1.5 s decoding" in page.text
    assert [each["id"] for each in page.all("article")] == ["clip-1", "clip-2", "clip-3"]
    assert page.all("video")[0]["src"] == "./board.mp4"


def test_nothing_on_the_page_leads_outside(board_of: Write) -> None:
    page = Page(page_for(board_of(), "renders/board.mp4"))
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "poster", "data", "srcset", "xlink:href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:image/webp;base64,", "./board.mp4")), (tag, target)
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
    assert not page.all("link")
    assert not page.all("base")
    policy = next(each["content"] for each in page.all("meta") if "http-equiv" in each)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy


@pytest.mark.parametrize("tag", ["script", "img", "title"])
def test_what_people_write_is_text(board_of: Write, tag: str) -> None:
    plain = page_for(board_of())
    clips = [{"prompt": HOSTILE, "caption": HOSTILE, "id": "one"}, {"prompt": "x", "id": "two"}]
    clips.append({"prompt": f"{HOSTILE} again", "id": "three"})
    hostile = page_for(board_of(title=HOSTILE, clips=clips))
    assert len(Page(hostile).all(tag)) == len(Page(plain).all(tag))
    assert Page(hostile).open == []
    assert "alert(1)" in Page(hostile).text
    assert "{{ 7*7 }}" in Page(hostile).text


def test_every_picture_has_words(board_of: Write) -> None:
    page = Page(page_for(board_of()))
    images = page.all("img")
    assert len(images) >= 12
    assert all(image["alt"] and image["width"] and image["height"] for image in images)
    assert all(each.get("aria-label") for each in page.all("svg") if each.get("role"))
    labelled = {each["for"] for each in page.all("label")}
    assert {each["id"] for each in page.all("input")} <= labelled


def test_the_film_is_found_under_any_name(board_of: Write, tmp_path: Path) -> None:
    page = Page(page_for(board_of(), "renders/a: b#c%d?é\"'.mp4"))
    assert page.all("video")[0]["src"] == "./a%3A%20b%23c%25d%3F%C3%A9%22%27.mp4"
    moved = page_of(
        review(job_of(board_of())), Playback(tmp_path / "films/x.mp4", ""), tmp_path / "pages/x.html"
    )
    assert Page(moved).all("video")[0]["src"] == "./../films/x.mp4"


def test_without_a_film_the_page_still_comes(board_of: Write) -> None:
    page = Page(page_for(board_of(), None, "There is no film yet."))
    assert not page.all("video")
    assert "There is no film yet." in page.text


def test_warnings_come_with_place_limit_and_remedy(board_of: Write) -> None:
    board = board_of()
    found = review(plant(board, at(3, level(0))(pan(60, (64, 64), 0.001))))
    page = Page(page_of(found, Playback(None, ""), Path("renders/board.review.html")))
    assert "1 warning" in page.text
    assert "Black frames" in page.text
    assert "clip-01 0:00.20" in page.text
    assert "svi-story render board.yaml --force clip-01" in page.text
    assert found.findings[0].remedies[0] in page.text
    assert {"href": "#clip-1", "data-t": "0.217"}.items() <= next(
        each for each in page.all("a") if "data-warning" in each
    ).items()


def test_a_half_made_film_says_what_is_missing(board_of: Write) -> None:
    job = job_of(board_of())
    put(job.segments[0], pan(13, (64, 64), 0.001))
    page = Page(page_of(review(job), Playback(None, ""), Path("renders/board.review.html")))
    assert "Not rendered yet: 2 of 3 clips" in page.text
    assert page.text.count("Not rendered yet.") == 2
    assert "No warnings so far" in page.text


def test_one_clip_makes_a_page(board_of: Write) -> None:
    page = Page(page_for(board_of(clips=[{"prompt": "It is moving.", "frames": 5}])))
    assert page.open == []
    assert len(page.all("article")) == 1


@pytest.mark.slow
def test_two_hundred_clips_make_a_page_of_moderate_size(board_of: Write) -> None:
    clips = [{"prompt": f"Clip {n} is moving on through the fog.", "frames": 5} for n in range(200)]
    html = page_for(board_of(clips=clips, resolution="64x64"))
    assert len(Page(html).all("article")) == 200
    assert len(html) < 15e6 / 4  # small pictures: those of a real film are about four times as heavy


def test_the_data_island_holds_finite_numbers_only(board_of: Write) -> None:
    html = page_for(board_of(title="</script><!--"))
    island = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert island is not None

    def refuse(name: str) -> None:
        raise AssertionError(name)

    data = json.loads(island[1], parse_constant=refuse)
    assert [clip["start"] for clip in data["clips"]] == [0, 13 / 15, 25 / 15]
    assert {"drift", "sharpness", "motion"} == set(data["plots"])


def test_the_page_is_replaced_whole(board_of: Write, tmp_path: Path) -> None:
    page = tmp_path / "board.review.html"
    page.write_text("old")
    found = review(plant(board_of(), pan(60, (64, 64))))
    write_page(found, Playback(None, ""), page)
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".tmp")]


def test_json_holds_clips_joins_and_warnings(board_of: Write) -> None:
    found = review(plant(board_of(), at(3, level(0))(pan(60, (64, 64), 0.001))))
    answer: dict[str, Any] = json.loads(summarize(found).model_dump_json())
    assert [clip["id"] for clip in answer["clips"]] == ["clip-01", "clip-02", "clip-03"]
    assert [(join["frame"], join["kind"]) for join in answer["joins"]] == [(13, "continue"), (25, "continue")]
    assert [(each["kind"], each["frame"]) for each in answer["warnings"]] == [("black", 3)]
    assert answer["clips"][0]["measures"]["drift"]["median"] >= 0
    assert answer["clips"][0]["sampling_seconds"] == 12.5


def test_json_has_the_measures_of_every_run_and_no_empty_fields_of_files(board_of: Write) -> None:
    answer = json.loads(summarize(review(plant(board_of(), pan(37, (64, 64), 0.001)))).model_dump_json())
    assert (answer["verdict"], answer["judged_share"], answer["film"], answer["file"]) == (
        *("cannot tell", 0),
        *(None, None),
    )
    (run,) = answer["runs"]
    assert (run["clips"], run["start"], run["stop"]) == (["clip-01", "clip-02", "clip-03"], 0, 2.467)


FORGED = (1e308, 10**400, -5, float("nan"), float("inf"), "12", True, None, [1])


@pytest.mark.parametrize("noted", FORGED, ids=lambda each: repr(each)[:12])
def test_what_an_entry_claims_is_taken_with_care(board_of: Write, noted: object) -> None:
    found = review(plant(board_of(), pan(37, (64, 64), 0.001)))
    for clip in found.clips:
        for entry in clip.entries:
            assert entry is not None
            odd = {"torch": "x" * 100_000, "\ud800": noted}
            notes = {"sampling_seconds": noted, "decoding_seconds": noted, "versions": odd}
            cast("dict[str, Any]", entry.manifest)["notes"] = notes
    page = page_of(found, Playback(None, ""), Path("renders/board.review.html"))
    assert Page(page).open == []
    assert "time spent" not in Page(page).text
    assert len(page) < 200_000
    answer = json.loads(summarize(found).model_dump_json())
    assert answer["clips"][0]["sampling_seconds"] is None
    assert answer["clips"][0]["decoding_seconds"] is None


def test_times_are_rounded_not_cut_off() -> None:
    clock = Clock(Fraction(15))
    assert [clock(frame) for frame in (0, 1, 2, 208, 899, 900)] == [
        "0:00.00",
        "0:00.07",
        "0:00.13",
        "0:13.87",
        "0:59.93",
        "1:00.00",
    ]


def test_joins_that_were_not_measured_are_hollow_and_gaps_are_shaded(board_of: Write) -> None:
    job = job_of(board_of(clips=[{"prompt": f"It is moving, {n}.", "frames": 13} for n in range(4)]))
    film = pan(60, (64, 64), 0.01)
    put(job.segments[0], film[:13])
    put(job.segments[1], film[13:25])
    put(job.segments[3], film[37:49])
    page = Page(page_of(review(job), Playback(None, ""), Path("renders/board.review.html")))
    marks = [each.get("class") for each in page.all("circle")]
    assert marks == [None, "hollow unknown", "hollow unknown"]
    gaps = [each for each in page.all("rect") if each.get("class") == "gap"]
    assert [each["x"] for each in gaps] == ["51.02%"] * 4
    assert [each["width"] for each in gaps] == ["24.49%"] * 4
    assert all(each["role"] == "button" for each in page.all("g"))


def test_an_anchor_of_one_colour_is_said_to_be_no_judge(board_of: Write, tmp_path: Path) -> None:
    board = board_of()
    Image.new("RGB", (64, 64)).save(tmp_path / "scene.png")
    found = review(plant(board, [level(0)(each) for each in pan(37, (64, 64))]))
    still = [each for each in found.findings if each.kind != "frozen"]
    page = Page(
        page_of(replace(found, findings=tuple(still)), Playback(None, ""), Path("renders/board.review.html"))
    )
    assert "Nothing wrong" not in page.text
    assert "cannot be judged" in page.text
    assert summarize(found).cannot_judge == ("clip-01", "clip-02", "clip-03")


def test_the_player_shows_a_picture_before_it_plays(board_of: Write) -> None:
    video = Page(page_for(board_of(), "renders/board.mp4")).all("video")[0]
    assert (video["poster"] or "").startswith("data:image/webp;base64,")
    assert (video["width"], video["height"]) == ("64", "64")


def test_every_limit_is_documented() -> None:
    text = (Path(__file__).parent.parent / "docs/review.md").read_text("utf-8")
    for name, limit in TABLE.items():
        assert f"| `{name}` | {limit.value:g} {limit.unit} |" in text, name
    assert CLIP
