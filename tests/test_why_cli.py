"""`plan --why` after the edits that people make most."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

ANIMATIC = ("--engine", "animatic")
NEUTRAL = "; the film is assembled again, no frame is rendered"


def clips(*prompts: str, **last: Any) -> list[dict[str, Any]]:
    """Clips with these prompts and a seed of their own; the last one with more."""
    made: list[dict[str, Any]] = [
        {"prompt": f"The {prompt} is drifting.", "seed": ord(prompt[0])} for prompt in prompts
    ]
    made[-1] |= last
    return made


@pytest.fixture
def why(write_board: Write, svi_story: Run) -> Callable[[dict[str, Any], dict[str, Any]], list[str]]:
    """The reasons after a film of one board was made and the board was changed into another."""

    def told(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
        assert svi_story("render", write_board(**was), *ANIMATIC).code == 0
        ended = svi_story("plan", write_board(**now), *ANIMATIC, "--why", "--json")
        reasons: list[str] = json.loads(ended.out)["boards"][0]["why"]
        return reasons

    return told


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"title": "Rain"}, "title changed from board to Rain"),
        ({"cut": {"crf": 30}}, "crf changed from 18 to 30"),
        ({"cut": {"title_card": "Rain"}}, "title card added"),
        ({"cut": {"fade_out": "0.5s"}}, "fade to black added"),
        ({"cut": {"captions": "srt"}}, "captions changed from burn to srt"),
        ({"cut": {"fps": 48}}, "fps changed from 15 to 48"),
        (
            {"negative_prompt": "rain"},
            "a setting that affects no frame of this engine, or a comment, changed",
        ),
    ],
)
def test_settings(why: Callable[..., list[str]], now: dict[str, Any], told: str) -> None:
    assert why({}, now) == [told + NEUTRAL]


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ({"fade": "0.2s"}, {"fade": "0.4s"}, "the fade into clip 2 (clip-02) changed from 3 to 6 frames"),
        ("cut", {"fade": "0.4s"}, "the cut into clip 2 (clip-02) became a fade of 6 frames"),
        ({"fade": "0.4s"}, "cut", "the fade into clip 2 (clip-02) became a cut"),
    ],
)
def test_fades(why: Callable[..., list[str]], was: object, now: object, told: str) -> None:
    boards = [{"clips": clips("fog", "rain", transition=each)} for each in (was, now)]
    assert why(*boards) == [told + NEUTRAL]


def test_a_comment(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    svi_story("render", board, *ANIMATIC)
    board.write_text("# a note\n" + board.read_text("utf-8"), "utf-8")
    assert "or a comment, changed" + NEUTRAL in svi_story("plan", board, *ANIMATIC, "--why").out


def test_a_clip_removed_and_a_clip_inserted(why: Callable[..., list[str]]) -> None:
    four, three = {"clips": clips("a", "b", "c", "d")}, {"clips": clips("a", "c", "d")}
    assert why(four, three) == [
        "clip 2 (clip-02): removed",
        "clips 2-3 (were clip-03 to clip-04): id changed",
    ]
    assert why(three, four) == ["clip 2 (clip-02): new", "clips 3-4 (were clip-02 to clip-03): id changed"]


def test_resolution_style_and_transition(why: Callable[..., list[str]]) -> None:
    assert why({}, {"resolution": "96x64"}) == ["clips 1-3: resolution changed from 64x64 to 96x64"]
    assert why({}, {"style": "35mm"}) == ['clips 1-3: prompt changed: "35mm" added']
    cut = {"clips": clips("a", "b", transition="cut")}
    assert why({"clips": clips("a", "b")}, cut) == ["clip 2 (clip-02): starts a chain now"]
    assert why(cut, {"clips": clips("a", "b")}) == ["clip 2 (clip-02): continues the clip before now"]


@pytest.mark.parametrize("record", [None, "{}", "\0", '{"version": 1}', "[" * 100_000])
def test_a_film_without_a_record(
    write_board: Write, svi_story: Run, tmp_path: Path, record: str | None
) -> None:
    board = write_board()
    svi_story("render", board, *ANIMATIC)
    place = tmp_path / "renders/board.json"
    place.unlink() if record is None else place.write_text(record)
    told = svi_story("plan", board, *ANIMATIC, "--why").out
    assert "there is a film, but no record of what it was made from: everything counts as new" in told


@pytest.mark.parametrize("field", ["title", "cut", "clips", "board_sha256"])
@pytest.mark.parametrize("value", [None, float("inf"), [], {}, [{"id": 1}]])
def test_a_record_with_odd_values(
    write_board: Write, svi_story: Run, tmp_path: Path, field: str, value: object
) -> None:
    board = write_board(clips=clips("fog"))
    svi_story("render", board, *ANIMATIC)
    place = tmp_path / "renders/board.json"
    place.write_text(json.dumps({**json.loads(place.read_text("utf-8")), field: value}))
    ended = svi_story("plan", board, *ANIMATIC, "--why")
    assert ended.code == 0, ended.err


def test_a_caption(why: Callable[..., list[str]]) -> None:
    boards = [{"clips": clips("fog", "rain", caption=each)} for each in ("Rain", "It rains")]
    assert why(*boards) == [f'caption of clip 2 (clip-02) changed: "Rain" became "It rains"{NEUTRAL}']


def test_a_sound(why: Callable[..., list[str]], tmp_path: Path) -> None:
    voice = Path(__file__).parent / "boards/sounds/voice.wav"
    for name in ("one.wav", "two.wav"):
        shutil.copy(voice, tmp_path / name)
    boards = [
        {"cut": {"audio": each}, "clips": clips("fog", "rain", voice="one.wav")}
        for each in ("one.wav", {"path": "two.wav", "volume": 0.5})
    ]
    assert why(*boards) == [f"music changed from one.wav to two.wav{NEUTRAL}"]
    spoken = {"clips": clips("fog", "rain", voice="one.wav")}
    assert why(spoken, {"clips": clips("fog", "rain")}) == [f"voice of clip 2 (clip-02) removed{NEUTRAL}"]


def test_a_record_of_the_first_version(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    board = write_board(clips=clips("fog", "rain", caption="Rain"))
    svi_story("render", board, *ANIMATIC)
    place = tmp_path / "renders/board.json"
    old = json.loads(place.read_text("utf-8"))
    old |= {"version": 1, "crf": 20}
    del old["cut"]
    for clip in old["clips"]:
        del clip["finish"], clip["dip"]
    place.write_text(json.dumps({**old, "recipe": "another"}), "utf-8")
    told = json.loads(svi_story("plan", board, *ANIMATIC, "--why", "--json").out)["boards"][0]["why"]
    assert told == [f"crf changed from 20 to 18{NEUTRAL}"]
    again = svi_story("render", board, *ANIMATIC, "--json")
    assert "segment_started" not in again.out
    assert json.loads(place.read_text("utf-8"))["version"] == 2


def test_a_film_that_was_altered(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    board = write_board()
    svi_story("render", board, *ANIMATIC)
    (tmp_path / "renders/board.mp4").write_bytes(b"")
    told = svi_story("plan", board, *ANIMATIC, "--why").out
    assert "the film's file was changed; move it away to have it assembled again" in told
    (tmp_path / "renders/board.mp4").unlink()
    told = svi_story("plan", board, *ANIMATIC, "--why").out
    assert "the film's file is missing; it is assembled again, no frame is rendered" in told
