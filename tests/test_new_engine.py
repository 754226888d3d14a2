"""An engine of another package works in every command, and no other module knows any engine by name."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import av
import pytest
from life_engine.spec import SPEC, LifeOptions

import svi_story
from svi_story import enginespec
from svi_story.cache.store import Store
from svi_story.engines import implementation_of
from svi_story.enginespec import EngineOptions
from svi_story.events import SegmentDone
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.keys import with_keys
from svi_story.plan.resolve import plan_film
from svi_story.render.executor import carry_of
from svi_story.render.jobs import Job, Place
from svi_story.render.runner import RenderRequest, render_boards
from svi_story.settings import load_settings
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from svi_story.events import Event

    Write = Callable[..., Path]

PACKAGE = Path(svi_story.__file__).parent
WITH_LIFE = """
import io, json, sys
from contextlib import redirect_stdout
sys.path.insert(0, sys.argv[1])
from svi_story.enginespec import register
from life_engine.spec import SPEC
register(SPEC)
from svi_story.cli.app import app
answers = []
for words in json.loads(sys.argv[2]):
    with redirect_stdout(io.StringIO()) as out:
        try:
            app(words)
        except SystemExit as ended:
            if ended.code:
                raise
    answers.append(out.getvalue())
print(json.dumps(answers))
"""
ENGINES = ("svi", "animatic")
KNOW_WEIGHTS = ("cli/models.py", "render/doctor.py", "render/smoke.py")
"""What looks at the weights themselves, whichever engine a board names."""


def run(*commands: tuple[object, ...]) -> list[str]:
    """Commands of the CLI, in a process in which the engine is registered; the standard output of each."""
    given = json.dumps([[str(word) for word in words] for words in commands])
    command = [sys.executable, "-c", WITH_LIFE, str(Path(__file__).parent), given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


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
    plan, render, status, again, review, preview, export = run(
        ("plan", board, "--json"),
        ("render", board),
        ("status", board, "--json"),
        ("render", board, "--json"),
        ("review", board, "--json"),
        ("preview", board),
        ("export", board, "--to", "otio"),
    )
    planned = json.loads(plan)["boards"][0]
    contributes = [[segment["contributes"] for segment in clip["segments"]] for clip in planned["clips"]]
    assert contributes == [[33, 33 - 9, 25 - 9], [17 - 9], [17]]
    film = Path(render.strip())
    with av.open(film) as container:
        video = container.streams.video[0]
        assert (video.average_rate, video.width, video.height) == (Fraction(24), 128, 64)
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video)]
    assert len(frames) == 98
    assert any((one != other).any() for one, other in pairwise(frames))
    state = json.loads(status)["boards"][0]
    assert (state["state"], state["cached"], state["to_render"]) == ("up to date", 5, 0)
    assert "segment_started" not in again
    record = json.loads(film.with_suffix(".json").read_text("utf-8"))
    assert record["sha256"] == sha256(film.read_bytes()).hexdigest()
    assert json.loads(review)["engine"] == "life"
    for written in (preview, export):
        assert Path(written.strip()).stat().st_size


def test_its_settings_reach_the_key(board: Path) -> None:
    other = board.with_name("other.yaml")
    other.write_text(board.read_text().replace("cell: 4", "cell: 8"))
    one, status, another = run(("render", board), ("status", other, "--json"), ("render", other))
    assert json.loads(status)["boards"][0]["to_render"] == 5
    assert Path(another.strip()).read_bytes() != Path(one.strip()).read_bytes()


@pytest.mark.parametrize("engines", [("life", "animatic"), ("animatic", "life")], ids="-".join)
def test_a_chain_continues_from_one_engine_into_the_other(
    engines: tuple[str, str], write_board: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The format names one engine for a board; the runner takes the one that each segment names."""
    monkeypatch.setitem(enginespec._SPECS, "life", SPEC)
    path = write_board(
        clips=[{"prompt": f"Clip {n}.", "frames": 17} for n in (1, 2)], engine={"max_frames": 17}
    )
    cache = Path("cache")
    fingerprints = Fingerprints.load(cache / "memo.json")
    plan = plan_film(load(path), fingerprints, "animatic")
    options = {"life": LifeOptions(8), "animatic": plan.segments[0].options}
    shots = tuple(
        replace(
            shot,
            segments=tuple(
                replace(each, engine=engine, options=options[engine], board=path) for each in shot.segments
            ),
        )
        for shot, engine in zip(plan.shots, engines, strict=True)
    )
    plan = with_keys(
        replace(plan, shots=shots),
        lambda name: implementation_of(name).identity_of(EngineOptions(), fingerprints.file),
    )
    job = Job(Place(path, Path("film.mp4"), load_settings(Path.cwd()), cache), plan, EngineOptions())
    events: list[Event] = []
    outcomes = render_boards([job], [], RenderRequest(), fingerprints, events.append)
    assert [outcome.ending for outcome in outcomes] == ["done"], outcomes
    assert sum(isinstance(event, SegmentDone) for event in events) == 2
    store = Store(cache, events.append)
    first, second = (store.entry(segment.key) for segment in plan.segments)
    assert first is not None
    assert second is not None
    assert set(first.latents()) != set(second.latents()), "each engine's own latents"
    with av.open("film.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 17 + 16
    alone = replace(plan.shots[1].segments[0], parent=None)
    with implementation_of(engines[1]).create_engine(
        EngineOptions(), fingerprints.file, store.embedding, events.append
    ) as engine:
        carry = carry_of(first, 1)
        frames = list(engine.decode(alone, engine.sample(alone, carry, Unkept(), lambda *_: None)))
    with second.frames() as kept:
        assert all((kept[at] == frame).all() for at, frame in enumerate(frames))


class Unkept:
    """A checkpoint that keeps nothing."""

    def load(self) -> None:
        """Nothing."""

    def save(self, state: object) -> None:
        """Keep nothing."""


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
