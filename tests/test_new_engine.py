"""An engine of another package works in every command, and no other module knows any engine by name."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import av
import pytest

import svi_story

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Write = Callable[..., Path]

PACKAGE = Path(svi_story.__file__).parent
WITH_LIFE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from svi_story.enginespec import register
from life_engine.spec import SPEC
register(SPEC)
from svi_story.cli import main
main()
"""
ENGINES = ("svi", "animatic")
KNOW_WEIGHTS = ("cli/models.py", "render/doctor.py", "render/smoke.py")
"""What looks at the weights themselves, whichever engine a board names."""


def run(*words: object) -> str:
    """A command of the CLI with the engine registered; its standard output."""
    command = [sys.executable, "-c", WITH_LIFE, str(Path(__file__).parent), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def board(write_board: Write) -> Path:
    clips = [
        {"prompt": "Cells live.", "duration": 3},
        {"prompt": "Cells die.", "frames": 17},
        {"prompt": "Others live.", "frames": 17, "transition": "cut", "seed": 5},
    ]
    engine = {"name": "life", "cell": 4, "max_frames": 33}
    return write_board(resolution=None, engine=engine, clips=clips)


def test_a_board_is_planned_rendered_and_exported_with_its_grid_rate_and_overlap(board: Path) -> None:
    planned = json.loads(run("plan", board, "--json"))["boards"][0]
    contributes = [[segment["contributes"] for segment in clip["segments"]] for clip in planned["clips"]]
    assert contributes == [[33, 33 - 9, 25 - 9], [17 - 9], [17]]
    film = Path(run("render", board).strip())
    with av.open(film) as container:
        video = container.streams.video[0]
        assert (video.average_rate, video.width, video.height) == (Fraction(24), 128, 64)
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video)]
    assert len(frames) == 98
    assert any((one != other).any() for one, other in pairwise(frames))
    before = film.read_bytes()
    status = json.loads(run("status", board, "--json"))["boards"][0]
    assert (status["state"], status["cached"], status["to_render"]) == ("up to date", 5, 0)
    assert "segment_started" not in run("render", board, "--json")
    assert film.read_bytes() == before
    assert json.loads(run("review", board, "--json"))["engine"] == "life"
    for command in (("preview", board), ("export", board, "--to", "otio")):
        assert Path(run(*command).strip()).stat().st_size


def test_its_settings_reach_the_key(board: Path) -> None:
    film = Path(run("render", board).strip())
    before = film.read_bytes()
    board.write_text(board.read_text().replace("cell: 4", "cell: 8"))
    assert json.loads(run("status", board, "--json"))["boards"][0]["to_render"] == 5
    run("render", board)
    assert film.read_bytes() != before


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module outside the engines and their specifications."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(("engines/", "enginespec/")):
            yield name, ast.parse(path.read_text("utf-8"))


def test_no_module_compares_with_the_name_of_an_engine() -> None:
    """A name in the storyboard format's own examples is none of the program's decisions."""
    found = [
        f"{name}:{node.lineno}"
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in ENGINES and name != "storyboard/schema.py"
    ]
    assert found == []


def test_no_module_imports_one_engine_but_those_that_look_at_weights() -> None:
    found = [
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith(tuple(f"svi_story.engines.{engine}" for engine in ENGINES))
    ]
    assert set(found) <= set(KNOW_WEIGHTS)
