"""`svi-story review`: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from review_films import at, job_of, level, pan, plant, put, scene_in

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest
    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

ANIMATIC = ("--engine", "animatic")
PAGE = Path("renders/board.review.html")


def test_a_rendered_board_gets_a_page_beside_its_film(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    assert svi_story("render", board, *ANIMATIC).code == 0
    ended = svi_story("review", board, *ANIMATIC)
    assert (ended.code, ended.out) == (0, f"{PAGE}\n"), ended.err
    assert ended.err == ""
    html = PAGE.read_text("utf-8")
    assert 'src="./board.mp4"' in html
    assert "No warnings" in html  # and whether it degrades cannot be told: it is too short


def test_the_film_has_one_length_everywhere(write_board: Write, svi_story: Run) -> None:
    """Where its rate is not the board's, and with cards."""
    board = write_board(cut={"fps": 30, "title_card": {"text": "Fog", "duration": "1s"}})
    assert svi_story("render", board, *ANIMATIC).code == 0
    (planned,) = json.loads(svi_story("plan", board, *ANIMATIC, "--json").out)["boards"]
    found = json.loads(svi_story("review", board, *ANIMATIC, "--json").out)
    assert (found["film_frames"], found["film_fps"]) == (planned["frames"], "30")
    assert found["fps"] == "15"
    assert svi_story("review", board, *ANIMATIC).code == 0
    assert f"<span>{planned['frames']} frames</span> <span>30 fps</span>" in PAGE.read_text("utf-8")
    film = json.loads(svi_story("review", "renders/board.mp4", "--json").out)
    assert (film["film_frames"], film["frames"], film["fps"]) == (planned["frames"], planned["frames"], "30")


def test_the_reviews_of_a_board_and_of_its_film_replace_each_other(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    board = write_board()
    assert svi_story("render", board, *ANIMATIC).code == 0
    for what in (board, "renders/board.mp4", board):
        ended = svi_story("review", what, *(ANIMATIC if what == board else ()))
        assert (ended.code, ended.out) == (0, f"{PAGE}\n"), ended.err


def test_warnings_do_not_fail(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    board = write_board(reference=scene_in(tmp_path))
    plant(board, at(3, level(0))(pan(60, (64, 64), 0.001)), "animatic")
    ended = svi_story("review", board, *ANIMATIC, "--json")
    assert ended.code == 0
    answer = json.loads(ended.out)
    assert [each["kind"] for each in answer["warnings"]] == ["black"]
    assert "1 warning" in ended.err
    assert not PAGE.exists()


def test_nothing_rendered_is_an_error_that_says_so(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    ended = svi_story("review", board, *ANIMATIC)
    assert (ended.code, ended.out) == (2, "")
    assert "nothing of it was rendered yet" in ended.err
    assert "svi-story render" in ended.err
    assert not PAGE.exists()


def test_without_weights_the_reason_is_reported(write_board: Write, svi_story: Run) -> None:
    ended = svi_story("review", write_board(), "--models", "nowhere")
    assert ended.code == 2
    assert "nowhere" in ended.err


def test_folders_and_bad_boards_are_refused(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_board(f"storyboards/{name}.yaml")
    assert svi_story("review", tmp_path / "storyboards", *ANIMATIC).code == 2
    ended = svi_story("review", write_board("bad.yaml", clips=[]), *ANIMATIC)
    assert ended.code == 2
    assert "bad.yaml" in ended.err
    assert svi_story("review", tmp_path / "none.yaml", *ANIMATIC).code == 2


def test_half_of_a_film_is_reviewed(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    put(job_of(board, "animatic").segments[0], pan(13, (64, 64), 0.001))
    ended = svi_story("review", board, *ANIMATIC)
    assert ended.code == 0, ended.err
    html = PAGE.read_text("utf-8")
    assert "<video" not in html
    assert "Not rendered yet: 2 of 3 clips" in html


def test_an_outdated_film_is_named_so(write_board: Write, svi_story: Run) -> None:
    assert svi_story("render", write_board(), *ANIMATIC).code == 0
    ended = svi_story("review", write_board(title="Another"), *ANIMATIC)
    assert ended.code == 0, ended.err
    assert "not the one that is planned now" in PAGE.read_text("utf-8")


def test_a_damaged_entry_is_missing_and_reported(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    job = plant(board, pan(60, (64, 64), 0.001), "animatic")
    frames = next(Path("renders/.cache/entries").rglob(f"{job.segments[2].key}/frames.avi"))
    data = bytearray(frames.read_bytes())
    data[len(data) // 2] ^= 255
    frames.chmod(0o644)
    frames.write_bytes(data)
    ended = svi_story("review", board, *ANIMATIC)
    assert ended.code == 0, ended.err
    assert "damaged" in ended.err
    assert "the next render replaces it" in ended.err
    assert "Not rendered yet: 1 of 3 clips" in PAGE.read_text("utf-8")


def test_a_place_that_cannot_be_written_is_reported(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = write_board()
    plant(board, pan(60, (64, 64), 0.001), "animatic")
    Path("films").write_text("in the way")
    ended = svi_story("review", board, *ANIMATIC, "-o", "films")
    assert (ended.code, ended.err) == (2, "films: is not a folder; name one with -o\n")


def test_the_command_that_helps_has_the_same_options(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    board = write_board(reference=scene_in(tmp_path))
    plant(board, at(16, level(0))(pan(60, (64, 64), 0.001)), "animatic")
    Path("renders/.cache").rename("my cache")
    ended = svi_story("review", board, *ANIMATIC, "-o", "films", "--cache", "my cache", "--dtype", "float32")
    assert ended.code == 0, ended.err
    options = "-o films --cache &#39;my cache&#39; --engine animatic --dtype float32 --force clip-02</code>"
    assert f"svi-story render {board} {options}" in Path("films/board.review.html").read_text("utf-8")
