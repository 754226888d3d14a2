"""The takes of a clip in the review: side by side, by the same measures, with the command that picks each."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

ANIMATIC = ("--engine", "animatic")


def clips(**second: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"id": name, "prompt": f"The {name} turns.", "frames": 13} for name in "abc"
    ]
    found[1] |= second
    return found


def reviewed(svi_story: Run, board: Path) -> dict[str, Any]:
    ended = svi_story("review", board, *ANIMATIC, "--json")
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_takes_are_shown_side_by_side_with_what_picks_them(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    board = write_board(clips=clips(takes=3, pick=2))
    assert svi_story("render", board, *ANIMATIC).code == 0
    write_board(clips=clips(takes=4, pick=2))  # the fourth one is not rendered
    assert svi_story("review", board, *ANIMATIC).code == 0
    page = (tmp_path / "renders/board.review.html").read_text("utf-8")
    assert page.count('<section class="takes"') == 1
    assert re.findall(r"<h5>Take (\d)( <b>picked</b>)? <small>seed (\d+)</small>", page) == [
        ("1", "", "42"),
        ("2", " <b>picked</b>", "1000045"),
        ("3", "", "2000048"),
        ("4", "", "3000051"),
    ]
    commands = re.findall(r"<code>svi-story pick (\S+) (\S+) (\d)[^<]*</code>", page)
    assert commands == [(str(board), "b", number) for number in "134"]
    assert page.count("Not rendered yet.") == 1
    loops = re.findall(r'data-loop="data:image/webp;base64,([^"]+)"', page)
    frames = [Image.open(io.BytesIO(base64.b64decode(loop))) for loop in loops]
    assert [getattr(image, "n_frames", 1) for image in frames] == [6, 6, 6]


def test_a_take_is_measured_as_when_the_film_uses_it(write_board: Write, svi_story: Run) -> None:
    board = write_board(clips=clips(takes=2))
    assert svi_story("render", board, *ANIMATIC).code == 0
    before = reviewed(svi_story, board)
    assert [each["takes"] for each in before["clips"]][::2] == [[], []]
    first, second = before["clips"][1]["takes"]
    assert (first["picked"], second["picked"]) == (True, False)
    assert first["measures"] == before["clips"][1]["measures"]
    assert second["measures"] != first["measures"]
    write_board(clips=clips(takes=2, pick=2))
    assert svi_story("render", board, *ANIMATIC).code == 0
    after = reviewed(svi_story, board)["clips"][1]
    for measure in ("drift", "lab_mean", "lab_spread", "sharpness", "noise"):
        assert after["measures"][measure] == second["measures"][measure]


def test_takes_that_were_requested_on_the_command_line_are_shown(write_board: Write, svi_story: Run) -> None:
    board = write_board(clips=clips())
    assert svi_story("render", board, *ANIMATIC, "--only", "b", "--takes", 2).code == 0
    takes = reviewed(svi_story, board)["clips"][1]["takes"]
    assert [(each["number"], each["missing_segments"]) for each in takes] == [(1, 0), (2, 0)]
