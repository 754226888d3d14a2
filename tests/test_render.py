"""From board to film through the command line: what is made, what is not made again, and how it ends."""

from __future__ import annotations

import json
from fractions import Fraction
from threading import Event
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from test_film_cut import tone

from svi_story.cache.store import Store
from svi_story.cut.encode import encode_piece
from svi_story.cut.join import join
from svi_story.engines.animatic import Animatic
from svi_story.errors import RenderError
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.resolve import draft_of, plan_film
from svi_story.render import film
from svi_story.render.film import Film
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Ended
    from numpy.typing import NDArray

    from svi_story.cut.timeline import Piece
    from svi_story.plan.model import Segment

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

ANIMATIC = ("--engine", "animatic")


def clip(**fields: Any) -> dict[str, Any]:
    return {"prompt": "The fog is drifting.", **fields}


def events(ended: Ended) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ended.out.splitlines()]


def made(ended: Ended) -> list[str]:
    """The clips that a `--json` run made anew."""
    return [event["clip"] for event in events(ended) if event["event"] == "segment_done"]


def decoded(film: Path) -> tuple[list[NDArray[np.uint8]], list[Fraction]]:
    with av.open(str(film)) as container:
        frames = list(container.decode(video=0))
    pictures = [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in frames]
    times = [(frame.pts or 0) * Fraction(frame.time_base or 0) for frame in frames]
    return pictures, times


@pytest.mark.parametrize("fps", [15, 16, 24, 30, "24000/1001"])
def test_a_film_holds_every_frame_of_its_entries_once_and_in_order(
    write_board: Write, svi_story: Run, fps: object
) -> None:
    clips = [clip(frames=9), clip(duration="1.1s"), clip(frames=13, transition="cut"), clip(frames=5)]
    board = write_board(fps=fps, clips=clips, resolution="160x96", cut={"crf": 4})
    ended = svi_story("render", board, *ANIMATIC)
    assert ended.code == 0, ended.err
    plan = json.loads(svi_story("plan", board, *ANIMATIC, "--json").out)["boards"][0]
    wanted: list[NDArray[np.uint8]] = []
    for segment in (part for each in plan["clips"] for part in each["segments"]):
        entry = Store(board.parent / "renders/.cache", print).entry(segment["key"])
        assert entry is not None
        with entry.frames() as frames:
            assert len(frames) == segment["frames"]
            wanted += [frames[k] for k in range(segment["frames"] - segment["contributes"], len(frames))]
    shown, times = decoded(board.parent / "renders/board.mp4")
    assert len(shown) == len(wanted) == plan["frames"]
    assert times == [k / Fraction(plan["fps"]) for k in range(len(shown))]
    for k, picture in enumerate(shown):
        near = range(max(0, k - 3), min(len(wanted), k + 4))
        distances = {n: float(np.abs(picture.astype(int) - wanted[n]).mean()) for n in near}
        assert distances[k] == min(distances.values()), f"frame {k} shows another one: {distances}"


def test_a_second_render_makes_nothing(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    first = svi_story("render", board, *ANIMATIC)
    film = board.parent / "renders/board.mp4"
    assert first.code == 0, first.err
    assert first.out == "renders/board.mp4\n"
    before = film.stat().st_mtime_ns
    again = events(svi_story("render", board, *ANIMATIC, "--json"))
    assert [event["event"] for event in again] == ["run_started", "film_done", "run_done"]
    assert again[1]["made"] is False
    assert film.stat().st_mtime_ns == before


def test_editing_a_clip_makes_it_and_its_followers(write_board: Write, svi_story: Run) -> None:
    clips = [clip(prompt=f"Fog number {n} is drifting.") for n in range(4)]
    svi_story("render", write_board(clips=clips), *ANIMATIC)
    clips[2] = clip(prompt="The sun is coming out.")
    board = write_board(clips=clips)
    why = svi_story("plan", board, *ANIMATIC, "--why")
    change = '"Fog number 2 is drifting." became "The sun is coming out."'
    assert f"clip 3 (clip-03): prompt changed: {change}; clip 4 follows it" in why.out
    assert made(svi_story("render", board, *ANIMATIC, "--json")) == ["clip-03", "clip-04"]


@pytest.mark.parametrize(
    "change",
    [
        {"title": "Another"},
        {"cut": {"crf": 30}},
        {"clips": [clip(), clip(), clip(transition={"fade": "0.3s"})]},
        {"negative_prompt": "rain"},
        {"engine": {"max_frames": 13, "steps": 3, "shift": 2.0, "guidance": 1}},
    ],
)
def test_what_touches_no_frame_makes_no_frame(
    write_board: Write, svi_story: Run, change: dict[str, Any]
) -> None:
    clips = [clip(), clip(), clip(transition="cut")]
    svi_story("render", write_board(clips=clips), *ANIMATIC)
    ended = svi_story("render", write_board(**{"clips": clips, **change}), *ANIMATIC, "--json")
    assert ended.code == 0, ended.err
    assert made(ended) == []


def test_fades_shorten_the_film_and_blend_both_clips(write_board: Write, svi_story: Run) -> None:
    clips = [clip(), clip(transition={"fade": "0.4s"}), clip(transition={"fade": "0.4s"})]
    board = write_board(clips=clips, cut={"crf": 4})
    assert svi_story("render", board, *ANIMATIC).code == 0
    shown, _ = decoded(board.parent / "renders/board.mp4")
    assert len(shown) == 13 * 3 - 2 * 6


def test_the_preview_is_there_after_every_clip_and_gone_at_the_end(
    write_board: Write, svi_story: Run
) -> None:
    board = write_board()
    told = events(svi_story("render", board, *ANIMATIC, "--json"))
    previews = [event for event in told if event["event"] == "preview_done"]
    assert [event["frames"] for event in previews] == [13, 25]
    assert not (board.parent / previews[0]["preview"]).exists()


def test_the_film_tells_where_it_comes_from(write_board: Write, svi_story: Run) -> None:
    board = write_board(title="Fog & <rain>")
    svi_story("render", board, *ANIMATIC)
    with av.open("renders/board.mp4") as film:
        assert film.metadata["title"] == "Fog & <rain>"
        about = json.loads(film.metadata["comment"])
    record = json.loads((board.parent / "renders/board.json").read_text("utf-8"))
    assert about["storyboard_sha256"] == record["board_sha256"]
    assert about["tool"].startswith("svi-story ")
    assert [len(each["segments"]) for each in record["clips"]] == [1, 1, 1]
    assert set(record["versions"]) >= {"svi-story", "python", "numpy", "pillow", "moviepy", "av"}


def test_a_board_of_svi_is_refused_with_the_cure(write_board: Write, svi_story: Run) -> None:
    ended = svi_story("render", write_board())
    assert ended.code == 2
    assert "--engine animatic" in ended.err
    plan = svi_story("plan", write_board(), "--json")
    segment = json.loads(plan.out)["boards"][0]["clips"][0]["segments"][0]
    assert plan.code == 0
    assert (segment["key"], segment["path"], segment["state"]) == (None, None, None)
    assert "svi" in plan.err


def test_only_makes_a_clip_and_what_it_continues_from(write_board: Write, svi_story: Run) -> None:
    board = write_board(clips=[clip(), clip(transition="cut"), clip(), clip()])
    ended = svi_story("render", board, *ANIMATIC, "--only", "clip-03", "--json")
    assert made(ended) == ["clip-02", "clip-03"]
    assert not (board.parent / "renders/board.mp4").exists()
    film = board.parent / "renders/board.clips/3-clip-03.mp4"
    assert [path.name for path in film.parent.glob("*.mp4")] == [film.name]
    again = svi_story("render", board, *ANIMATIC, "--only", "3")
    assert (again.code, again.out.strip()) == (0, "renders/board.clips/3-clip-03.mp4")
    told = svi_story("render", board, *ANIMATIC, "--only", "3", "--force", "3").err.splitlines()
    assert told[0].endswith("board.yaml: 1 of 2 segments to render (2 clips)")
    assert told[-1].endswith("board.yaml: 3-clip-03.mp4: done: 12 frames, 0.80 s")
    missing = svi_story("render", board, *ANIMATIC, "--only", "nobody")
    assert missing.code == 2
    assert "1 (clip-01), 2 (clip-02), 3 (clip-03), 4 (clip-04)" in missing.err


@pytest.mark.parametrize(
    ("names", "clips"),
    [
        (["2"], ["2-clip-02"]),
        (["2-3"], ["2-clip-02", "3-4"]),
        (["clip-01-clip-02"], ["1-clip-01", "2-clip-02"]),
        (["clip-02-3", "1"], ["1-clip-01", "2-clip-02", "3-4"]),
        (["4"], ["3-4"]),
    ],
)
def test_clips_are_named_by_id_number_or_range(
    write_board: Write, svi_story: Run, names: list[str], clips: list[str]
) -> None:
    board = write_board(clips=[clip(), clip(), clip(id="4")])
    only = [word for name in names for word in ("--only", name)]
    ended = svi_story("render", board, *ANIMATIC, *only)
    assert ended.code == 0, ended.err
    assert ended.out.split() == [f"renders/board.clips/{name}.mp4" for name in clips]


def test_a_clip_alone_has_its_own_captions_and_sounds_and_no_cards(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    voice = tone(tmp_path / "voice.wav", 0.3)
    faded = clip(transition={"fade": "0.2s"}, caption="Sun", voice=voice)
    cut = {"title_card": "Fog", "fade_out": "0.2s", "captions": "both"}
    board = write_board(clips=[clip(caption="Rain"), faded], cut=cut)
    ended = svi_story("render", board, *ANIMATIC, "--only", "2")
    assert ended.code == 0, ended.err
    folder = tmp_path / "renders/board.clips"
    assert (folder / "2-clip-02.srt").read_text("utf-8").startswith("1\n00:00:00,000 --> ")
    with av.open(str(folder / "2-clip-02.mp4")) as film:
        assert film.streams.video[0].frames == json.loads((folder / "2-clip-02.json").read_text())["frames"]
        assert len(film.streams.audio) == 1
    whole = svi_story("render", board, *ANIMATIC, "--json")
    assert made(whole) == ["clip-01"], "what --only rendered is used"
    (folder / "2-clip-02.mp4").write_bytes(b"mine")
    refused = svi_story("render", board, *ANIMATIC, "--only", "2")
    assert refused.code == 2
    assert "2-clip-02.mp4" in refused.err


def test_a_draft_is_a_film_beside_the_film(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    clips = [clip(guidance=7, steps=90), clip()]
    board = write_board(clips=clips, resolution="160x96", engine={"steps": 90, "shift": 3})
    assert svi_story("render", board, *ANIMATIC).code == 0
    ended = svi_story("render", board, *ANIMATIC, "--draft")
    assert (ended.code, ended.out.strip()) == (0, "renders/board.draft.mp4")
    record = json.loads((tmp_path / "renders/board.draft.json").read_text("utf-8"))
    assert (record["width"], record["height"]) == (80, 48)
    draft = draft_of(load(board))
    plan = plan_film(draft, Fingerprints(tmp_path / "memo.json"))
    samplers = {shot.segments[0].sampler for shot in plan.shots}
    assert [(each.steps, each.shift, each.guidance.high) for each in samplers] == [(4, 8.0, 1.5)]
    assert json.loads((tmp_path / "renders/board.json").read_text("utf-8"))["width"] == 160
    assert "up to date" in svi_story("render", board, *ANIMATIC, "--draft", "-v").err


@pytest.mark.parametrize(
    ("name", "clips"), [("clip-02", ["clip-02"]), ("all", ["clip-01", "clip-02", "clip-03"])]
)
def test_force_makes_entries_again_and_keeps_the_old(
    write_board: Write, svi_story: Run, name: str, clips: list[str]
) -> None:
    board = write_board()
    svi_story("render", board, *ANIMATIC)
    film = (board.parent / "renders/board.mp4").read_bytes()
    assert made(svi_story("render", board, *ANIMATIC, "--force", name, "--json")) == clips
    assert (board.parent / "renders/board.mp4").read_bytes() == film
    aside = board.parent / "renders/.cache/set-aside"
    assert len(list(aside.iterdir())) == len(clips)


@pytest.mark.parametrize("file", ["frames.avi", "latents.safetensors", "entry.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_a_damaged_entry_is_found_quarantined_and_rendered_again(
    write_board: Write, svi_story: Run, file: str, damage: str
) -> None:
    board = write_board(clips=[clip(), clip()])
    svi_story("render", board, *ANIMATIC)
    film = board.parent / "renders/board.mp4"
    before = film.read_bytes()
    victim = next((board.parent / "renders/.cache/entries").rglob(file))
    whole = victim.read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 1
    if damage == "remove":
        victim.unlink()
    else:
        victim.write_bytes({"flip": bytes(broken), "truncate": whole[:-7], "empty": b""}[damage])
    film.unlink()
    ended = svi_story("render", board, *ANIMATIC)
    assert ended.code == 0
    assert "warning" in ended.err
    assert film.read_bytes() == before
    assert next((board.parent / "renders/.cache/entries").rglob("frames.avi")).stat().st_size > 0


def test_a_film_that_was_changed_is_kept_and_joined_again_when_it_is_moved_away(
    write_board: Write, svi_story: Run
) -> None:
    board = write_board()
    svi_story("render", board, *ANIMATIC)
    film = board.parent / "renders/board.mp4"
    before = film.read_bytes()
    film.write_bytes(before[:-1] + b"x")
    ended = svi_story("render", board, *ANIMATIC)
    assert ended.code == 2
    assert "this was changed since svi-story wrote it; move it away" in ended.err
    assert film.read_bytes() == before[:-1] + b"x"
    film.rename(film.with_name("mine.mp4"))
    ended = svi_story("render", board, *ANIMATIC, "--json")
    assert made(ended) == []
    assert film.read_bytes() == before


def test_status_tells_how_far_a_film_is(write_board: Write, svi_story: Run) -> None:
    board = write_board()

    def state() -> dict[str, Any]:
        boards: list[dict[str, Any]] = json.loads(svi_story("status", board, *ANIMATIC, "--json").out)[
            "boards"
        ]
        return boards[0]

    assert (state()["state"], state()["to_render"]) == ("missing", 3)
    svi_story("render", board, *ANIMATIC, "--only", "clip-01")
    assert (state()["cached"], state()["to_render"]) == (1, 2)
    svi_story("render", board, *ANIMATIC)
    assert (state()["state"], state()["cached"]) == ("up to date", 3)
    write_board(title="Another")
    assert state()["state"] == "outdated"


def test_a_folder_in_the_place_of_the_preview(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    (tmp_path / "renders/board.partial.mp4").mkdir(parents=True)
    board = write_board()
    ended = svi_story("render", board, *ANIMATIC)
    assert ended.code == 0
    assert "nothing to watch yet" in ended.err
    assert svi_story("render", board, *ANIMATIC).code == 0


def test_boards_with_the_same_pictures_encode_each_once_and_blame_no_other_process(
    write_board: Write, svi_story: Run
) -> None:
    boards = [write_board(f"{name}.yaml", clips=[clip(frames=9)] * 3) for name in "abcd"]
    ended = svi_story("render", *boards, *ANIMATIC, "--json")
    assert ended.code == 0, ended.err
    kinds = [each["event"] for each in events(ended)]
    assert (kinds.count("piece_done"), kinds.count("warned")) == (3, 0)


def test_what_is_not_encoded_any_more_joins_no_partial_film(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, failed = Event(), Event()

    def encode(piece: Piece, *args: Any) -> None:
        assert piece.clip == "clip-01" or failed.wait(60)
        encode_piece(piece, *args)

    def join_partial(*args: Any) -> int:
        shown.set()
        return join(*args)

    def decode(self: Animatic, segment: Segment, latents: Any) -> Iterator[Any]:
        if segment.clip == "clip-08":
            assert shown.wait(60)
            raise RenderError("the disk is full")
        return really_decode(self, segment, latents)

    def cancel(self: Film) -> None:
        really_cancel(self)
        failed.set()

    really_decode, really_cancel = Animatic.decode, Film.cancel
    monkeypatch.setattr(film, "encode_piece", encode)
    monkeypatch.setattr(film, "join", join_partial)
    monkeypatch.setattr(Animatic, "decode", decode)
    monkeypatch.setattr(Film, "cancel", cancel)
    ended = svi_story("render", write_board(clips=[clip(frames=9)] * 8), *ANIMATIC, "--json")
    assert ended.code == 1
    kinds = [each["event"] for each in events(ended)]
    assert kinds.count("piece_done") == kinds.count("preview_done") == 3, "the first, and one in each thread"
