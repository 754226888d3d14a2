"""SVI in waves: few expert changes, the same films bit for bit, whatever is killed in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pytest
import svi_support as support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]
    Events = list[dict[str, Any]]

OPTIONS = ("--models", support.MODELS, "--dtype", "float32")
KILLED_AFTER_A_PHASE = """
import os, signal, sys, torch
torch.set_num_threads(1)
from svi_story.engines.svi.engine import Svi
real, calls = Svi.advance, 0

def advance(*args):
    global calls
    real(*args)
    calls += 1
    if calls == {calls}:
        os.kill(os.getpid(), signal.SIGKILL)

Svi.advance = advance
from svi_story.cli import main
main()
"""


KILLED_MEANWHILE = """
import os, signal, threading, torch
torch.set_num_threads(1)
from svi_story.engines.svi import engine
decode, guided, stepping = engine.Svi.decode, engine.guided, threading.Event()

def decode_meanwhile(*args):
    stepping.clear()
    assert stepping.wait(60)
    os.kill(os.getpid(), signal.{signal})
    yield from decode(*args)

def sample_meanwhile(*args):
    predict = guided(*args)
    def step(*inner):
        stepping.set()
        return predict(*inner)
    return step

engine.Svi.decode, engine.guided = decode_meanwhile, sample_meanwhile
from svi_story.cli import main
main()
"""


def write_boards(write_board: Write, tmp_path: Path, names: Iterable[str], **changes: Any) -> Path:
    """A folder of small boards, of which no two share a segment."""
    shutil.copy(support.DATA / "anchor.png", tmp_path / "anchor.png")
    engine = {"name": "svi", "variant": "2.0", "guidance": 2.0, "max_frames": 5, **changes.pop("engine", {})}
    clips = changes.pop("clips", 2)
    for name in names:
        write_board(
            f"storyboards/{name}.yaml",
            reference="../anchor.png",
            resolution="32x32",
            engine=engine,
            clips=[{"prompt": f"{name} {clip}"} for clip in range(clips)],
            **changes,
        )
    return tmp_path / "storyboards"


def events(out: str) -> Events:
    return [json.loads(line) for line in out.splitlines()]


def films(folder: Path) -> dict[str, bytes]:
    return {film.name: film.read_bytes() for film in folder.glob("*.mp4")}


@pytest.mark.parametrize(("count", "clips"), [(3, 2), pytest.param(12, 5, marks=pytest.mark.slow)])
def test_boards_change_experts_twice_a_wave(
    write_board: Write, svi_story: Run, tmp_path: Path, count: int, clips: int
) -> None:
    names = [f"b{n:02}" for n in range(count)]
    boards = write_boards(write_board, tmp_path, names, clips=clips, engine={"steps": 2, "guidance": 1})
    ended = svi_story("render", boards, *OPTIONS, "--memory", "offload", "--json")
    assert ended.code == 0, ended.err
    told = events(ended.out)
    came = Counter(each["model"] for each in told if each["event"] in ("model_loaded", "model_moved"))
    assert came["high"] == came["low"] == clips  # waves; clip by clip it would be count * clips
    runs = [model for model, _ in groupby(each["model"] for each in told if each["event"] == "phase_done")]
    assert runs == ["vae", "high", "low"] * clips
    assert sum(each["event"] == "segment_done" for each in told) == count * clips
    assert sum(each["event"] == "film_done" for each in told) == count


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["2.0", "2.0-pro"])
def test_waves_make_the_same_films_bit_for_bit_killed_between_phases_too(
    write_board: Write, svi_story: Run, tmp_path: Path, variant: str
) -> None:
    engine = {"steps": 4, "variant": variant, "max_frames": 9}
    boards = write_boards(write_board, tmp_path, ("a", "b"), engine=engine)
    undisturbed = ("--memory", "resident", "-o", "calm", "--cache", "calm/cache")
    calm = svi_story("render", boards, *OPTIONS, *undisturbed)
    assert calm.code == 0, calm.err
    command = ("render", str(boards), "--json", *map(str, OPTIONS), "--memory", "offload")
    first = killed(command, calls=3)  # both are encoded, one has had its high phase
    assert steps(first) == {"a": [1, 2], "b": []}
    second = killed(command, calls=4)
    assert steps(second) == {"a": [], "b": [1, 2]}
    last = svi_story(*command)
    assert last.code == 0, last.err
    assert steps(events(last.out)) == {"a": [3, 4], "b": [3, 4]}
    loaded = [each["model"] for each in events(last.out) if each["event"] == "model_loaded"]
    assert next(model for model in loaded if model in ("high", "low")) == "low"
    assert films(tmp_path / "renders") == films(tmp_path / "calm")


@pytest.mark.parametrize(
    ("signals", "clips"),
    [(("SIGKILL",), 2), pytest.param(("SIGINT", "SIGKILL", "SIGTERM"), 4, marks=pytest.mark.slow)],
)
def test_a_kill_while_one_is_decoded_and_the_next_one_sampled_changes_nothing(
    write_board: Write, svi_story: Run, tmp_path: Path, signals: tuple[str, ...], clips: int
) -> None:
    engine = {"steps": 4, "variant": "2.0-pro", "max_frames": 9, "guidance": 1}
    board = write_boards(write_board, tmp_path, ["a"], engine=engine, clips=clips)
    command = ("render", str(board), *map(str, OPTIONS))
    assert svi_story(*command, "-o", "calm", "--cache", "calm/cache").code == 0
    for name in signals:
        done = subprocess.run(
            [sys.executable, "-c", KILLED_MEANWHILE.format(signal=name), *command],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == (-signal.SIGKILL if name == "SIGKILL" else 130), done.stderr
        assert "Traceback" not in done.stderr
    last = svi_story(*command, "--json")
    assert last.code == 0, last.err
    assert films(tmp_path / "renders") == films(tmp_path / "calm")
    sampled = {each["clip"] for each in events(last.out) if each["event"] == "step_done"}
    assert sampled == {f"clip-{number:02}" for number in range(2, clips + 1)}, "the first one was sampled"


def killed(command: Iterable[str], calls: int) -> Events:
    """The events of a render that SIGKILLs itself after a number of phases."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_A_PHASE.format(calls=calls), *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return events(done.stdout)


def steps(told: Events) -> dict[str, list[int]]:
    """The steps of each board's first clip."""
    found: dict[str, list[int]] = {"a": [], "b": []}
    for each in told:
        if each["event"] == "step_done" and each["clip"] == "clip-01":
            found[each["board"].split("/")[-1].removesuffix(".yaml")].append(each["step"])
    return found
