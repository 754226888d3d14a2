"""What the field knows to go wrong is said before the GPU, with its reason and a name that silences it."""

from __future__ import annotations

import json
import re
import shutil
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.lint import FILM_CHECKS, MODEL_CHECKS, count_words
from svi_story.plan.resolve import plan_film
from svi_story.storyboard.schema import LintName
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    from svi_story.plan.model import Lint

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

ROOT = Path(__file__).parent.parent
SHIPPED = sorted([*(ROOT / "storyboards").rglob("*.yaml"), *(ROOT / "templates").rglob("*.yaml")])
PROMPT = "A red fox with a cream chest is walking to the right through a misty forest with soft steps."


def clip(**fields: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, **fields}


CLEAN: dict[str, Any] = {"resolution": "832x480", "engine": {}, "clips": [clip(), clip(), clip()]}


def linted(board: Path, engine: str | None = None) -> tuple[Lint, ...]:
    return plan_film(load(board), Fingerprints(board.parent / "memo.json"), engine).lints


def told(board: Path, engine: str | None = None) -> list[tuple[str, str]]:
    """All lints but those of pictures, which have a test of their own."""
    return [
        (lint.name, lint.problem.path)
        for lint in linted(board, engine)
        if not lint.name.endswith("-reference")
    ]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A reference of the usual size."""
    path = tmp_path / "anchor.png"
    Image.new("RGB", (832, 480), (90, 120, 60)).save(path)
    return path


@pytest.mark.parametrize(
    ("size", "fit", "name"),
    [
        ((832, 480), "crop", ""),
        ((556, 321), "crop", ""),
        ((540, 312), "crop", "enlarged-reference"),
        ((540, 312), "pad", "enlarged-reference"),
        ((832, 620), "crop", ""),
        ((832, 660), "crop", "cropped-reference"),
        ((832, 660), "stretch", ""),
        ((480, 832), "pad", ""),
    ],
)
def test_references_that_lose_too_much(
    write_board: Write, tmp_path: Path, size: tuple[int, int], fit: str, name: str
) -> None:
    Image.new("RGB", size).save(tmp_path / "other.png")
    clips = [clip(), clip(reference="other.png", transition="cut"), clip()]
    board = write_board(**CLEAN | {"clips": clips, "fit": fit})
    found = [(lint.name, lint.problem.path) for lint in linted(board)]
    assert found == ([(name, "clips[1].reference")] if name else [])


def test_turned_pictures_are_judged_as_they_are_seen(write_board: Write, tmp_path: Path) -> None:
    upright = Image.new("RGB", (480, 832))
    turned = upright.getexif()
    turned[0x0112] = 6
    upright.save(tmp_path / "phone.jpg", exif=turned)
    assert linted(write_board(**CLEAN | {"reference": "phone.jpg"})) == ()


def voice(folder: Path, seconds: float, name: str = "voice.wav") -> str:
    with wave.open(str(folder / name), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\1\0" * int(8000 * seconds))
    return name


def lora(path: str, **strengths: float) -> dict[str, Any]:
    return {"path": path, **strengths}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_what_ships_gets_no_warning(path: Path) -> None:
    assert linted(path) == ()


CASES: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({}, []),
    ({"engine": {"preset": "fast"}}, []),
    ({"engine": {"preset": "draft"}, "resolution": None}, []),
    ({"engine": {"variant": "2.0-pro"}}, []),
    # passes
    ({"engine": {"max_frames": 121}}, [("long-pass", "engine.max_frames")]),
    ({"engine": {"max_frames": 121}, "clips": [clip(frames=85), clip(frames=81)]},
     [("long-pass", "clips[0].frames")]),
    ({"engine": {"max_frames": 121}, "clips": [clip(duration="5s")]}, []),
    ({"engine": {"max_frames": 121}, "clips": [clip(duration="8s"), clip(duration="9s")]},
     [("long-pass", "engine.max_frames")]),
    # the picture
    ({"resolution": "480x832"}, [("aspect", "resolution")]),
    ({"resolution": "640x640"}, [("aspect", "resolution")]),
    ({"resolution": "640x480"}, [("aspect", "resolution")]),
    ({"resolution": "1120x480"}, [("aspect", "resolution")]),
    ({"resolution": "704x480"}, []),
    ({"resolution": "960x544"}, []),
    ({"resolution": "720p"}, [("large-picture", "resolution")]),
    ({"resolution": "1280x1280"}, [("aspect", "resolution"), ("large-picture", "resolution")]),
    # frame rates
    ({"fps": 30}, [("frame-rate", "fps")]),
    ({"fps": 10}, [("frame-rate", "fps")]),
    ({"fps": 16, "cut": {"fps": 32}}, []),
    # steps and guidance
    ({"engine": {"steps": 6}}, [("few-steps", "engine.steps")]),
    ({"engine": {"steps": 6, "loras": [lora("x_lightx2v.safetensors", high=0.5)]}}, []),
    ({"engine": {"steps": 6}, "clips": [clip(loras=[lora("Seko-4steps.safetensors", high=0.5)]), clip()]},
     [("few-steps", "engine.steps")]),
    ({"engine": {"steps": 20}}, []),
    ({"engine": {"guidance": 1}}, [("low-guidance", "engine.guidance")]),
    ({"engine": {"guidance": {"high": 5, "low": 1}}}, [("low-guidance", "engine.guidance")]),
    ({"engine": {"guidance": 1}, "clips": [clip(guidance=5), clip(guidance=5)]}, []),
    ({"clips": [clip(), clip(guidance=0.5)]}, [("low-guidance", "clips[1].guidance")]),
    ({"engine": {"guidance": 1, "preset": "fast"}}, []),
    ({"engine": {"guidance": 1, "loras": [lora("Lightning.safetensors", high=0.5)]}}, []),
    ({"engine": {"guidance": 1.1}}, []),
    # distillation
    ({"engine": {"loras": [lora("LightX2V.safetensors")]}}, [("lightx2v-high", "engine.loras[0].high")]),
    ({"engine": {"loras": [lora("LightX2V.safetensors", high=0.6)]}}, []),
    ({"engine": {"loras": [lora("LightX2V.safetensors", high=0)]}}, []),
    ({"engine": {"loras": [lora("style-2000steps.safetensors")]}}, []),
    ({"engine": {"preset": "fast", "loras": [lora("4-step.safetensors", high=0.2)]}},
     [("lightx2v-high", "engine.loras[0].high")]),
    ({"clips": [clip(), clip(loras=[lora("a.safetensors"), lora("distill.safetensors", high=1.5)])]},
     [("lightx2v-high", "clips[1].loras[1].high")]),
    ({"engine": {"distill": {"high": "h.safetensors", "low": "l.safetensors"}}},
     [("unused-distill", "engine.distill")]),
    ({"engine": {"preset": "fast", "distill": {"high": "h.safetensors", "low": "l.safetensors"}}}, []),
    # prompts
    ({"clips": [clip(), clip(prompt="A cat sits.")]}, [("short-prompt", "clips[1].prompt")]),
    ({"style": "word " * 30, "clips": [clip(prompt="A cat sits.")]}, [("short-prompt", "clips[0].prompt")]),
    ({"clips": [clip(prompt="一只橘猫坐在窗台上，望着外面的雨，尾巴轻轻摆动着")]}, []),
    ({"clips": [clip(prompt="一只猫坐着")]}, [("short-prompt", "clips[0].prompt")]),
    ({"clips": [clip(prompt="قطة برتقالية جالسة على حافة النافذة تراقب المطر وذيلها يتأرجح ببطء شديد")]}, []),
    ({"style": "word " * 200, "clips": [clip(prompt="word " * 160)]}, [("long-prompt", "clips[0].prompt")]),
    ({"clips": [clip(prompt=f"{PROMPT} It starts to run.")]}, [("starts-to", "clips[0].prompt")]),
    ({"clips": [clip(prompt=f"{PROMPT} It begins\nto run.")]}, [("starts-to", "clips[0].prompt")]),
    ({"clips": [clip(prompt=f"{PROMPT} It starts running.")]}, [("starts-to", "clips[0].prompt")]),
    ({"clips": [clip(prompt=f"{PROMPT} It is about to jump.")]}, [("starts-to", "clips[0].prompt")]),
    ({"clips": [clip(prompt="一只橘猫坐在窗台上，望着外面的雨，然后开始奔跑起来")]},
     [("starts-to", "clips[0].prompt")]),
    ({"clips": [clip(prompt=f"{PROMPT} From start to finish, upstarts to its left are restarting.")]}, []),
    # lengths
    ({"clips": [clip(duration="5s"), clip(duration="0.2s")]}, [("other-length", "clips[1].duration")]),
    ({"clips": [clip(frames=5), clip(frames=5)]}, []),
    # words
    ({"clips": [clip(caption="c" * 110)]}, [("hurried-text", "clips[0].caption")]),
    ({"clips": [clip(caption="c" * 105)]}, []),
    ({"clips": [clip(caption="雨" * 55)]}, [("hurried-text", "clips[0].caption")]),
    ({"clips": [clip(frames=13, caption="Rain")]}, [("hurried-text", "clips[0].caption")]),
    ({"clips": [clip(frames=13, caption="Rain")], "cut": {"captions": "off"}}, []),
    ({"cut": {"title_card": "Rain", "end_card": {"text": "The end", "duration": 0.5}}},
     [("hurried-text", "cut.end_card")]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), CASES, ids=lambda value: str(value)[:60])
def test_what_is_warned_of(
    write_board: Write, changes: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    assert told(write_board(**CLEAN | changes)) == expected


def test_every_name_is_found_in_these_tests_and_has_a_check() -> None:
    names = set(get_args(LintName))
    assert names == set(FILM_CHECKS) | set(MODEL_CHECKS)
    others = {"overlapping-voices", "voice-cut-off", "unquoted-text"}
    others |= {"cropped-reference", "enlarged-reference"}
    assert {name for _, expected in CASES for name, _ in expected} | others == names


def test_a_text_that_a_comment_cuts_off(write_board: Write) -> None:
    board = write_board(**CLEAN)
    text = board.read_text("utf-8").replace("soft steps.", "soft steps, #1 of three.", 1)
    board.write_text(text, "utf-8")
    (found,) = (lint for lint in linted(board) if lint.name == "unquoted-text")
    line = text[: text.index("#1")].count("\n") + 1
    assert 'before "#1 of three.", because " #" starts a comment' in found.problem.what
    assert f"(line {line})" in found.problem.what
    assert found.problem.path == "clips[0].prompt"
    board.write_text(f"{text}lint: {{ignore: [unquoted-text]}}\n", "utf-8")
    assert linted(board) == ()


def test_a_voice_longer_than_the_rest_of_the_film(write_board: Write, tmp_path: Path) -> None:
    voice(tmp_path, 6)
    late = {"path": "voice.wav", "start": "5s"}
    assert told(write_board(**CLEAN | {"clips": [clip(), clip(voice="voice.wav")]})) == [
        ("voice-cut-off", "clips[1].voice")
    ]
    assert told(write_board(**CLEAN | {"clips": [clip(voice="voice.wav"), clip()]})) == []
    assert told(write_board(**CLEAN | {"clips": [clip(voice=late), clip()]})) == [
        ("voice-cut-off", "clips[0].voice")
    ]
    longer = {"clips": [clip(voice=late), clip()], "cut": {"title_card": "Rain", "end_card": "The end"}}
    assert told(write_board(**CLEAN | longer)) == []
    assert (
        told(write_board(**CLEAN | {"clips": [clip(sounds=[late]), clip()]})) == []
    )  # rain may end anywhere


def test_two_voices_at_once(write_board: Write, tmp_path: Path) -> None:
    voice(tmp_path, 6)
    voice(tmp_path, 5, "short.wav")
    both = [clip(voice="voice.wav"), clip(voice="short.wav")]
    assert told(write_board(**CLEAN | {"clips": both})) == [("overlapping-voices", "clips[1].voice")]
    later = [clip(voice="voice.wav"), clip(voice={"path": "short.wav", "start": "1s"}), clip()]
    assert told(write_board(**CLEAN | {"clips": later})) == []
    fading = [clip(voice="short.wav"), clip(voice="short.wav", transition={"fade": "1s"}), clip()]
    assert told(write_board(**CLEAN | {"clips": fading})) == [("overlapping-voices", "clips[1].voice")]
    longest = [clip(voice={"path": "voice.wav", "start": "10s"}), clip(voice="short.wav"), *[clip()] * 2]
    longest[2] = clip(voice="short.wav")
    assert told(write_board(**CLEAN | {"clips": longest})) == [
        ("overlapping-voices", "clips[1].voice"),
        ("overlapping-voices", "clips[2].voice"),
    ]


BAD = {
    "resolution": "64x64",
    "fps": 30,
    "engine": {"steps": 2, "guidance": 1},
    "clips": [clip(prompt="A cat starts to run."), clip(prompt="It sits.", duration="0.1s", caption="Cat")],
}


def test_a_board_ignores_by_name(write_board: Write) -> None:
    names = [name for name, _ in told(write_board(**BAD))]
    assert set(names) == {
        *("aspect", "frame-rate", "few-steps", "low-guidance", "short-prompt", "starts-to"),
        *("other-length", "hurried-text"),
    }
    for name in set(names):
        left = [each for each, _ in told(write_board(**BAD, lint={"ignore": [name]}))]
        assert left == [each for each in names if each != name]
    assert told(write_board(**BAD, lint={"ignore": sorted(set(names))})) == []


def test_what_only_concerns_the_model_is_not_said_of_an_animatic(write_board: Write) -> None:
    board = write_board(**BAD | {"engine": {"name": "animatic", "steps": 2, "guidance": 1}})
    assert {name for name, _ in told(board)} == {"other-length", "hurried-text"}
    assert ("aspect", "resolution") in told(board, "svi")
    previewed = write_board(**BAD)
    assert told(previewed, "animatic") == told(previewed)  # a preview of what SVI will render


def test_they_come_in_the_order_of_the_lines(write_board: Write) -> None:
    lines = [lint.problem.line for lint in linted(write_board(**BAD))]
    assert lines == sorted(lines)
    assert min(lines) > 0


def test_every_reason_comes_with_a_cure(write_board: Write, tmp_path: Path) -> None:
    voice(tmp_path, 60)
    for changes, _ in [
        *CASES,
        (BAD, []),
        ({"clips": [clip(voice="voice.wav"), clip(voice="voice.wav")]}, []),
    ]:
        for lint in linted(write_board(**CLEAN | changes)):
            what = lint.problem.what
            assert ";" in what or ":" in what, what
            assert what.isprintable(), what
            assert 40 < len(what) < 260, what


def test_validate_and_plan_say_so_on_standard_error(write_board: Write, svi_story: Run) -> None:
    write_board(**CLEAN | {"clips": [clip(), clip(prompt="A cat sits.")]})
    expected = (
        r"warning: board\.yaml:\d+: clips\[1\]\.prompt \(clip \"clip-02\"\): 3 words: short prompts let "
        r"the reference win, and .*; describe who, .* \[short-prompt\]\n"
    )
    for command in (["validate", "board.yaml"], ["plan", "board.yaml"], ["plan", "board.yaml", "--json"]):
        ended = svi_story(*command, "--engine", "animatic") if command[0] == "plan" else svi_story(*command)
        assert ended.code == 0
        assert re.search(expected, ended.err), ended.err
        assert "short-prompt" not in ended.out or "--json" in command


def test_plan_gives_them_to_scripts(write_board: Write, svi_story: Run) -> None:
    write_board(**CLEAN | {"clips": [clip(), clip(prompt="A cat sits.")]})
    board = json.loads(svi_story("plan", "board.yaml", "--json", "--engine", "animatic").out)["boards"][0]
    assert [(each["name"], each["path"]) for each in board["warnings"]] == [
        ("short-prompt", "clips[1].prompt")
    ]
    assert board["warnings"][0]["line"] > 0
    assert board["warnings"][0]["message"].startswith("3 words")


def test_of_many_alike_a_few_are_printed(write_board: Write, svi_story: Run) -> None:
    write_board(**CLEAN | {"clips": [clip(prompt="A cat sits.")] * 100})
    lines = svi_story("validate", "board.yaml").err.splitlines()
    assert len(lines) == 6
    assert lines[-1] == "warning: and 95 more like these [short-prompt]"


def test_a_stranger_s_words_stay_words(write_board: Write, svi_story: Run) -> None:
    write_board(**CLEAN | {"clips": [clip(prompt=f"{PROMPT} It starts to run\u202e[bold]\u061cx[/bold].")]})
    err = svi_story("validate", "board.yaml").err
    assert "starts-to" in err
    assert "\u202e" not in err


@given(st.text())
def test_counting_words_takes_any_text(text: str) -> None:
    assert 0 <= count_words(text) <= len(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("A cat sits.", 3), ("a - b", 2), ("雨が降る", 2), ("बिल्ली खिड़की पर बैठी है", 5), ("😀 😀", 0)],
)
def test_counting_words(text: str, count: int) -> None:
    assert count_words(text) == count


def test_every_name_is_in_the_reference_page() -> None:
    page = (ROOT / "docs/storyboard.md").read_text("utf-8").partition("## `lint`")[2]
    for name in get_args(LintName):
        assert re.search(rf"^\| `{name}` \|", page, re.MULTILINE), name


def test_templates_stay_silent_where_they_are_made(tmp_path: Path, svi_story: Run) -> None:
    for template in ("minimal", "story", "scenes"):
        assert svi_story("new", template, "--template", template).code == 0
        assert svi_story("validate", template).err == ""
        shutil.rmtree(tmp_path / template)
