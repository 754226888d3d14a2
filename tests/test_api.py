"""The Python interface returns what the commands print, and prints nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from svi_story.api import InputError, plan, render, status, takes, validate

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    from svi_story.events import Event

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

QUICK: dict[str, Any] = {
    "reference": "../anchor.png",
    "engine": {"max_frames": 5},
    "lint": {"ignore": ["cropped-reference"]},  # its message repeats the options of a command
    "clips": [{"prompt": "The fog is lifting.", "frames": 5}],
}


def test_the_example_of_the_documentation_runs(
    write_board: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write_board("storyboards/one.yaml", **QUICK)
    write_board("storyboards/two.yaml", **{**QUICK, "clips": []})
    page = (Path(__file__).parents[1] / "docs/python.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "docs/python.md", "exec"), {})
    shown = capsys.readouterr()
    assert shown.err == ""
    problem, planned, refused, film = shown.out.splitlines()
    assert problem.startswith("storyboards/two.yaml:")
    assert planned == "renders/one.mp4 5 0 of 1 segments are cached"
    assert (film, refused) in {("renders/one.mp4", problem), (problem, "renders/one.mp4")}
    assert Path("renders/one.mp4").stat().st_size > 0


def test_it_returns_what_the_commands_print(write_board: Write, svi_story: Run) -> None:
    board = write_board("storyboards/one.yaml", **QUICK)
    events: list[Event] = []
    (outcome,) = render(board, engine="animatic", output="films", report=events.append)
    assert (outcome.ending, outcome.films) == ("done", (Path("films/one.mp4"),))
    assert events
    flags = ("--engine", "animatic", "-o", "films", "--json")
    found = plan(str(board), why=True, engine="animatic", output="films").summary.model_dump(mode="json")
    assert found == json.loads(svi_story("plan", board, "--why", *flags).out)
    states = status("storyboards", engine="animatic", output=Path("films")).summary.model_dump(mode="json")
    assert states["boards"][0]["state"] == "up to date"
    assert states == json.loads(svi_story("status", "storyboards", *flags).out)
    (clip,) = takes(board, "1", engine="animatic", output="films").clips
    assert [(take.number, take.state) for take in clip.takes] == [(1, "cached")]
    (outcome,) = render(board, only=["1"], takes=2, engine="animatic", output="films")
    assert [film.name for film in outcome.films] == ["1-clip-01.mp4", "1-clip-01~take2.mp4"]
    listed = takes(board, engine="animatic", output="films").model_dump(mode="json")
    printed = json.loads(svi_story("takes", board, *flags).out)
    for clip in (*listed["clips"], *printed["clips"]):
        for take in clip["takes"]:
            assert take.pop("command").startswith("svi-story pick")  # the CLI's repeats its options
    assert listed == printed
    assert len(listed["clips"][0]["takes"]) == 2
    with pytest.raises(InputError, match="has no clip nobody"):
        takes(board, "nobody", engine="animatic")
    (checked,) = validate(board)
    assert checked.plan
    assert checked.plan.frames == 5
    (outcome,) = render(board, only=["clip-01"], engine="animatic")
    assert [film.name for film in outcome.films] == ["1-clip-01.mp4"]


@pytest.mark.parametrize(
    ("options", "what"),
    [({"engine": "anmatic"}, "did you mean"), ({"dtype": "int3"}, "is none of"), ({"memry": "x"}, "memory")],
)
def test_wrong_options_are_errors(write_board: Write, options: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        plan(write_board(), **options)
