"""Run logs: what is written and read, how much, and that a log never stops a render."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from svi_story import events
from svi_story.event_json import as_json, from_json
from svi_story.events import Event, RunStarted, StepDone, Warned
from svi_story.render import runs
from svi_story.render.runs import RunLog, read_runs, run_log

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    from svi_story.render.runs import RunReport

    Run = Callable[..., Ended]
    Write = Callable[..., Path]

BOARD = Path("board.yaml")
STARTED = RunStarted(1, 2)


def ignore(_event: Event) -> None:
    pass


def lines(cache: Path) -> list[dict[str, Any]]:
    """What is written whole of the logs of a cache."""
    whole = (path.read_bytes().rpartition(b"\n")[0] for path in cache.glob("runs/*/events.jsonl"))
    return [json.loads(line) for text in whole for line in text.splitlines()]


def write_log(cache: Path, *timed: tuple[float, Event]) -> None:
    """The log of a run of this process; times are in seconds from now."""
    opened = events.RunOpened(*runs._this_process(), Path.cwd(), ("svi-story", "render"), "1")
    folder = cache / "runs/20200101-000000-abcdef"
    folder.mkdir(parents=True)
    text = [
        json.dumps({"time": time.time() + at, "run": folder.name, **as_json(event)}) + "\n"
        for at, event in ((-10_000, opened), *timed)
    ]
    (folder / "events.jsonl").write_text("".join(text), "utf-8")


def only_run(cache: Path) -> RunReport:
    (report,) = read_runs(cache)
    return report


def logged(cache: Path, *some: Event) -> None:
    with run_log([cache], ignore, ["svi-story", "render"]) as log:
        for event in (STARTED, *some):
            log(event)


@pytest.mark.parametrize("kind", [each for each in vars(events).values() if isinstance(each, type)])
def test_every_event_is_read_as_it_was_written(kind: type) -> None:
    if not issubclass(kind, Event) or kind is Event:
        return
    samples = {
        "Path": Path("a/b"),
        "str": "é\n",
        "int": 3,
        "float": 0.5,
        "bool": True,
        "tuple[str, ...]": ("a", "b"),
    }
    event = kind(**{field.name: samples[str(field.type)] for field in fields(kind)})
    found = from_json(json.loads(json.dumps(as_json(event))))
    assert found == event


@pytest.mark.parametrize("found", [{}, {"event": "other"}, {"event": 3}, {"event": "warned", "message": 3}])
def test_what_is_no_event_is_none(found: dict[str, Any]) -> None:
    assert from_json(found) is None


def test_a_render_is_logged_and_status_is_silent_about_a_good_one(svi_story: Run, write_board: Write) -> None:
    board = write_board()
    assert svi_story("render", board, "--engine", "animatic").code == 0
    cache = board.parent / "renders/.cache"
    found = lines(cache)
    names = [line["event"] for line in found]
    assert names[0] == "run_opened"
    assert names[-2:] == ["run_done", "run_ended"]
    assert names.count("segment_done") == 3
    assert len({line["run"] for line in found}) == 1
    assert all(abs(line["time"] - time.time()) < 600 for line in found)
    assert only_run(cache).state == "done"
    status = svi_story("status", board, "--engine", "animatic", "--json")
    assert json.loads(status.out)["runs"] == []


def test_a_run_whose_process_is_gone_died(
    svi_story: Run, write_board: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = write_board()
    cache = board.parent / "renders/.cache"
    log = RunLog([cache], ignore, ["svi-story", "render", "a b.yaml", "--force", "roof"])
    for event in (
        *(STARTED, events.TimeLeft(5000.0, at_least=False)),
        *(events.SegmentStarted(board, "roof", 0, "k", 5), StepDone(board, "roof", 0, 3, 8)),
    ):
        log(event)
    while len(lines(cache)) < 5:
        time.sleep(0.01)
    assert only_run(cache).state == "running"
    running = svi_story("status", board, "--engine", "animatic").out.splitlines()[-1]
    assert "(board.yaml): sampling clip roof (step 3/8); 0 of 2 segments; about 1:2" in running
    (path,) = cache.glob("runs/*/events.jsonl")
    text = path.read_text("utf-8")
    path.write_text(
        text.replace(f'"process": {os.getpid()}', '"process": 4194399') + '{"event": "step_do', "utf-8"
    )
    status = svi_story("status", board, "--engine", "animatic")
    assert "died (process 4194399" in status.out
    assert (
        "sampling clip roof (step 3/8); the same command resumes it: svi-story render 'a b.yaml'\n"
        in status.out
    )
    (run,) = json.loads(svi_story("status", board, "--engine", "animatic", "--json").out)["runs"]
    assert (run["state"], run["process"]) == ("died", 4194399)
    monkeypatch.chdir(board.parent / "renders")
    elsewhere = svi_story("status", board, "--engine", "animatic")
    assert f"the same command resumes it, in {board.parent}: svi-story render 'a b.yaml'\n" in elsewhere.out
    log.close()


@pytest.mark.parametrize(
    ("silent", "state"), [(60, "running"), (500, "running"), (700, "hanging"), (4000, "hanging")]
)
def test_a_run_hangs_that_is_silent_for_much_longer_than_usual(
    tmp_path: Path, silent: float, state: str
) -> None:
    """The usual pause between two steps is 130 seconds here."""
    steps = [StepDone(BOARD, "roof", 0, step, 8) for step in (1, 2)]
    write_log(tmp_path, (-silent - 130, steps[0]), (-silent, steps[1]))
    report = only_run(tmp_path)
    assert report.state == state
    assert (state == "hanging") == report.message.startswith("hangs: sampling clip roof (step 2/8")


def test_how_a_run_ended_is_the_last_line(tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), run_log([tmp_path], interrupt, []) as log:
        log(STARTED)
    assert lines(tmp_path)[-1]["ending"] == "interrupted"


def test_no_log_before_anything_is_rendered(tmp_path: Path) -> None:
    with run_log([tmp_path / "cache"], ignore, []) as log:
        log(Warned("nothing to do"))
    assert not (tmp_path / "cache").exists()


def test_a_log_is_bounded_and_frequent_events_are_thinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "LARGEST", 20_000)
    logged(tmp_path, *(StepDone(BOARD, "roof", 0, step, 5000) for step in range(5000)))
    assert sum(line["event"] == "step_done" for line in lines(tmp_path)) < 60
    logged(tmp_path / "2", *(Warned(f"{number}: {'x' * 500}") for number in range(1000)))
    (path,) = tmp_path.glob("2/runs/*/events.jsonl")
    assert path.stat().st_size < 21_000
    assert lines(tmp_path / "2")[-1]["event"] == "run_ended"


def test_old_runs_are_removed_and_running_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "KEPT_RUNS", 3)
    for number in range(6):
        folder = tmp_path / f"runs/2020010{number}-000000-abcdef"
        folder.mkdir(parents=True)
        (folder / "events.jsonl").write_text("{}\n", "utf-8")
        if number:  # the first one is running
            os.utime(folder / "events.jsonl", (1, 1))
    logged(tmp_path)
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert [name[:8] for name in names[:3]] == ["20200100", "20200104", "20200105"]
    assert len(names) == 4


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").write_text("in the way", "utf-8")
    seen: list[Event] = []
    with run_log([tmp_path], seen.append, []) as log:
        log(STARTED)
    assert seen == [STARTED]

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    logged(tmp_path / "full", Warned("one"))


def test_a_disk_that_does_not_answer_slows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, write = threading.Event(), os.write

    def wait(descriptor: int, data: bytes) -> int:
        answer.wait(60)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", wait)
    monkeypatch.setattr(runs, "WAITING", 100)
    monkeypatch.setattr(runs, "CLOSE_SECONDS", 0.05)
    seen: list[Event] = []
    with run_log([tmp_path], seen.append, []) as log:
        log(STARTED)
        for _ in range(1000):
            log(Warned("more than can wait"))
    assert len(seen) == 1001
    answer.set()


def test_odd_lines_of_a_log_are_skipped(tmp_path: Path) -> None:
    logged(tmp_path, Warned("good"))
    (path,) = tmp_path.glob("runs/*/events.jsonl")
    odd = [
        b"[" * 100_000,
        b"\xff",
        b"null",
        b'{"event": "warned", "message": "x", "time": "now"}',
        b'{"time": 1}',
    ]
    path.write_bytes(b"\n".join([*odd, path.read_bytes()]))
    report = only_run(tmp_path)
    assert [text for _, text in report.progress.messages] == ["good"]


def test_a_run_of_two_projects_is_shown_once(svi_story: Run, write_board: Write) -> None:
    boards = [write_board(f"{name}/{name}.yaml", reference="../anchor.png") for name in "ab"]
    for board in boards:
        (board.parent / "svi-story.toml").touch()
    caches = [board.parent / "renders/.cache" for board in boards]
    log = RunLog(caches, ignore, ["svi-story", "render", "a", "b"])
    for event in (RunStarted(2, 6), events.SegmentStarted(boards[0], "roof", 0, "k", 5)):
        log(event)
    while any(len(lines(cache)) < 3 for cache in caches):
        time.sleep(0.01)
    (run,) = svi_story("status", *boards, "--engine", "animatic").out.splitlines()[3:]
    assert run.count("a.yaml") == 1
    assert "0 of 6 segments" in run
