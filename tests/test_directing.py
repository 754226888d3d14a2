"""Variables, settings of single clips, timed captions, clips as long as their voice, the animatic's slate."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_film_cut import film_of, rendered, tone
from test_plan import planned, problems

from svi_story.cut.captions import caption_over
from svi_story.fields import LONGEST_TEXT
from svi_story.storyboard.source import load
from svi_story.storyboard.variables import replace_variables

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

SIZE = "160x96"
PROMPT = "The fog is drifting over the harbour while the lamps go on one by one."


def clip(**fields: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "frames": 9, **fields}


def keys(svi_story: Run, board: Path) -> list[str]:
    ended = svi_story("plan", board, "--engine", "animatic", "--json")
    assert ended.code == 0, ended.err
    (plan,) = json.loads(ended.out)["boards"]
    return [segment["key"] for clip in plan["clips"] for segment in clip["segments"]]


def test_a_variable_is_its_text(write_board: Write, svi_story: Run) -> None:
    literal = [clip(prompt="A grey cat is running."), clip(prompt="The cat {a grey cat} sleeps.")]
    plain = keys(svi_story, write_board(clips=literal, style="a grey cat's world"))
    written = [clip(prompt="A {coat} cat is running."), clip(prompt="The cat {{a {coat} cat}} sleeps.")]
    board = write_board(let={"coat": "grey"}, clips=written, style="a {coat} cat's world")
    assert keys(svi_story, board) == plain
    renamed = [clip(prompt="A {fur} cat is running."), clip(prompt="The cat {{a {fur} cat}} sleeps.")]
    board = write_board(let={"fur": "grey", "_x1": ""}, clips=renamed, style="a {fur} cat's world")
    assert keys(svi_story, board) == plain


def test_without_let_braces_are_braces(write_board: Write) -> None:
    board = load(write_board(title="{{x}} {y}", clips=[clip(prompt="A {cat} sits.", caption="{z}")]))
    assert (board.story.title, board.story.clips[0].caption) == ("{{x}} {y}", "{z}")
    assert board.story.clips[0].prompt == "A {cat} sits."


def test_every_text_has_variables(write_board: Write) -> None:
    texts = clip(prompt="{v}", negative_prompt="{v}", caption={"text": "{v}", "from": "0.1s"})
    cut = {"title_card": "{v}", "end_card": {"text": "{v}"}}
    fields: dict[str, Any] = {"title": "{v}", "style": "{v}", "negative_prompt": "{v}", "cut": cut}
    story = load(write_board(let={"v": "A cat {v} {{"}, clips=[texts, clip(caption="{v}")], **fields)).story
    first, second = story.clips
    assert story.cut.title_card is not None
    assert story.cut.end_card is not None
    found: list[object] = [story.title, story.style, story.negative_prompt, story.cut.title_card.text]
    found += [story.cut.end_card.text, first.prompt, first.negative_prompt, second.caption]
    found += [getattr(first.caption, "text", "")]
    assert set(found) == {"A cat {v} {{"}, "one pass: a variable's text is not searched"


@given(st.text("{}ab_1 ", max_size=30), st.dictionaries(st.sampled_from(["a", "b", "_1"]), st.text("{}ax")))
def test_replacing_never_fails_and_reports_every_unknown_name(text: str, let: dict[str, str]) -> None:
    data, wrong = replace_variables({"let": let, "clips": [{"prompt": text}]})
    result = data["clips"][0]["prompt"]
    if not wrong:
        assert len(result) <= len(text) + sum(map(len, let.values())) * len(text)
    assert all(loc == ("clips", 0, "prompt") and "is not a variable" in what for loc, what in wrong)
    if "{" not in text and "}" not in text:
        assert (result, wrong) == (text, [])


def test_a_text_that_variables_make_too_long_is_refused(write_board: Write) -> None:
    board = write_board(let={"x": "y" * 6000}, clips=[clip(prompt="{x} " * 2500)])
    (problem,) = problems(board)
    assert (
        f'clips[0].prompt (clip "clip-01"): has more than {LONGEST_TEXT} characters with its variables'
        in problem
    )


def test_a_clip_has_its_own_steps_and_negative_prompt(write_board: Write) -> None:
    own = clip(steps=30, negative_prompt="")
    plan = planned(write_board(negative_prompt="dogs", engine={"steps": 40}, clips=[clip(), own, clip()]))
    segments = [shot.segments[0] for shot in plan.shots]
    assert [segment.sampler.steps for segment in segments] == [40, 30, 40]
    assert [segment.negative_prompt for segment in segments] == ["dogs", "", "dogs"]


def test_few_steps_of_one_clip_are_warned_of(write_board: Write) -> None:
    plan = planned(write_board(clips=[clip(), clip(steps=4)]))
    found = [(lint.name, lint.problem.path) for lint in plan.lints if lint.name == "few-steps"]
    assert found == [("few-steps", "clips[1].steps")]


@pytest.mark.parametrize("starts_chain", [True, False])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(milliseconds=st.integers(1, 4000), start=st.sampled_from([0, 0.25, 1]))
def test_a_clip_is_as_long_as_its_voice(
    write_board: Write, tmp_path: Path, starts_chain: bool, milliseconds: int, start: float
) -> None:
    name = tone(tmp_path / "voice.wav", milliseconds / 1000)
    spoken = {"prompt": PROMPT, "duration": "voice", "voice": {"path": name, "start": start}}
    clips = [spoken] if starts_chain else [clip(), spoken]
    shot = planned(write_board(clips=clips)).shots[-1]
    shortest = 5 if starts_chain else 4
    assert Fraction(shot.frames, 15) >= shot.voices[0].end
    assert shot.frames == shortest or Fraction(shot.frames - 4, 15) < shot.voices[0].end


def test_a_voice_that_cannot_be_read_is_the_only_problem(write_board: Write, tmp_path: Path) -> None:
    (tmp_path / "voice.wav").write_bytes(b"RIFF")
    spoken = {"prompt": PROMPT, "duration": "voice", "voice": "voice.wav"}
    (problem,) = problems(write_board(clips=[spoken]))
    assert "clips[0].voice" in problem


@pytest.mark.parametrize(
    ("times", "first", "stop"),
    [
        ({"from": "0.2s", "to": "0.4s"}, 3, 6),
        ({"from": "0.4s"}, 6, 13),
        ({"to": "0.2s"}, 0, 3),
        ({"to": "1s"}, 0, 13),
    ],
)
def test_a_caption_is_shown_at_its_times(
    write_board: Write, svi_story: Run, tmp_path: Path, times: dict[str, str], first: int, stop: int
) -> None:
    clips = [clip(), {"prompt": PROMPT, "frames": 13, "transition": "cut"}]
    bare = film_of(svi_story, write_board(clips=clips, resolution=SIZE, cut={"crf": 4, "fps": 30}))
    clips[1]["caption"] = {"text": "Rain", **times}
    board = write_board(clips=clips, resolution=SIZE, cut={"crf": 4, "fps": 30, "captions": "both"})
    film = film_of(svi_story, board)
    shown = [
        number
        for number, (frame, plain) in enumerate(zip(film, bare, strict=True))
        if np.abs(frame - caption_over("Rain", 160, 96).over(plain.astype(np.uint8))).mean() < 3
        and np.abs(frame[60:] - plain[60:]).mean() > 2
    ]
    assert shown == list(range(18 + 2 * first, 18 + 2 * stop))
    subtitles = (tmp_path / "renders/board.srt").read_text("utf-8")
    begin, end = (f"00:00:0{frame / 15:.3f}".replace(".", ",") for frame in (9 + first, 9 + stop))
    assert f"{begin} --> {end}\nRain" in subtitles


def test_a_timed_caption_in_a_fade_ends_with_its_time(write_board: Write, svi_story: Run) -> None:
    late = {"text": "Sun", "from": "0.4s", "to": "0.6s"}
    faded = [clip(frames=13), clip(frames=13, transition={"fade": "0.5s"}, caption=late)]
    bare = film_of(svi_story, write_board(clips=faded, resolution=SIZE, cut={"crf": 4, "captions": "off"}))
    film = film_of(svi_story, write_board(clips=faded, resolution=SIZE, cut={"crf": 4}))
    differ = [
        number for number in range(len(film)) if np.abs(film[number, 60:] - bare[number, 60:]).mean() > 2
    ]
    assert differ == [5 + number for number in range(6, 9)]


def test_times_for_all_of_a_clip_change_nothing(write_board: Write, svi_story: Run) -> None:
    film_of(svi_story, write_board(clips=[clip(caption="Rain")], resolution=SIZE))
    whole = {"text": "Rain", "from": 0, "to": "0.6s"}
    events = rendered(svi_story, write_board(clips=[clip(caption=whole)], resolution=SIZE))
    assert not [event for event in events if event["event"] in ("piece_done", "segment_done")]


@pytest.mark.parametrize(
    ("times", "what"),
    [
        ({"from": "9s"}, 'clips[0].caption.from (clip "clip-01"): the clip has 0.60 s; use an earlier time'),
        (
            {"to": "9s"},
            'clips[0].caption.to (clip "clip-01"): the clip has 0.60 s; use an earlier time, or none',
        ),
        (
            {"from": "0.30s", "to": "0.31s"},
            'clips[0].caption (clip "clip-01"): is shown for less than a frame',
        ),
    ],
)
def test_times_outside_the_clip_are_refused(write_board: Write, times: dict[str, str], what: str) -> None:
    (problem,) = problems(write_board(clips=[clip(caption={"text": "Rain", **times})]))
    assert what in problem


def test_the_slate_may_be_small_or_off(write_board: Write, svi_story: Run) -> None:
    boards = {
        size: write_board(engine={"slate": size}, clips=[clip()], resolution="416x240")
        for size in ("on", "small", "off")
    }
    films, seen = {}, {}
    for size in boards:
        board = write_board(engine={"slate": size}, clips=[clip()], resolution="416x240")
        seen[size] = keys(svi_story, board)
        films[size] = film_of(svi_story, board)
    plain = write_board(engine={}, clips=[clip()], resolution="416x240")
    assert keys(svi_story, plain) == seen["on"], "no key changes where nothing is written"
    assert len({*map(tuple, seen.values())}) == 3
    top = {size: np.abs(films[size] - films["off"]).mean(axis=(0, 2, 3)) for size in films}
    rows = {size: int((rows > 3).sum()) for size, rows in top.items()}
    assert 10 < rows["small"] < rows["on"] - 10
    assert np.abs(films["off"][:, -60:] - films["on"][:, -60:]).mean() < 2, "the picture is the same"


def test_the_model_ignores_the_slate(write_board: Write, svi_story: Run) -> None:
    board = write_board(engine={"name": "svi", "slate": "off"})
    assert svi_story("validate", board).code == 0
