"""Stopping a render from outside, and what is run when it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from svi_story.errors import InputError
from svi_story.events import BoardStarted, ClipDone, Event, JoinStarted, RunStarted, SegmentStarted, StepDone
from svi_story.render.runs import CONTROL, RunLog, StopRequested, request_stop, requested_stop, run_log

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    from svi_story.render.runs import Stop

    Run = Callable[..., Ended]
    Write = Callable[..., Path]

BOARD = Path("board.yaml")
STEP = StepDone(BOARD, "roof", 0, 1, 8)
STARTED = SegmentStarted(BOARD, "sea", 0, "k", 5)


def ignore(_event: Event) -> None:
    pass


def wait_for(what: Callable[[], Any]) -> Any:
    until = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


def opened(cache: Path, log: RunLog) -> Path:
    """The folder of a log that was started."""
    log(RunStarted(1, 2))
    wait_for((cache / "runs" / log.run / CONTROL).exists)
    return cache / "runs" / log.run


def logged(cache: Path, stop: Stop, *some: Event) -> list[Event]:
    """Request a stop of a run before these events; those that were reported."""
    seen: list[Event] = []
    with pytest.raises(StopRequested), run_log([cache], seen.append, []) as log:  # noqa: PT012
        request_stop(opened(cache, log), stop)
        wait_for(lambda: log.stop)
        for event in some:
            log(event)
    return [event for event in seen if event in some]


def test_after_the_current_clip_the_film_is_joined_but_no_other_segment_started(tmp_path: Path) -> None:
    joined = (ClipDone(BOARD, "roof"), JoinStarted(BOARD, BOARD, 3))
    assert logged(tmp_path, "clip", STEP, *joined, STARTED) == [STEP, *joined, STARTED]
    (path,) = tmp_path.glob("runs/*/events.jsonl")
    assert '"stopped"' in path.read_text("utf-8")


def test_now_is_at_the_next_event_at_the_latest(tmp_path: Path) -> None:
    assert logged(tmp_path, "now", STEP, STARTED) == [STEP]


def test_now_interrupts_once_however_many_events_other_threads_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread may be cleaning up already."""
    interrupts: list[type[BaseException]] = []
    monkeypatch.setattr("svi_story.render.runs.stop_main_thread", interrupts.append)
    with run_log([tmp_path], ignore, []) as log:
        request_stop(opened(tmp_path, log), "now")
        wait_for(lambda: interrupts)

        def report() -> None:
            for _ in range(5):
                log(STEP)

        decoder = Thread(target=report)
        decoder.start()
        decoder.join()
    assert interrupts == [StopRequested]


def test_only_the_user_of_the_render_can_stop_it(tmp_path: Path) -> None:
    with run_log([tmp_path], ignore, []) as log:
        folder = opened(tmp_path, log)
        control = folder / CONTROL
        assert control.stat().st_mode & 0o777 == 0o700
        control.chmod(0o770)
        (control / "stop").write_text("now", "utf-8")
        assert requested_stop(folder) is None
        with pytest.raises(InputError, match="another user"):
            request_stop(folder, "now")
        control.chmod(0o700)
        for odd in ("", "later", "x" * 100, "\udcff"):
            (control / "stop").write_bytes(odd.encode("utf-8", "surrogateescape"))
            assert requested_stop(folder) is None
        (control / "stop").unlink()
        os.mkfifo(control / "stop")
        assert requested_stop(folder) is None


def test_stop_says_which_runs_there_are(svi_story: Run, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    none = svi_story("stop", "--cache", cache)
    assert (none.code, "no render is running" in none.err) == (2, True)
    odd = svi_story("stop", "nope", "--cache", cache)
    assert (odd.code, "no render is running that uses this cache, and there is no file nope;" in odd.err) == (
        2,
        True,
    )
    named = svi_story("stop", tmp_path)
    assert (named.code, "name its cache" in named.err) == (2, False)
    with run_log([cache], ignore, []) as one, run_log([cache], ignore, []) as two:
        folders = [opened(cache, one), opened(cache, two)]
        wait_for(lambda: all((folder / "events.jsonl").stat().st_size for folder in folders))
        both = svi_story("stop", "--cache", cache)
        assert (both.code, one.run in both.err, two.run in both.err) == (2, True, True)
        assert svi_story("stop", two.run, "--cache", cache).code == 0
        assert (requested_stop(folders[0]), requested_stop(folders[1])) == (None, "clip")


def test_stop_takes_what_is_rendered(svi_story: Run, write_board: Write, tmp_path: Path) -> None:
    """From any working directory; a render of another board of the same project is left alone."""
    boards = [write_board(f"project/storyboards/{name}.yaml") for name in ("one", "two", "three")]
    cache = tmp_path / "project/renders/.cache"
    with run_log([cache], ignore, []) as one, run_log([cache], ignore, []) as two:
        folders = [opened(cache, one), opened(cache, two)]
        for log, board in zip((one, two), boards, strict=False):
            log(RunStarted(1, 1))
            log(BoardStarted(board, board.with_suffix(".mp4"), 1, 1, 1))
        wait_for(lambda: all("board_st" in (each / "events.jsonl").read_text("utf-8") for each in folders))
        other = svi_story("stop", boards[2])
        assert (other.code, one.run in other.err, str(boards[1]) in other.err) == (2, True, True)
        assert svi_story("stop", "project").code == 2  # both
        assert "does not exist" in svi_story("stop", "project/four.yaml").err
        assert svi_story("stop", boards[1]).code == 0
        assert (requested_stop(folders[0]), requested_stop(folders[1])) == (None, "clip")
        assert svi_story("stop", one.run, "project").code == 0
        assert requested_stop(folders[0]) == "clip"


@pytest.mark.parametrize("now", [[], pytest.param(["--now"], marks=pytest.mark.slow)])
def test_a_render_is_stopped_and_resumes(
    svi_story: Run, write_board: Write, tmp_path: Path, now: list[str]
) -> None:
    """The process is stopped and continued, so that it cannot end before it reads the request."""
    clips = [{"prompt": f"Clip {n} is drifting.", "duration": "3s"} for n in range(8)]
    board = write_board(resolution="320x192", clips=clips)
    words = [sys.executable, "-m", "svi_story", "render", str(board), "--engine", "animatic"]
    hook = "echo $SVI_STORY_RUN_OUTCOME > outcome"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([*words, "--on-done", hook], env=environment, stderr=subprocess.PIPE) as process:
        logs = tmp_path / "renders/.cache/runs"
        wait_for(lambda: any(b"segment_st" in path.read_bytes() for path in logs.glob("*/events.jsonl")))
        process.send_signal(signal.SIGSTOP)
        assert svi_story("stop", *now).code == 0
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"stopped, as requested" in err
    assert Path("outcome").read_text("utf-8") == "stopped\n"
    (path,) = logs.glob("*/events.jsonl")
    names = [json.loads(line)["event"] for line in path.read_bytes().splitlines()]
    assert now or 1 <= names.count("clip_done") < 8
    assert names[-1] == "run_ended"


def test_a_command_is_run_when_all_is_done(svi_story: Run, write_board: Write) -> None:
    board, bad = write_board(), write_board("bad.yaml", clips=[])

    def said(*words: object, code: int) -> str:
        names = ("OUTCOME", "DONE", "REFUSED", "FILMS")
        hook = f'echo "{" ".join(f"$SVI_STORY_RUN_{name}" for name in names)}" > said; exit 3'
        ended = svi_story("render", *words, "--engine", "animatic", "--on-done", hook)
        assert (ended.code, "ended with exit code 3" in ended.err) == (code, True)
        return Path("said").read_text("utf-8").strip()

    film = board.parent / "renders/board.mp4"
    assert said(board, bad, code=1) == f"failed 1 1 {film}"
    assert said(board, code=0) == f"done 1 0 {film}"
    assert said(bad, code=2) == "failed 0 1"
