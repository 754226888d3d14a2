"""From board to plan: chains, anchors, seeds, passes, and what cannot be planned."""

from __future__ import annotations

import re
import wave
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svi_story.enginespec.sampling import Guidance
from svi_story.errors import InputError
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.model import Card, Cut, Music, Recording, Size, Sound
from svi_story.plan.resolve import plan_film
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from svi_story.plan.model import FilmPlan

    Write = Callable[..., Path]


def clip(**fields: Any) -> dict[str, Any]:
    return {"prompt": "The fog is drifting.", **fields}


def planned(board: Path) -> FilmPlan:
    return plan_film(load(board), Fingerprints(board.parent / "memo.json"))


def problems(board: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        planned(board)
    return [str(problem) for problem in caught.value.problems]


def test_defaults(write_board: Write) -> None:
    plan = planned(write_board(resolution="832x480", engine={}))
    sampler = plan.shots[0].segments[0].sampler
    assert (plan.title, plan.size, plan.fps, plan.engine) == ("board", Size(832, 480), Fraction(15), "svi")
    assert (sampler.steps, sampler.guidance, sampler.shift, sampler.boundary) == (
        50,
        Guidance(5, 5),
        5,
        0.875,
    )
    assert [shot.frames for shot in plan.shots] == [81, 80, 80]
    assert plan.frames == 241


@pytest.mark.parametrize(
    ("preset", "steps", "size"), [("fast", 6, Size(832, 480)), ("draft", 4, Size(416, 240))]
)
def test_a_preset_fills_what_is_open(write_board: Write, preset: str, steps: int, size: Size) -> None:
    plan = planned(write_board(resolution=None, engine={"preset": preset}))
    assert plan.size == size
    assert plan.shots[0].segments[0].sampler.steps == steps
    own = planned(write_board(resolution="480p", engine={"preset": preset, "steps": 9, "guidance": 2}))
    assert own.size == Size(832, 480)
    assert own.shots[0].segments[0].sampler.steps == 9
    assert own.shots[0].segments[0].sampler.guidance == Guidance(2, 2)


def test_cut_and_fade_start_chains(write_board: Write) -> None:
    plan = planned(
        write_board(clips=[clip(), clip(), clip(transition="cut"), clip(), clip(transition={"fade": "0.2s"})])
    )
    assert [shot.starts_chain for shot in plan.shots] == [True, False, True, False, True]
    assert [shot.segments[0].overlap for shot in plan.shots] == [0, 1, 0, 1, 0]
    assert [shot.segments[0].first_frame for shot in plan.shots] == [0, -1, 0, -1, 0]
    assert [shot.fade for shot in plan.shots] == [0, 0, 0, 0, 3]
    assert plan.frames == 13 + 12 + 13 + 12 + 13 - 3


def test_a_chain_takes_its_own_reference_or_the_boards(write_board: Write, picture: Path) -> None:
    other = picture.with_name("other.png")
    other.write_bytes(picture.read_bytes())
    clips = [clip(), clip(transition="cut", reference="other.png"), clip(), clip(transition="cut")]
    plan = planned(write_board(clips=clips))
    assert [shot.segments[0].anchor.path.name for shot in plan.shots] == [
        "anchor.png", "other.png", "other.png", "anchor.png",
    ]  # fmt: skip


def test_seeds_count_within_the_chain(write_board: Write) -> None:
    clips = [clip(), clip(duration="2s"), clip(seed=7), clip(transition="cut"), clip()]
    plan = planned(write_board(seed=100, clips=clips))
    assert [shot.seed for shot in plan.shots] == [100, 142, 7, 100, 142]
    assert [segment.seed for segment in plan.shots[1].segments] == [142, 143, 144]


def test_segments_of_a_long_clip(write_board: Write) -> None:
    plan = planned(write_board(clips=[clip(), clip(duration="2s")]))
    long = plan.shots[1].segments
    assert [(s.index, s.frames, s.first_frame) for s in long] == [(0, 13, -1), (1, 13, 11), (2, 9, 23)]
    assert plan.shots[1].frames == 32


def test_prompts_are_joined_with_the_style(write_board: Write) -> None:
    plan = planned(write_board(style="35mm film", clips=[clip(prompt="  A cat.\n")]))
    assert plan.shots[0].prompt == "A cat. 35mm film"


def test_pro_overlaps_by_its_motion_latents(write_board: Write) -> None:
    engine = {"variant": "2.0-pro", "motion_latents": 2, "max_frames": 33}
    plan = planned(write_board(engine=engine))
    assert [shot.frames for shot in plan.shots] == [33, 24, 24]
    assert plan.shots[1].segments[0].first_frame == -9


PRO = {"variant": "2.0-pro", "motion_latents": 2, "max_frames": 33}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": PRO | {"max_frames": 9}}, "engine.max_frames: 9 is too few"),
        (
            {"engine": PRO, "clips": [clip(), clip(frames=9)]},
            'clips[1].frames (clip "clip-02"): 9 is too few',
        ),
        (
            {"engine": PRO, "clips": [clip(frames=5), clip()]},
            'clips[0] (clip "clip-01"): its last pass has 5 frames, too few',
        ),
        (
            {"clips": [clip(seed=1), clip(seed=1)]},
            'clips[1].seed (clip "clip-02"): seed 1 is used by clip clip-01',
        ),
        (
            {"clips": [clip(duration="2s"), clip(seed=1)]},
            'clips[1].seed (clip "clip-02"): seed 1 is used by clip clip-01',
        ),
        ({"seed": 2**63 - 1}, 'clips[1].seed (clip "clip-02"): the clip\'s seeds reach'),
        (
            {"clips": [clip(), clip(transition={"fade": 1})]},
            'clips[1].transition (clip "clip-02"): a fade of 1s is longer than clip clip-01 (0.86s)',
        ),
        ({"clips": [clip(), clip(transition={"fade": 0.01})]}, "shorter than half a frame"),
        (
            {"clips": [clip(), clip(transition={"dip": 0.09})]},
            'clips[1].transition.dip (clip "clip-02"): shorter than two frames; use a longer dip',
        ),
        (
            {"clips": [clip(frames=5), clip(transition={"dip": 1})]},
            'clips[1].transition (clip "clip-02"): half of a dip of 1s is longer than clip clip-01',
        ),
        (
            {"clips": [clip(), clip(transition={"dip": 2})]},
            'clips[1].transition (clip "clip-02"): half of a dip of 2s is longer than',
        ),
        ({"cut": {"fade_in": 3}}, "cut.fade_in: 3s is more than the film has; use 2.46s or less"),
        ({"cut": {"fade_out": "1h"}}, "cut.fade_out: 3600s is more than the film has; use 2.46s or less"),
        (
            {"clips": [clip(), clip(transition={"fade": 0.6}), clip(transition={"fade": 0.6})]},
            'clips[1].transition (clip "clip-02"): the fade into clip clip-02 (0.6s) and the one',
        ),
    ],
)
def test_what_cannot_be_planned(write_board: Write, changes: dict[str, Any], message: str) -> None:
    told = problems(write_board(**changes))
    assert any(message in line for line in told), told
    assert all(line.partition(":")[0].endswith("board.yaml") for line in told)


@pytest.mark.parametrize("fps", [15, 24, "24000/1001", 60, 7])
@pytest.mark.parametrize("kind", ["fade", "dip"])
def test_the_longest_transition_that_a_message_names_can_be_planned(
    write_board: Write, kind: str, fps: object
) -> None:
    def board(length: str) -> Path:
        return write_board(fps=fps, clips=[clip(frames=5), clip(transition={kind: length})])

    (message,) = problems(board("1m"))
    longest = re.search(r"; use ([\d.]+s) or less, or a longer clip$", message)
    assert longest, message
    assert planned(board(longest[1]))
    assert problems(board(f"{float(longest[1][:-1]) + 0.3}s"))


def test_repeated_seeds_are_allowed_on_request(write_board: Write) -> None:
    clips = [clip(seed=1), clip(seed=1), clip(transition="cut", seed=1)]
    assert planned(write_board(clips=clips, allow_repeated_seeds=True)).shots[1].seed == 1


def test_problems_come_all_at_once(write_board: Write, picture: Path) -> None:
    picture.with_name("broken.png").write_bytes(picture.read_bytes()[:100])
    clips = [clip(seed=1), clip(seed=1), clip(transition={"fade": 3}, reference="broken.png")]
    told = "\n".join(problems(write_board(clips=clips)))
    for part in ("clips[1].seed", "clips[2].transition", "clips[2].reference"):
        assert part in told


@pytest.mark.parametrize("fps", [15, 16, 24, 30, "24000/1001"])
def test_totals_are_exact(write_board: Write, fps: object) -> None:
    clips = [clip(duration="1.5s"), clip(duration="2.2s"), clip(duration="0.9s", transition={"fade": "0.3s"})]
    plan = planned(write_board(fps=fps, clips=clips))
    shown = sum(s.frames - s.overlap for shot in plan.shots for s in shot.segments)
    assert plan.frames == shown - plan.shots[2].fade
    assert plan.seconds == pytest.approx(plan.frames / plan.fps)


def test_a_board_has_a_limit_of_segments(write_board: Write) -> None:
    clips = [clip(duration="1h") for _ in range(1000)]
    told = problems(write_board(fps=240, engine={"max_frames": 5}, allow_repeated_seeds=True, clips=clips))
    assert len(told) == 1
    assert (
        'clips[0] (clip "clip-01"): up to here the film has 216000 segments, more than 20000; split the board'
        in told[0]
    )


def recording(folder: Path, name: str = "voice.wav", samples: int = 8000) -> str:
    """A recording of 8000 samples a second; returns its name."""
    with wave.open(str(folder / name), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\1\0" * samples)
    return name


def test_a_cut_without_a_word(write_board: Write) -> None:
    cut = planned(write_board(fps="24000/1001")).cut
    assert cut == Cut(
        codec="h264", crf=18, preset="medium", fps=Fraction(24000, 1001), burnt=True, soft=False,
        fade_in=0, fade_out=0, title_card=None, end_card=None, music=None,
    )  # fmt: skip
    av1 = planned(write_board(cut={"codec": "av1"})).cut
    assert (av1.crf, av1.preset) == (30, "8")
    own = planned(write_board(cut={"codec": "av1", "crf": 1, "preset": 0})).cut
    assert (own.crf, own.preset) == (1, "0")


@pytest.mark.parametrize(
    ("word", "burnt", "soft"), [("burn", 1, 0), ("srt", 0, 1), ("both", 1, 1), ("off", 0, 0)]
)
def test_where_captions_go(write_board: Write, word: str, burnt: int, soft: int) -> None:
    cut = planned(write_board(cut={"captions": word}, clips=[clip(caption="Hello")])).cut
    assert (cut.burnt, cut.soft) == (bool(burnt), bool(soft))


def test_cards_add_to_the_film(write_board: Write) -> None:
    cards = {"title_card": "Fog", "end_card": {"text": "The end", "duration": 0.001}}
    plan = planned(write_board(cut=cards))
    assert plan.cut.title_card == Card("Fog", 30)
    assert plan.cut.end_card == Card("The end", 1)  # a card is seen, however short
    assert plan.frames == 30 + 37 + 1


def test_dips_overlap_nothing(write_board: Write) -> None:
    plan = planned(write_board(clips=[clip(), clip(transition={"dip": "0.5s"}), clip()]))
    assert [shot.dip for shot in plan.shots] == [0, 8, 0]
    assert [shot.fade for shot in plan.shots] == [0, 0, 0]
    assert [shot.starts_chain for shot in plan.shots] == [True, True, False]
    assert plan.frames == 13 + 13 + 12


def test_fades_of_the_film_may_be_as_long_as_it(write_board: Write) -> None:
    cut = planned(write_board(fps=37, cut={"fade_in": 1, "fade_out": 1})).cut
    assert (cut.fade_in, cut.fade_out) == (37, 37)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(rate=st.fractions(15, 240, max_denominator=1001), milliseconds=st.integers(1, 3000))
def test_a_film_s_own_rate(write_board: Write, rate: Fraction, milliseconds: int) -> None:
    card = {"text": "Fog", "duration": f"{milliseconds}ms"}
    one = planned(write_board(cut={"title_card": card}))
    plan = planned(write_board(cut={"title_card": card, "fps": f"{rate.numerator}/{rate.denominator}"}))
    assert plan.cut.title_card == one.cut.title_card  # counted at the board's rate
    assert plan.frames == ceil(one.frames * rate / 15)
    assert 0 <= plan.frames / rate - Fraction(one.frames, 15) < 1 / rate


def test_recordings(write_board: Write, tmp_path: Path) -> None:
    name = recording(tmp_path)
    sound = {"path": name, "volume": 0.5, "start": "1.5s", "fade_in": 0.1, "fade_out": "200ms"}
    bed = {"path": name, "fade_in": 1, "fade_out": 2, "loop": False, "duck": 0}
    plan = planned(write_board(clips=[clip(voice=name, sounds=[name, sound]), clip()], cut={"audio": bed}))
    first, second = plan.shots
    heard = first.voices[0].recording
    assert (heard.path, heard.samples) == (tmp_path / name, 48_000)
    plain = Sound(heard, 1.0, Fraction(0), Fraction(0))
    own = Sound(heard, 0.5, Fraction(1, 10), Fraction(1, 5), Fraction(3, 2))
    assert (first.voices, first.sounds) == ((plain,), (plain, own))
    assert (second.voices, second.sounds) == ((), ())
    assert plan.cut.music == Music(Sound(heard, 1.0, Fraction(1), Fraction(2)), loop=False, duck=0)


def test_a_word_is_a_recording_with_all_defaults(write_board: Write, tmp_path: Path) -> None:
    recording(tmp_path)
    plan = planned(write_board(cut={"audio": "voice.wav"}))
    assert plan.cut.music is not None
    assert (plan.cut.music.loop, plan.cut.music.duck, plan.cut.music.sound.volume) == (True, 0.3, 1.0)
    assert isinstance(plan.cut.music.sound.recording, Recording)


def test_what_is_no_recording_is_told_at_its_place(write_board: Write, picture: Path) -> None:
    picture.with_name("empty.wav").touch()
    picture.with_name("text.mp3").write_text("la la la " * 400)
    clips = [clip(voice=picture.name), clip(sounds=["empty.wav", {"path": "text.mp3"}])]
    told = problems(write_board(clips=clips, cut={"audio": {"path": picture.name}}))
    places = [
        'clips[0].voice (clip "clip-01")',
        *(f'clips[1].sounds[{number}] (clip "clip-02")' for number in (0, 1)),
        "cut.audio",
    ]
    assert sorted(line.split(": ")[1] for line in told) == places
    for line in told:
        assert "sound" in line.split(": ", 2)[2], line


def test_captions_come_through(write_board: Write) -> None:
    plan = planned(write_board(clips=[clip(caption="مرحبا"), clip()]))
    assert [shot.caption for shot in plan.shots] == ["مرحبا", ""]
