"""The finished film through the command line: cards, captions, black, rates; and what a change costs."""

from __future__ import annotations

import json
import subprocess
import time
import wave
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

from svi_story.cut.captions import caption_over, card
from svi_story.cut.ffmpeg import check_encoder, ffmpeg_path
from svi_story.cut.frames import PieceFrames
from svi_story.errors import RenderError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

    from conftest import Ended
    from numpy.typing import NDArray

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

ANIMATIC = ("--engine", "animatic")
SIZE = "160x96"


def clip(**fields: Any) -> dict[str, Any]:
    return {"prompt": "The fog is drifting.", "frames": 9, **fields}


def rendered(svi_story: Run, board: Path) -> list[dict[str, Any]]:
    ended = svi_story("render", board, *ANIMATIC, "--json")
    assert ended.code == 0, ended.err
    return [json.loads(line) for line in ended.out.splitlines()]


def encoded(told: list[dict[str, Any]]) -> list[str]:
    return [event["clip"] for event in told if event["event"] == "piece_done"]


def frames_of(film: Path) -> NDArray[np.int64]:
    with av.open(str(film)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


def film_of(svi_story: Run, board: Path) -> NDArray[np.int64]:
    told = rendered(svi_story, board)
    shown = frames_of(board.parent / "renders/board.mp4")
    assert len(shown) == told[-2]["frames"]
    return shown


def written(rate: str) -> int | str:
    return int(rate) if rate.isdigit() else rate


def far(some: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.abs(some.astype(int) - other).mean())


def test_cards_come_before_and_after_the_clips(write_board: Write, svi_story: Run) -> None:
    cut = {"crf": 4, "title_card": {"text": "Fog", "duration": "0.4s"}, "end_card": "The end"}
    board = write_board(clips=[clip(), clip()], resolution=SIZE, cut=cut)
    film = film_of(svi_story, board)
    assert len(film) == 6 + 17 + 30
    for frame in film[:6]:
        assert far(frame, card("Fog", 160, 96)) < 3
    for frame in film[-30:]:
        assert far(frame, card("The end", 160, 96)) < 3
    assert all(far(frame, card("Fog", 160, 96)) > 20 for frame in film[6:-30])


def test_two_equal_cards_may_have_two_lengths(write_board: Write, svi_story: Run) -> None:
    cut = {"title_card": {"text": "Fog", "duration": "1s"}, "end_card": {"text": "Fog", "duration": "0.2s"}}
    board = write_board(clips=[clip()], resolution=SIZE, cut=cut)
    assert len(film_of(svi_story, board)) == 15 + 9 + 3


def test_a_caption_is_there_from_the_first_frame_of_its_clip_to_the_last(
    write_board: Write, svi_story: Run
) -> None:
    clips = [
        clip(),
        {"prompt": "Rain is falling.", "duration": "1.1s", "caption": "Rain"},
        clip(transition="cut"),
        clip(caption="Sun"),
    ]
    cut = {"crf": 4}
    bare = film_of(svi_story, write_board(clips=clips, resolution=SIZE, cut={**cut, "captions": "off"}))
    film = film_of(svi_story, write_board(clips=clips, resolution=SIZE, cut=cut))
    rain, sun = range(9, 9 + 16), range(34, 42)
    assert len(film) == len(bare) == 42
    for number, (frame, plain) in enumerate(zip(film, bare, strict=True)):
        text = "Rain" if number in rain else "Sun" if number in sun else ""
        due = caption_over(text, 160, 96).over(plain.astype(np.uint8)) if text else plain
        assert far(frame, due) < 3, f"frame {number}"
        if text:
            assert far(frame[60:], plain[60:]) > 2, f"frame {number} lacks its caption"


def test_in_a_fade_the_later_clips_caption_is_read(write_board: Write, svi_story: Run) -> None:
    clips = [clip(caption="Rain"), clip(transition={"fade": "0.2s"}, caption="Sun")]
    cut = {"crf": 4}
    bare = film_of(svi_story, write_board(clips=clips, resolution=SIZE, cut={**cut, "captions": "off"}))
    film = film_of(svi_story, write_board(clips=clips, resolution=SIZE, cut=cut))
    assert len(film) == 15
    for number in range(6, 9):
        due = caption_over("Sun", 160, 96).over(bare[number].astype(np.uint8))
        assert far(film[number], due) < 3


def test_the_film_comes_from_black_goes_through_it_and_ends_in_it(write_board: Write, svi_story: Run) -> None:
    clips = [clip(frames=13), clip(frames=13, transition={"dip": "0.4s"})]
    plain = [{**each, "transition": "cut"} if "transition" in each else each for each in clips]
    bare = film_of(svi_story, write_board(clips=plain, resolution=SIZE, cut={"crf": 4}))
    cut = {"crf": 4, "fade_in": "0.4s", "fade_out": "0.2s"}
    film = film_of(svi_story, write_board(clips=clips, resolution=SIZE, cut=cut))
    assert len(film) == len(bare) == 26
    level = np.ones(26)
    level[:6] *= np.arange(6) / 6
    level[10:13] *= np.arange(2, -1, -1) / 3
    level[13:16] *= np.arange(3) / 3
    level[23:] *= np.arange(2, -1, -1) / 3
    for number in range(26):
        assert far(film[number], np.round(bare[number] * level[number])) < 4, f"frame {number}"
    for number in (0, 12, 13, 25):
        assert film[number].max() < 8, "black"


@pytest.mark.parametrize(
    ("fps", "rate"), [("15", "24"), ("15", "30"), ("24000/1001", "30000/1001"), ("16", "60")]
)
def test_another_rate_repeats_frames(write_board: Write, svi_story: Run, fps: str, rate: str) -> None:
    clips = [clip(), clip(), clip(transition={"fade": "0.2s"})]
    bare = film_of(svi_story, write_board(clips=clips, resolution=SIZE, fps=written(fps), cut={"crf": 4}))
    board = write_board(clips=clips, resolution=SIZE, fps=written(fps), cut={"crf": 4, "fps": written(rate)})
    film = film_of(svi_story, board)
    times = Fraction(rate) / Fraction(fps)
    assert len(film) == ceil(len(bare) * times)
    for number, frame in enumerate(film):
        source = int(number / times)
        near = {k: far(frame, bare[k]) for k in range(max(source - 2, 0), min(source + 3, len(bare)))}
        assert near[source] == min(near.values()), f"frame {number}: {near}"
    plan = json.loads(svi_story("plan", board, *ANIMATIC, "--json").out)["boards"][0]
    assert (plan["frames"], plan["fps"]) == (len(film), str(rate))
    with av.open("renders/board.mp4") as container:
        assert container.streams.video[0].average_rate == Fraction(rate)


def test_the_board_may_ask_for_av1(write_board: Write, svi_story: Run) -> None:
    clips = [clip(), clip(frames=5), clip(transition={"fade": "0.2s"})]
    bare = film_of(svi_story, write_board(clips=clips, resolution=SIZE, cut={"crf": 4}))
    cut = {"codec": "av1", "crf": 10, "preset": 12}
    film = film_of(svi_story, write_board(clips=clips, resolution=SIZE, cut=cut))
    assert len(film) == len(bare)
    for number, frame in enumerate(film):
        near = {k: far(frame, bare[k]) for k in range(max(number - 2, 0), min(number + 3, len(bare)))}
        assert near[number] == min(near.values()), f"frame {number}: {near}"
    with av.open("renders/board.mp4") as container:
        assert container.streams.video[0].codec_context.name in ("libdav1d", "av1")


def test_an_ffmpeg_without_the_encoder_is_told() -> None:
    with pytest.raises(RenderError, match="no encoder libnothing; write `codec: h264`"):
        check_encoder("libnothing")


@pytest.mark.parametrize(
    ("before", "after", "again"),
    [
        ({}, {"title": "Another"}, []),
        ({2: {"caption": "Rain"}}, {2: {"caption": "Sun"}}, ["clip-03"]),
        ({}, {2: {"caption": "Sun"}}, ["clip-03"]),
        ({3: {"caption": "Rain"}}, {3: {"caption": "Sun"}}, ["clip-04", "clip-04"]),  # and the fade into it
        ({}, {"cut": {"title_card": "Fog"}}, ["(title card)"]),
        ({"cut": {"title_card": "Fog"}}, {"cut": {"title_card": "Mist"}}, ["(title card)"]),
        ({}, {"cut": {"fade_in": "0.3s"}}, ["clip-01"]),
        ({}, {"cut": {"fade_out": "0.3s"}}, ["clip-05"]),
        ({}, {4: {"transition": {"dip": "0.4s"}}}, ["clip-04", "clip-05"]),
        ({}, {"cut": {"captions": "off"}}, []),
        ({2: {"caption": "Rain"}}, {2: {"caption": "Rain"}, "cut": {"captions": "off"}}, ["clip-03"]),
        ({}, {"cut": {"fps": 30}}, ["clip-01", "clip-02", "clip-03", "clip-04", "clip-04", "clip-05"]),
    ],
)
def test_a_change_of_the_cut_encodes_what_it_touches_and_renders_nothing(
    write_board: Write, svi_story: Run, before: dict[Any, Any], after: dict[Any, Any], again: list[str]
) -> None:
    def board(changes: dict[Any, Any]) -> Path:
        clips = [clip(), clip(), clip(), clip(transition={"fade": "0.2s"}), clip(transition="cut")]
        clips = [{**each, **changes.get(number, {})} for number, each in enumerate(clips)]
        fields = {name: value for name, value in changes.items() if isinstance(name, str)}
        return write_board(clips=clips, resolution=SIZE, **fields)

    rendered(svi_story, board(before))
    told = rendered(svi_story, board(after))
    assert sorted(encoded(told)) == sorted(again), "two pieces at a time: the shorter may be done first"
    assert not [event for event in told if event["event"] == "segment_done"]


def test_words_that_no_font_shows_are_told(write_board: Write, svi_story: Run) -> None:
    board = write_board(
        clips=[clip(caption="a \U000f0000 b")], cut={"end_card": "End \U000f0001"}, resolution=SIZE
    )
    ended = svi_story("render", board, *ANIMATIC)
    assert ended.code == 0
    assert "caption of clip-01: no font on this machine can show (U+F0000)" in ended.err
    assert "(end card): no font on this machine can show (U+F0001)" in ended.err
    quiet = svi_story("render", write_board(clips=[clip(caption="a \U000f0000 b")], cut={"captions": "off"}))
    assert "U+F0000" not in quiet.err


def test_the_last_clip_may_be_eaten_by_its_fade_and_captioned(write_board: Write, svi_story: Run) -> None:
    clips = [clip(frames=13), clip(transition={"fade": "0.6s"}, caption="Sun")]
    board = write_board(clips=clips, resolution=SIZE, cut={"fade_out": "0.6s", "end_card": "End"})
    assert len(film_of(svi_story, board)) == 13 + 30


def tone(path: Path, seconds: float, hertz: float = 440.0) -> str:
    """A sine as 16-bit WAV at 44.1 kHz, mono; returns its name."""
    times = np.arange(int(seconds * 44_100)) / 44_100
    samples = (np.sin(2 * np.pi * hertz * times) * 20_000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(44_100)
        file.writeframes(samples.tobytes())
    return path.name


def heard(film: Path) -> NDArray[np.float32]:
    """The film's sound as the bundled ffmpeg plays it: samples x 2, 48 kHz."""
    command = [ffmpeg_path(), "-v", "error", "-i", str(film), "-f", "f32le", "-ac", "2", "-ar", "48000", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, "<f4").reshape(
        -1, 2
    )


@pytest.mark.parametrize(("fps", "rate"), [("15", "15"), ("24000/1001", "24000/1001"), ("16", "60")])
def test_music_and_voice_end_with_the_picture_and_start_with_their_clips(
    write_board: Write, svi_story: Run, tmp_path: Path, fps: str, rate: str
) -> None:
    clips = [clip(), clip(voice=tone(tmp_path / "voice.wav", 0.3, 1000)), clip()]
    cut = {"title_card": "Fog", "fps": written(rate)}
    board = write_board(clips=clips, resolution=SIZE, fps=written(fps), cut=cut)
    frames = len(film_of(svi_story, board))
    sound = heard(tmp_path / "renders/board.mp4")
    assert len(sound) == round(frames / Fraction(rate) * 48_000)
    card = round(2 * float(Fraction(fps))) / Fraction(fps)
    start = int((card + 9 / Fraction(fps)) * 48_000)
    loud = np.flatnonzero(np.abs(sound[:, 0]) > 0.1)
    assert abs(loud[0] - start) < 2 * 48_000 / Fraction(rate)
    assert abs(loud[-1] - loud[0] - 0.3 * 48_000) < 480
    music = write_board(
        clips=clips, resolution=SIZE, fps=written(fps), cut={**cut, "audio": tone(tmp_path / "bed.wav", 1.1)}
    )
    told = rendered(svi_story, music)
    assert not encoded(told), "changing the music encodes no picture"
    assert [event["event"] for event in told if event["event"] == "sound_done"] == ["sound_done"]
    sound = heard(tmp_path / "renders/board.mp4")
    assert len(sound) == round(frames / Fraction(rate) * 48_000)
    assert np.abs(sound[-2000:]).max() > 0.2, "it loops to the end"
    again = rendered(svi_story, music)
    assert again[-2]["made"] is False


def test_sound_that_cannot_be_read_starts_nothing(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    (tmp_path / "voice.wav").write_bytes(b"RIFF is all there is")
    ended = svi_story("render", write_board(clips=[clip(voice="voice.wav")]), *ANIMATIC)
    assert ended.code == 2
    assert "clips[0].voice" in ended.err
    assert not (tmp_path / "renders/.cache/entries").exists()


@pytest.mark.parametrize(("captions", "burnt", "soft"), [("srt", False, True), ("both", True, True)])
def test_captions_are_a_track_and_a_file_where_asked(
    write_board: Write, svi_story: Run, tmp_path: Path, captions: str, burnt: bool, soft: bool
) -> None:
    clips = [clip(), clip(caption="Rain & <sun>"), clip(caption="雨")]
    off = film_of(svi_story, write_board(clips=clips, resolution=SIZE, cut={"crf": 4, "captions": "off"}))
    board = write_board(clips=clips, resolution=SIZE, cut={"crf": 4, "captions": captions})
    film = film_of(svi_story, board)
    assert (far(film[12, 60:], off[12, 60:]) > 2) == burnt
    with av.open("renders/board.mp4") as container:
        assert len(container.streams.subtitles) == soft
    beside = tmp_path / "renders/board.srt"
    assert beside.read_text("utf-8").startswith("1\n00:00:00,600 --> 00:00:01,133\nRain & ")
    assert rendered(svi_story, board)[-2]["made"] is False
    beside.unlink()
    assert rendered(svi_story, board)[-2]["made"] is True
    assert beside.exists(), "what belongs to the film comes back"


def test_captions_changed_by_hand_are_kept_and_ours_go_when_unwanted(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    beside = tmp_path / "renders/board.srt"

    def render(caption: str, captions: str) -> Ended:
        board = write_board(clips=[clip(caption=caption)], resolution=SIZE, cut={"captions": captions})
        return svi_story("render", board, *ANIMATIC)

    render("Rain", "srt")
    render("Sun", "srt")
    assert "Sun" in beside.read_text("utf-8")
    render("Sun", "burn")
    assert not beside.exists()
    render("Sun", "srt")
    beside.write_text("mine", "utf-8")
    assert "was changed by hand and is kept" in render("Snow", "srt").err
    render("Snow", "burn")
    assert beside.read_text("utf-8") == "mine"


def test_a_clip_that_fades_away_as_it_begins_keeps_its_voice(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    voice = tone(tmp_path / "voice.wav", 0.3, 1000)
    clips = [clip(voice=voice, caption="Rain"), clip(transition={"fade": "0.6s"}, caption="Sun")]
    board = write_board(clips=clips, resolution=SIZE, cut={"captions": "both"})
    assert "[hurried-text]" in svi_story("plan", board, *ANIMATIC).err
    film_of(svi_story, board)
    assert np.flatnonzero(np.abs(heard(tmp_path / "renders/board.mp4")[:, 0]) > 0.1)[0] < 500


def test_black_belongs_to_the_clips_and_not_to_the_cards(write_board: Write, svi_story: Run) -> None:
    cut = {"crf": 4, "title_card": {"text": "Fog", "duration": "0.4s"}, "end_card": "End"}
    bare = film_of(svi_story, write_board(clips=[clip(frames=13)], resolution=SIZE, cut=cut))
    cut |= {"fade_in": "0.4s", "fade_out": "0.2s"}
    film = film_of(svi_story, write_board(clips=[clip(frames=13)], resolution=SIZE, cut=cut))
    level = np.ones(len(film))
    level[6:12] = np.arange(6) / 6
    level[16:19] = np.arange(2, -1, -1) / 3
    for number in range(len(film)):
        assert far(film[number], np.round(bare[number] * level[number])) < 4, f"frame {number}"


def test_words_without_room_end_in_an_ellipsis_and_are_told(write_board: Write, svi_story: Run) -> None:
    board = write_board(clips=[clip(caption="rain and " * 33)])
    ended = svi_story("render", board, *ANIMATIC)
    assert ended.code == 0
    assert "caption of clip-01: 297 characters have no room in 64x64" in ended.err


def test_a_kill_between_record_and_captions_is_mended(
    write_board: Write, svi_story: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "renders/board.srt"

    def board(caption: str) -> Path:
        return write_board(clips=[clip(caption=caption)], resolution=SIZE, cut={"captions": "srt"})

    rendered(svi_story, board("Rain"))
    with monkeypatch.context() as patch:
        patch.setattr("svi_story.render.record.Captions.write", lambda *_: None)
        rendered(svi_story, board("Sun"))
    assert "Rain" in beside.read_text("utf-8")
    rendered(svi_story, board("Sun"))
    assert "Sun" in beside.read_text("utf-8")


def test_another_recording_under_the_same_name_is_another_film(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    board = write_board(clips=[clip()], resolution=SIZE, cut={"audio": tone(tmp_path / "bed.wav", 1.0, 220)})
    rendered(svi_story, board)
    before = heard(tmp_path / "renders/board.mp4")
    tone(tmp_path / "bed.wav", 1.0, 880)
    told = rendered(svi_story, board)
    assert told[-2]["made"] is True
    assert not encoded(told)
    assert np.abs(heard(tmp_path / "renders/board.mp4") - before).max() > 0.1


def test_frames_of_one_piece_at_a_time_are_read(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads encode, but memory and open files are those of one."""
    clips = [{"prompt": f"clip {number}", "frames": 13} for number in range(4)]
    rendered(svi_story, write_board(clips=clips, resolution=SIZE))
    active: list[int] = []
    most = []

    class Counted(PieceFrames):
        def __enter__(self) -> Self:
            active.append(0)
            time.sleep(0.05)  # in which another thread would begin
            most.append(len(active))
            return super().__enter__()

        def __exit__(self, *error: Any) -> None:
            active.pop()
            super().__exit__(*error)

    monkeypatch.setattr("svi_story.cut.encode.PieceFrames", Counted)
    told = rendered(svi_story, write_board(clips=clips, resolution=SIZE, cut={"crf": 30}))
    assert len(encoded(told)) == 4
    assert most == [1] * 4
