"""SVI through the CLI: killed while sampling or decoding, in every memory mode, the film is the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import svi_support as support
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

STEPS = 7
"""One checkpoint, after the fifth."""
OPTIONS = ("--models", support.MODELS, "--dtype", "float32")
DYING = """
import json, os, signal, sys, torch
torch.set_num_threads(1)
import ftfy, transformers
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from svi_story.cli import main
from svi_story.engines.svi import sampler, vae

def render(function, fatal):
    module, name = function.split(".")
    real, calls = getattr(globals()[module], name), 0

    def dying(*args, **options):
        nonlocal calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    setattr(globals()[module], name, dying)
    main()

for number, (function, fatal) in enumerate(json.loads(sys.argv.pop(1))):
    process = os.fork()
    if process == 0:
        os.dup2(os.open(f"told-{number}", os.O_WRONLY | os.O_CREAT), 1)
        render(function, fatal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL, function
"""


@pytest.fixture
def board(write_board: Write, tmp_path: Path) -> Path:
    """Two chained clips of the tiny model."""
    shutil.copy(support.DATA / "anchor.png", tmp_path / "anchor.png")
    engine = {"name": "svi", "variant": "2.0-pro", "steps": STEPS, "guidance": 2.0, "max_frames": 9}
    clips = [{"id": name, "prompt": f"A {name} is drifting by.", "frames": 9} for name in ("boat", "cloud")]
    return write_board(reference="anchor.png", resolution="80x64", engine=engine, clips=clips)


def events(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def killed(board: Path, *calls: tuple[str, int]) -> list[list[dict[str, Any]]]:
    """The events of renders that SIGKILL themselves, each at the n-th call of a function of the engine.

    They are forks of one process, so that the libraries are imported once.
    """
    command = [sys.executable, "-c", DYING, json.dumps(calls), "render", str(board), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, OPTIONS)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return [events(Path(f"told-{number}").read_text("utf-8")) for number in range(len(calls))]


def steps_of(told: list[dict[str, Any]], clip: str) -> list[int]:
    return [each["step"] for each in told if each["event"] == "step_done" and each["clip"] == clip]


def test_killed_in_sampling_and_in_decoding_the_film_is_the_same(board: Path, svi_story: Run) -> None:
    calm = svi_story("render", board, *OPTIONS, "-o", "calm", "--cache", "calm/cache")
    assert calm.code == 0, calm.err
    film = board.parent / "renders/board.mp4"
    passes = 2  # a step is a positive and a negative pass

    first, second, third = killed(
        board,
        ("sampler._velocity", 6 * passes + 1),
        ("vae.decode", 1),
        ("sampler._velocity", 5 * passes + 2),
    )
    assert steps_of(first, "boat") == [1, 2, 3, 4, 5, 6]
    assert steps_of(second, "boat") == [6, 7]
    assert steps_of(third, "boat") == []
    assert steps_of(third, "cloud") == [1, 2, 3, 4, 5]
    assert not film.exists()

    last = svi_story("render", board, *OPTIONS, "--json", "--memory", "offload")
    assert last.code == 0, last.err
    assert steps_of(events(last.out), "cloud") == [6, 7]
    assert film.read_bytes() == (board.parent / "calm/board.mp4").read_bytes()
    work = board.parent / "renders/.cache/work"
    assert not any(work.iterdir())


def test_a_decode_without_memory_costs_no_sampling(
    board: Path, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory (a test)")

    with monkeypatch.context() as patch:
        patch.setattr("svi_story.engines.svi.vae.decode", full)
        failed = svi_story("render", board, *OPTIONS, "--json", "--retries", 0)
    assert failed.code == 1
    told = events(failed.out)
    assert steps_of(told, "boat") == list(range(1, STEPS + 1))
    (why,) = [each["message"] for each in told if each["event"] == "board_failed"]
    assert "memory ran out in the VAE at 80x64, in tiles and alone on the device" in why
    again = svi_story("render", board, *OPTIONS, "--json", "--only", "boat")
    assert again.code == 0, again.err
    assert steps_of(events(again.out), "boat") == []


def test_memory_is_an_option_of_render_and_plan_and_changes_no_key(board: Path, svi_story: Run) -> None:
    shown = svi_story("plan", board, *OPTIONS)
    assert shown.code == 0, shown.err
    assert [line.split(":")[0] for line in shown.out.splitlines() if line.startswith("--memory")] == [
        "--memory resident",
        "--memory offload",
        "--memory stream",
    ]
    alone = svi_story("plan", board, *OPTIONS, "--memory", "stream", "--json")
    every = svi_story("plan", board, *OPTIONS, "--json")
    (one,), (all_of_them,) = (json.loads(ended.out)["boards"] for ended in (alone, every))
    assert list(one["memory"]) == ["stream"]
    assert one["memory"]["stream"] == all_of_them["memory"]["stream"]
    assert one["clips"] == all_of_them["clips"]
    assert json.loads(svi_story("plan", board, "--json").out)["boards"][0]["memory"] == {}  # no weights
    wrong = svi_story("render", board, *OPTIONS, "--memory", "swap")
    assert wrong.code == 2
    assert "none of auto, resident, offload, stream" in wrong.err
