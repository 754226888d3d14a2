"""Situations as files: every `boards/bad-*.yaml` beside the exact words it is refused with."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from svi_story.enginespec.sampling import GuidanceSettings
from svi_story.errors import InputError
from svi_story.storyboard.cut_schema import CardSettings, CutSettings, Dip, Fade, MusicSettings, SoundSettings
from svi_story.storyboard.schema import NOT_YET, Resolution
from svi_story.storyboard.source import load

BOARDS = Path(__file__).parent / "boards"
BAD = sorted(path.name for path in BOARDS.glob("bad-*.yaml"))
GOOD = sorted(path.name for path in BOARDS.glob("good-*.yaml"))


@pytest.fixture(autouse=True)
def among_the_boards(own_ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BOARDS)


@pytest.mark.parametrize("name", BAD)
def test_bad_board_is_refused_in_these_words(name: str) -> None:
    with pytest.raises(InputError) as caught:
        load(Path(name))
    assert str(caught.value) == Path(name).with_suffix(".txt").read_text("utf-8").rstrip("\n")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", GOOD)
def test_good_board_is_read(name: str) -> None:
    board = load(Path(name))
    assert len(board.ids) == len(board.story.clips) == len(set(board.ids))


def test_there_are_enough_situations_and_no_orphans() -> None:
    assert len(BAD) >= 45
    assert {path.stem for path in BOARDS.glob("*.txt")} == {Path(name).stem for name in BAD}


def test_every_word_of_every_message_can_be_shown() -> None:
    for name in BAD:
        lines = Path(name).with_suffix(".txt").read_text("utf-8").splitlines()
        assert all(line.isprintable() and len(line) < 350 for line in lines), name


@pytest.mark.parametrize("name", sorted(NOT_YET))
def test_a_field_that_does_nothing_yet_is_refused_by_name(name: str, tmp_path: Path) -> None:
    part, _, field = name.rpartition(".")
    clip: dict[str, object] = {"prompt": "A cat sits."}
    settings: dict[str, object] = {}
    board = {"version": 1, "reference": str(BOARDS / "images/anchor.png"), "clips": [clip]}
    board |= {part: settings} if part in ("engine", "cut") else {}
    {"": board, "clips": clip}.get(part, settings)[field] = 1
    path = tmp_path / "board.json"
    path.write_text(json.dumps(board), "utf-8")
    with pytest.raises(InputError) as caught:
        load(path)
    assert [problem.what for problem in caught.value.problems] == [
        f"`{field}` is not supported yet; remove it"
    ]


def test_every_field_reaches_the_model() -> None:
    story = load(Path("good-every-field.yaml")).story
    assert story.title == "Your cat is still your cat"
    assert story.reference == "images/anchor.png"
    assert story.resolution == Resolution(width=832, height=480)
    assert (story.fps, story.fit, story.seed) == (Fraction(24000, 1001), "pad", 2**63 - 1)
    assert (story.style, story.negative_prompt) == ("35mm film, soft window light", "")
    assert story.allow_repeated_seeds is True
    _every_field_of_the_cut(story.cut)
    assert story.lint.ignore == ("short-prompt", "long-pass")
    engine = story.engine
    assert (engine.name, engine.variant, engine.preset, engine.steps) == ("animatic", "2.0", "draft", 6)
    assert (engine.guidance, engine.shift, engine.boundary) == (GuidanceSettings(high=4.0, low=3.5), 8.0, 0.9)
    assert (engine.motion_latents, engine.max_frames) == (2, 121)
    assert type(engine.shift) is float  # so that 8 and 8.0 make one key
    window, jump, street, home, end = story.clips
    assert (window.id, window.seed, window.duration) == ("window", 0, Fraction(5))
    assert window.prompt == "A tabby cat sits by the window, its tail flicking."
    assert window.guidance == GuidanceSettings(high=6.0, low=6.0)
    assert (jump.frames, jump.transition) == (121, "continue")
    assert window.caption == "It has been raining since Tuesday."
    assert window.voice == SoundSettings(path="sounds/voice.wav")
    assert jump.sounds == (
        SoundSettings(path="sounds/voice.wav"),
        SoundSettings(
            path="sounds/voice.wav",
            volume=0.5,
            start=Fraction(1, 2),
            fade_in=Fraction(1, 10),
            fade_out=Fraction(1, 5),
        ),
    )
    assert street.prompt == "Another street.\n\nIt rains.\n"
    assert street.transition == Fade(fade=Fraction(2, 5))
    assert (street.duration, street.reference) == (Fraction(3, 2), "./images/anchor.png")
    assert (home.duration, home.transition) == (Fraction(30), "cut")
    assert (home.takes, home.pick, end.takes, end.pick) == (3, 2, 1, 1)
    assert end.transition == Dip(dip=Fraction(1))


def _every_field_of_the_cut(cut: CutSettings) -> None:
    second = Fraction(1)
    assert cut.audio == MusicSettings(
        path="sounds/voice.wav", volume=0.8, fade_in=second, fade_out=2 * second, loop=False, duck=0.25
    )
    assert (cut.captions, cut.codec, cut.crf, cut.preset) == ("both", "av1", 4, 8)
    assert cut.title_card == CardSettings(text="Your cat\nis still your cat\n", duration=Fraction(5, 2))
    assert cut.end_card == CardSettings(text="The end", duration=Fraction(2))
    assert (cut.fade_in, cut.fade_out, cut.fps) == (second / 2, second, Fraction(30))


def test_defaults_are_those_of_the_format() -> None:
    story = load(Path("good-shortest.yaml")).story
    assert (story.title, story.resolution, story.fit, story.seed) == (None, None, "crop", 0)
    assert story.fps == Fraction(15)
    assert (story.style, story.allow_repeated_seeds, story.cut) == ("", False, CutSettings())
    assert story.negative_prompt.startswith("色调艳丽")
    assert story.negative_prompt.endswith("倒着走")
    engine = story.engine
    assert (engine.name, engine.variant, engine.preset, engine.max_frames) == ("svi", "2.0", "quality", 81)
    assert (engine.steps, engine.guidance, engine.shift, engine.boundary) == (None, None, None, None)
    clip = story.clips[0]
    assert (clip.id, clip.duration, clip.frames, clip.seed) == (None, None, None, None)
    assert (clip.guidance, clip.transition, clip.reference) == (None, None, None)
    assert (clip.caption, clip.voice, clip.sounds) == (None, None, ())
    assert (story.cut.captions, story.cut.codec, story.cut.crf, story.cut.preset) == (
        "burn", "h264", None, None,
    )  # fmt: skip


def test_scalars_are_those_of_yaml_1_2() -> None:
    story = load(Path("good-yaml-1.2.yaml")).story
    assert (story.title, story.style, story.seed) == ("off", "2001-01-01", 15)
    assert [clip.id for clip in story.clips] == ["no", "1_000", "1e"]
    assert [clip.seed for clip in story.clips] == [16, 10, None]
    assert [clip.prompt for clip in story.clips[1:]] == ["on", "12:30:45"]


def test_json_is_yaml_and_its_pairs_of_surrogates_are_characters() -> None:
    assert [clip.prompt for clip in load(Path("good-json.yaml")).story.clips] == ["A 🐱 sits.", "猫"]
