"""Keys: pinned, changed by everything that changes frames, and by nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svi_story.engines.animatic import AnimaticIdentity
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.keys import canonical, key_of, with_keys
from svi_story.plan.model import Anchor
from svi_story.plan.resolve import plan_film
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from svi_story.plan.model import Fit, Size

    Write = Callable[..., Path]


class Constant(Fingerprints):
    """The same pixels for every picture, whatever version of Pillow reads it."""

    def anchor(self, path: Path, size: Size, fit: Fit) -> Anchor:
        return Anchor(path, size, fit, pixels=f"pixels of {path.name} {size} {fit}")


def keys(board: Path, fingerprints: Fingerprints | None = None) -> list[list[str]]:
    """Every clip's keys under the animatic."""
    plan = plan_film(load(board), fingerprints or Fingerprints(board.parent / "memo.json"), "animatic")
    return [
        [segment.key for segment in shot.segments]
        for shot in with_keys(plan, lambda _engine: AnimaticIdentity()).shots
    ]


def different(before: list[list[str]], after: list[list[str]]) -> set[int]:
    """The clips whose keys differ."""
    return {index for index, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]}


def clip(**fields: Any) -> dict[str, Any]:
    return {"prompt": "The fog is drifting.", **fields}


PINNED = [
    "d5dc76e3638742f6",
    "2b1c52d14fb1c74b",
    "0a17788122e9c089",
    "b2680fb43f6b95ae",
    "fc5584ccffc09950",
    "caa08fea5b3b995a",
]

CLIPS = [clip(), clip(duration="2s"), clip(transition="cut"), clip()]


def test_keys_are_pinned(write_board: Write, tmp_path: Path) -> None:
    """A change here means that every user's cache is rendered again: raise the engine's revision."""
    found = keys(write_board(clips=CLIPS), Constant(tmp_path / "memo.json"))
    assert [key[:16] for clip_keys in found for key in clip_keys] == PINNED


def test_canonical_json_has_one_spelling() -> None:
    assert canonical({"b": 1, "a": [1.5, None, "é"]}) == b'{"a":[1.5,null,"\xc3\xa9"],"b":1}'
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical({"a": float("nan")})


NONE: set[int] = set()


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"style": "35mm film"}, {0, 1, 2, 3}),
        ({"seed": 1}, {0, 1, 2, 3}),
        ({"fps": 16}, {0, 1, 2, 3}),
        ({"resolution": "64x80"}, {0, 1, 2, 3}),
        ({"fit": "pad"}, {0, 1, 2, 3}),
        ({"reference": "other.png"}, {0, 1, 2, 3}),
        ({"engine": {"max_frames": 9}}, {0, 1, 2, 3}),
        ({"engine": {"max_frames": 13, "variant": "2.0-pro"}}, {1, 3}),
        ({"title": "Another"}, NONE),
        ({"negative_prompt": "rain"}, NONE),
        ({"cut": {"crf": 30}}, NONE),
        ({"allow_repeated_seeds": True}, NONE),
        ({"engine": {"max_frames": 13, "steps": 7, "shift": 3.0, "boundary": 0.5, "guidance": 2}}, NONE),
        ({"engine": {"max_frames": 13, "preset": "fast", "name": "animatic"}}, NONE),
        ({"reference": "copy.png"}, NONE),
    ],
    ids=str,
)
def test_a_field_of_the_board(
    write_board: Write, picture: Path, change: dict[str, Any], changed: set[int]
) -> None:
    picture.with_name("copy.png").write_bytes(picture.read_bytes())
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(picture.with_name("other.png"))
    before = keys(write_board(clips=CLIPS))
    after = keys(write_board(clips=CLIPS, **change))
    assert different(before, after) == changed


@pytest.mark.parametrize(
    ("index", "change", "changed"),
    [
        (0, {"prompt": "Rain."}, {0, 1}),
        (0, {"id": "start"}, {0, 1}),
        (1, {"seed": 77}, {1}),
        (1, {"duration": "3s"}, {1}),
        (2, {"prompt": "Rain."}, {2, 3}),
        (2, {"transition": {"fade": "0.2s"}}, NONE),
        (2, {"transition": "continue"}, {2, 3}),
        (3, {"frames": 9}, {3}),
        (3, {"guidance": 9.0}, NONE),
    ],
    ids=str,
)
def test_a_field_of_a_clip(write_board: Write, index: int, change: dict[str, Any], changed: set[int]) -> None:
    before = keys(write_board(clips=CLIPS))
    clips = [{**each, **change} if number == index else each for number, each in enumerate(CLIPS)]
    after = keys(write_board(clips=clips))
    assert different(before, after) == changed


def test_the_name_of_the_board_and_of_its_folder_do_not_matter(write_board: Write, picture: Path) -> None:
    elsewhere = write_board("deep/er/other.yaml", clips=CLIPS, reference="../../anchor.png")
    assert keys(write_board(clips=CLIPS)) == keys(elsewhere)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["continue", "cut"]), min_size=1, max_size=6), st.data())
def test_an_edit_changes_its_clip_and_its_followers_only(
    write_board: Write, transitions: list[str], data: st.DataObject
) -> None:
    clips = [clip(), *(clip(transition=transition) for transition in transitions)]
    edited = data.draw(st.integers(0, len(clips) - 1))
    before = keys(write_board(clips=clips))
    clips[edited] = {**clips[edited], "prompt": "The sun is coming out."}
    after = keys(write_board(clips=clips))
    following = range(edited + 1, len(clips))
    end = next((n for n in following if clips[n].get("transition") == "cut"), len(clips))
    assert [old != new for old, new in zip(before, after, strict=True)] == [
        edited <= number < end for number in range(len(clips))
    ]


def test_a_picture_that_changes_under_its_name_changes_the_keys(write_board: Write, picture: Path) -> None:
    from PIL import Image

    board = write_board(clips=CLIPS)
    fingerprints = Fingerprints(board.parent / "memo.json")
    before = keys(board, fingerprints)
    Image.new("RGB", (64, 64), "red").save(picture)
    assert keys(board, fingerprints) != before


def test_the_memo_saves_opening_pictures_and_may_be_lost(
    write_board: Write, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = write_board(clips=CLIPS)
    first = Fingerprints(board.parent / "memo.json")
    before = keys(board, first)
    first.save()
    with monkeypatch.context() as patch:
        patch.setattr("svi_story.media.images.open_picture", None)
        assert keys(board, Fingerprints.load(first.memo)) == before
    first.memo.write_text("{ broken")
    assert keys(board, Fingerprints.load(first.memo)) == before
