"""What changed since the last film, in words a person would use."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svi_story.plan.diff import ClipDescription, FilmDescription, SegmentDescription, what_changed

if TYPE_CHECKING:
    from svi_story.plan.keys import Json

CUT: dict[str, Any] = {
    "fps": "16",
    "codec": "h264",
    "crf": 18,
    "captions": "burn",
    "fade_in": 0,
    "title_card": {"text": "Fog", "frames": 20},
    "end_card": None,
    "music": {"path": "a.wav", "sha256": "1", "volume": 1.0},
}
NEUTRAL = "; the film is assembled again, no frame is rendered"


def film(*clips: tuple[str, dict[str, Any]], **about: Any) -> FilmDescription:
    """A chain of one-segment clips, keyed as the real ones: by their inputs and their parent's key.

    `cut` among a clip's inputs starts a chain, `fade` and `dip` too; `finish` is none of its inputs.
    """
    made: list[ClipDescription] = []
    parent: str | None = None
    for clip_id, written in clips:
        inputs = {"clip": clip_id, **written}
        fade, dip, finish = inputs.pop("fade", 0), inputs.pop("dip", 0), inputs.pop("finish", {})
        parent = None if inputs.pop("cut", False) or fade or dip else parent
        full = {"engine": "animatic", "revision": 1, "inputs": inputs, "parent": parent}
        parent = f"{sorted(inputs.items())} after {parent}"
        made.append(
            ClipDescription(clip_id, inputs["prompt"], (SegmentDescription(parent, full),), fade, dip, finish)
        )
    return FilmDescription(**{"title": "Fog", "digest": "d", "cut": CUT, "clips": tuple(made), **about})


def chain(names: str = "abcdef", **changed: dict[str, Any]) -> FilmDescription:
    """Clips with ids of their own."""
    return film(*((name, {"prompt": name, "seed": 0, **changed.get(name, {})}) for name in names))


def numbered(prompts: str, **inputs: Any) -> FilmDescription:
    """Clips with default ids."""
    return film(*((f"clip-{n:02d}", {"prompt": p, **inputs}) for n, p in enumerate(prompts, 1)))


def test_nothing_changed() -> None:
    assert what_changed(chain(), chain()) == ()


def test_one_change_and_its_followers() -> None:
    assert what_changed(chain(), chain(c={"prompt": "new"})) == (
        "clip 3 (c): prompt changed from c to new; clips 4-6 follow it",
    )


def test_two_changes_share_no_followers() -> None:
    assert what_changed(chain(), chain(a={"seed": 1}, e={"prompt": "x", "frames": 5})) == (
        "clip 1 (a): seed changed from 0 to 1; clips 2-4 follow it",
        "clip 5 (e): prompt changed from e to x, length changed; clip 6 follows it",
    )


def test_equal_reasons_are_told_once() -> None:
    changed: dict[str, Any] = {name: {"prompt": name.upper()} for name in "abd"}
    assert what_changed(chain(), chain(**changed)) == (
        "clips 1-2: prompt changed (clip 1: from a to A); clip 3 follows them",
        "clip 4 (d): prompt changed from d to D; clips 5-6 follow it",
    )


def test_new_and_removed_clips() -> None:
    assert what_changed(chain("abcd"), chain()) == ("clips 5-6: new",)
    assert what_changed(chain(), chain("abcde")) == ("clip 6 (f): removed",)
    assert what_changed(chain(), chain("abcd")) == ("clips 5-6: removed",)
    assert what_changed(chain("ab"), chain("axb")) == ("clip 2 (x): new; clip 3 follows it",)


def test_another_clip_in_the_place_of_one() -> None:
    assert what_changed(chain("abc"), chain("axc")) == (
        "clip 2 (x): new",
        "clip 2 (b): removed; clip 3 follows it",
    )


def test_another_engine() -> None:
    segment = SegmentDescription(
        "k", {"engine": "svi", "inputs": {"prompt": "a", "steps": 50}, "parent": None}
    )
    other = replace(chain("a"), clips=(ClipDescription("a", "a", (segment,)),))
    assert what_changed(chain("a"), other) == ("clip 1 (a): engine changed from animatic to svi",)


def test_clips_after_a_removed_one_follow_it() -> None:
    assert what_changed(chain("abcd"), chain("abd")) == ("clip 3 (c): removed; clip 3 follows it",)
    assert what_changed(chain("abcd"), chain("bcd")) == (
        "clip 1 (a): removed",
        "clip 1 (b): starts a chain now; clips 2-3 follow it",
    )


def test_default_ids_move_when_a_clip_is_removed() -> None:
    assert what_changed(numbered("pqrstu"), numbered("pqrtu")) == (
        "clip 4 (clip-04): removed",
        "clips 4-5 (were clip-05 to clip-06): id changed",
    )
    assert what_changed(numbered("pqrst"), numbered("pqrt")) == (
        "clip 4 (clip-04): removed",
        "clip 4 (clip-04, was clip-05): id changed",
    )


def test_default_ids_move_when_a_clip_is_inserted() -> None:
    assert what_changed(numbered("pqr"), numbered("pxqr")) == (
        "clip 2 (clip-02): new",
        "clips 3-4 (were clip-02 to clip-03): id changed",
    )


def test_clips_with_the_same_prompt() -> None:
    assert what_changed(numbered("xax"), numbered("ax")) == (
        "clip 1 (clip-01): removed",
        "clip 1 (clip-01, was clip-02): starts a chain now, id changed",
        "clip 2 (clip-02, was clip-03): id changed",
    )


def test_one_removed_and_another_edited() -> None:
    assert what_changed(numbered("pqrst"), numbered("qrST"))[-1] == (
        "clips 3-4 (were clip-04 to clip-05): id changed, prompt changed (clip 3: from s to S)"
    )


def test_every_prompt_edited() -> None:
    assert what_changed(numbered("pqr"), numbered("PQR")) == (
        "clips 1-3: prompt changed (clip 1: from p to P)",
    )


def test_a_written_id_pairs_whatever_its_prompt() -> None:
    new = film(("clip-01", {"prompt": "p"}), ("clip-03", {"prompt": "other"}))
    assert what_changed(numbered("pqr"), new) == (
        "clip 2 (clip-02): removed",
        "clip 2 (clip-03): prompt changed from r to other",
    )


def test_an_id_that_was_given_later() -> None:
    new = film(("clip-01", {"prompt": "p"}), ("window", {"prompt": "q"}), ("clip-03", {"prompt": "r"}))
    assert what_changed(numbered("pqr"), new) == (
        "clip 2 (window, was clip-02): id changed; clip 3 follows it",
    )


def test_another_order() -> None:
    assert what_changed(chain("abcd"), chain("acbd")) == ("clips 2-4: order changed",)
    cuts = {name: {"cut": True} for name in "abc"}
    assert what_changed(chain("abc", **cuts), chain("acb", **cuts)) == (
        f"the order of the clips changed{NEUTRAL}",
    )
    assert what_changed(numbered("pqr"), numbered("prq")) == (
        "clip 2 (clip-02, was clip-03): id changed",
        "clip 3 (clip-03, was clip-02): id changed",
        "the order of the clips changed",
    )


def test_what_goes_along_with_a_change_is_not_told() -> None:
    was = {"width": 64, "height": 64, "anchor": "x", "overlap": 1, "first_frame": -1}
    bigger = {**was, "width": 128, "height": 96, "anchor": "y"}
    assert what_changed(numbered("pq", **was), numbered("pq", **bigger)) == (
        "clips 1-2: resolution changed from 64x64 to 128x96",
    )
    assert what_changed(numbered("p", **was), numbered("p", **{**was, "anchor": "y"})) == (
        "clip 1 (clip-01): reference image changed",
    )
    longer = {**was, "overlap": 5, "first_frame": -5}
    assert what_changed(numbered("p", **was), numbered("p", **longer)) == (
        "clip 1 (clip-01): overlap changed from 1 to 5",
    )
    assert what_changed(numbered("p", **was), numbered("P", **longer)) == (
        "clip 1 (clip-01): prompt changed from p to P",
    )
    assert what_changed(chain("abc"), chain("abc", b={"cut": True})) == (
        "clip 2 (b): starts a chain now; clip 3 follows it",
    )


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"title": "Rain"}, "title changed from Fog to Rain"),
        ({"cut": {**CUT, "crf": 30}}, "crf changed from 18 to 30"),
        ({"cut": {**CUT, "fps": "24"}}, "fps changed from 16 to 24"),
        ({"cut": {**CUT, "codec": "av1", "crf": 30}}, "codec changed from h264 to av1"),
        ({"cut": {**CUT, "captions": "both"}}, "captions changed from burn to both"),
        ({"cut": {**CUT, "fade_in": 8}}, "fade from black added"),
        (
            {"cut": {**CUT, "title_card": {"text": "Rain", "frames": 20}}},
            "title card changed from Fog to Rain",
        ),
        ({"cut": {**CUT, "title_card": None}}, "title card removed"),
        ({"cut": {**CUT, "end_card": {"text": "End", "frames": 20}}}, "end card added"),
        ({"cut": {**CUT, "music": {"path": "a.wav", "sha256": "2", "volume": 1.0}}}, "music changed"),
        ({"cut": {**CUT, "music": None}}, "music removed"),
        ({"digest": "e"}, "a setting that affects no frame of this engine, or a comment, changed"),
    ],
)
def test_what_touches_no_frame(about: dict[str, Any], told: str) -> None:
    assert what_changed(chain(), replace(chain(), **about)) == (f"{told}{NEUTRAL}",)


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ({"fade": 8}, {"fade": 15}, "the fade into clip 2 (b) changed from 8 to 15 frames"),
        ({"fade": 8}, {"cut": True}, "the fade into clip 2 (b) became a cut"),
        ({"cut": True}, {"fade": 8}, "the cut into clip 2 (b) became a fade of 8 frames"),
        ({"fade": 8}, {"dip": 6}, "the fade into clip 2 (b) became a dip of 6 frames"),
        ({"dip": 8}, {"dip": 6}, "the dip into clip 2 (b) changed from 8 to 6 frames"),
    ],
)
def test_fades(was: dict[str, Any], now: dict[str, Any], told: str) -> None:
    assert what_changed(chain(b=was), chain(b=now)) == (told + NEUTRAL,)


def test_the_first_clip_has_no_fade_to_lose() -> None:
    assert what_changed(chain("ab", b={"fade": 8}), chain("b")) == ("clip 1 (a): removed",)


VOICE = {"path": "one.wav", "sha256": "1"}


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ({"caption": "Rain"}, {"caption": "Fog"}, "caption of clip 2 (b) changed from Rain to Fog"),
        ({"caption": ""}, {"caption": "Fog"}, "caption of clip 2 (b) added"),
        ({"caption": "Rain"}, {"caption": ""}, "caption of clip 2 (b) removed"),
        (
            {"caption": "Rain"},
            {"caption": "Rain", "caption_frames": [3, 15]},
            "the caption of clip 2 (b) is shown in frames 3 to 15 instead of in all frames",
        ),
        (
            {"caption": "Rain", "caption_frames": [3, 15]},
            {"caption": "Rain"},
            "the caption of clip 2 (b) is shown in all frames instead of in frames 3 to 15",
        ),
        (
            {"caption": "Rain", "caption_frames": [3, 15]},
            {"caption": "Rain", "caption_frames": [3, 9]},
            "the caption of clip 2 (b) is shown in frames 3 to 9 instead of in frames 3 to 15",
        ),
        ({"caption": "", "caption_frames": [3, 15]}, {"caption": "Rain"}, "caption of clip 2 (b) added"),
        ({"voices": [VOICE]}, {"voices": [{**VOICE, "sha256": "2"}]}, "voice of clip 2 (b) changed"),
        ({"sounds": [VOICE]}, {"sounds": []}, "sounds of clip 2 (b) removed"),
    ],
)
def test_what_is_seen_and_heard_with_a_clip(was: dict[str, Json], now: dict[str, Json], told: str) -> None:
    assert what_changed(chain(b={"finish": was}), chain(b={"finish": now})) == (told + NEUTRAL,)


def test_a_file_under_another_name_is_the_same_file() -> None:
    renamed = {"voices": [{**VOICE, "path": "two.wav"}]}
    old = chain(b={"finish": {"voices": [VOICE]}})
    new = replace(
        chain(b={"finish": renamed}), cut={**CUT, "music": {"path": "b.wav", "sha256": "1", "volume": 1.0}}
    )
    assert what_changed(old, new) == ()


def test_what_is_not_known_of_the_old_film_is_not_told() -> None:
    old = replace(chain(), cut={"fps": "16", "crf": 20})
    new = chain(b={"finish": {"caption": "Fog"}})
    assert what_changed(old, new) == (f"crf changed from 20 to 18{NEUTRAL}",)


def test_frames_and_settings_at_once() -> None:
    new = replace(chain(f={"seed": 1}), title="Rain", digest="e")
    assert what_changed(chain(), new) == (
        "clip 6 (f): seed changed from 0 to 1",
        "title changed from Fog to Rain",
    )


@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_something_is_told_whenever_a_key_changed(was: str, now: str) -> None:
    old, new = numbered(was), numbered(now)
    assert bool(what_changed(old, new)) == ([c.keys for c in old.clips] != [c.keys for c in new.clips])
