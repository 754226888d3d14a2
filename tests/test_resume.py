"""Killed, interrupted, out of space, twice at once: the film ends as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

ANIMATIC = ("--engine", "animatic")
CLIPS = [{"prompt": f"Fog number {n} is drifting."} for n in range(5)]
CLIPS[3]["transition"] = "cut"


def launch(board: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from svi_story.cli import main; main()", "render", str(board)]
    return subprocess.Popen(
        [*command, *ANIMATIC, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture
def board(write_board: Write) -> Path:
    return write_board(clips=CLIPS)


@pytest.fixture
def undisturbed(board: Path, svi_story: Run) -> bytes:
    """The film's bytes when nothing goes wrong, made elsewhere."""
    assert svi_story("render", board, *ANIMATIC, "-o", "calm", "--cache", "calm/cache").code == 0
    return (board.parent / "calm/board.mp4").read_bytes()


def film_of(board: Path) -> Path:
    return board.parent / "renders/board.mp4"


def leftovers(board: Path) -> list[str]:
    """Files that a finished render should not leave behind."""
    kept = {"board.mp4", "board.json", ".cache"}
    return [path.name for path in film_of(board).parent.iterdir() if path.name not in kept]


def test_kill_9_at_any_moment_as_often_as_one_likes(board: Path, undisturbed: bytes) -> None:
    started = time.monotonic()
    code, _, err = finish(launch(board, "-o", "probe", "--cache", "probe/cache"))
    assert code == 0, err
    whole = time.monotonic() - started
    kills = 0
    for attempt in range(60):
        process = launch(board)
        if attempt:
            time.sleep(whole * (0.3 + 0.1 * (attempt % 7)))
        else:  # whatever else the machine does, once it is in the middle of something
            while not list(film_of(board).parent.glob(".cache/work/*")):
                assert process.poll() is None
                time.sleep(0.005)
        process.kill()
        killed = finish(process)[0] == -signal.SIGKILL
        kills += killed
        if not killed:
            break
        assert not film_of(board).exists() or film_of(board).read_bytes() == undisturbed
    code, _, err = finish(launch(board))
    assert code == 0, err
    assert kills > 0
    assert film_of(board).read_bytes() == undisturbed
    assert leftovers(board) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_at_once_and_says_how_to_go_on(
    board: Path, undisturbed: bytes, number: signal.Signals
) -> None:
    process = launch(board, "--json")
    assert process.stdout is not None
    for line in process.stdout:
        if '"segment_done"' in line:
            break
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 130
    assert "svi-story render" in err
    assert "Traceback" not in err
    assert not film_of(board).exists()
    code, _, err = finish(launch(board))
    assert code == 0, err
    assert film_of(board).read_bytes() == undisturbed


def test_two_renders_at_once_both_succeed(board: Path, undisturbed: bytes) -> None:
    both = [launch(board), launch(board)]
    for code, out, err in map(finish, both):
        assert code == 0, err
        assert out == "renders/board.mp4\n"
    assert film_of(board).read_bytes() == undisturbed
    assert leftovers(board) == []


class Faults:
    """Lets the n-th call of any of some functions fail, as on a full disk."""

    def __init__(self, fails_at: int) -> None:
        self.left = fails_at

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **options)

        return called


@pytest.mark.parametrize("start", [0, *(pytest.param(at, marks=pytest.mark.slow) for at in range(1, 8))])
def test_a_full_disk_at_any_write_is_a_clear_error_and_loses_nothing(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: int
) -> None:
    board = write_board(clips=CLIPS[2:4])
    assert svi_story("render", board, *ANIMATIC, "-o", "calm", "--cache", "calm/cache").code == 0
    calm = (tmp_path / "calm/board.mp4").read_bytes()
    for number in range(start + 1, 1000, 8):
        out = f"out-{number}"
        faults = Faults(number)
        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "rename", "mkdir", "link"):
                patch.setattr(os, name, faults.wrap(getattr(os, name)))
            ended = svi_story(
                *("render", board, *ANIMATIC, "-o", out, "--cache", f"{out}/cache", "--retries", 0)
            )
        if ended.code == 0:
            if faults.left > 0:
                break
            continue
        assert ended.code == 1, ended.err
        assert "No space left" in ended.err
        again = svi_story("render", board, *ANIMATIC, "-o", out, "--cache", f"{out}/cache")
        assert again.code == 0, again.err
        assert (tmp_path / out / "board.mp4").read_bytes() == calm
    assert number > start + 8


def test_a_forced_render_that_was_interrupted_goes_on_without_force(
    board: Path, undisturbed: bytes, svi_story: Run
) -> None:
    assert svi_story("render", board, *ANIMATIC).code == 0
    process = launch(board, "--force", "all", "--json")
    assert process.stdout is not None
    for line in process.stdout:
        if '"segment_done"' in line:
            break
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert "--force" not in err
    status = json.loads(svi_story("status", board, *ANIMATIC, "--json").out)["boards"][0]
    assert status["state"] == "outdated"
    assert 0 < status["to_render"] < len(CLIPS)
    ended = svi_story("render", board, *ANIMATIC, "--json")
    made = [
        event for line in ended.out.splitlines() if (event := json.loads(line))["event"] == "segment_done"
    ]
    assert len(made) == status["to_render"] + status["partial"]
    assert film_of(board).read_bytes() == undisturbed


def test_force_stays_within_what_is_made(board: Path, svi_story: Run) -> None:
    svi_story("render", board, *ANIMATIC)
    ended = svi_story("render", board, *ANIMATIC, "--force", "all", "--only", "clip-02", "--json")
    assert '"to_render": 2' in ended.out
    refused = svi_story("render", board, *ANIMATIC, "--force", "clip-05", "--only", "clip-02")
    assert refused.code == 2
    assert "--force clip-05: not among the clips that --only renders" in refused.err
