"""What a terminal, a pipe and a log show of a render."""

from __future__ import annotations

import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.cells import cell_len

from svi_story.cli.console import Display, Lines
from svi_story.events import (
    BoardDelayed,
    BoardStarted,
    DeviceMemory,
    Event,
    FilmDone,
    FramesDone,
    Hashing,
    JoinStarted,
    Measured,
    ModelLoading,
    ModelWorking,
    PhaseDone,
    PhaseStarted,
    PromptsStarted,
    RunStarted,
    SegmentDone,
    SegmentReused,
    SegmentStarted,
    Starting,
    StepDone,
    TakesDone,
    TimeLeft,
    WorkerStarted,
)
from svi_story.render.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    Run = Callable[..., Ended]
    Write = Callable[..., Path]

A, B = Path("a.yaml"), Path("b.yaml")
ROOF = (A, "roof", 0)


def started(*boards: Path) -> list[Event]:
    films = [BoardStarted(board, board.with_suffix(".mp4"), 2, 2, 2) for board in boards]
    return [RunStarted(len(boards), 2 * len(boards)), *films]


def progress(*events: Event | float) -> Progress:
    """The progress after these events; a number is a pause in seconds."""
    found, at = Progress(), 1000.0
    for event in events:
        if isinstance(event, Event):
            found.add(event, at)
        else:
            at += event
    return found


@pytest.mark.parametrize(
    ("event", "now"),
    [
        (Hashing(Path("m/a.gguf"), 2**30, 2**31), "hashing a.gguf (1.0 GiB of 2.0 GiB)"),
        (PromptsStarted(6), "encoding 6 prompts"),
        (ModelWorking("text", 2, 6), "encoding prompts (2 of 6)"),
        (ModelWorking("low", 2**30, 2**31), "moving the low-noise expert (1.0 GiB of 2.0 GiB on the GPU)"),
        (ModelLoading("high", 2**30, 2**31), "loading the high-noise expert (1.0 GiB of 2.0 GiB)"),
        (Starting("the svi engine"), "starting the svi engine"),
        (SegmentStarted(*ROOF, "k", 81), "preparing clip roof"),
        (StepDone(A, "roof", 1, 12, 50), "sampling clip roof, segment 2 (step 12/50)"),
        (PhaseStarted(*ROOF, "decode"), "decoding clip roof"),
        (JoinStarted(A, Path("a.mp4"), 9), "joining a.mp4 (9 pieces)"),
    ],
)  # fmt: skip
def test_what_is_happening_in_words(event: Event, now: str) -> None:
    assert progress(*started(A), event).now == now


def test_the_vae_s_latents_are_counted_in_what_is_done() -> None:
    decoding = [PhaseStarted(*ROOF, "decode"), ModelWorking("vae", 1, 21), ModelWorking("vae", 2, 21)]
    assert progress(*started(A), *decoding).now == "decoding clip roof (2 of 21 latents)"


def test_the_bar_moves_with_the_steps_and_frames_of_a_segment() -> None:
    done = SegmentDone(A, "sea", 0, "k", 1.0, 0.5, 0.5)
    steps = [done, SegmentStarted(*ROOF, "k", 81), StepDone(*ROOF, 25, 50)]
    assert progress(*started(A), *steps).fraction == pytest.approx((1 + 0.45) / 2)
    decoded = FramesDone(*ROOF, 81, 81)
    assert progress(*started(A), *steps, StepDone(*ROOF, 50, 50), decoded).fraction == pytest.approx(1)


def test_seconds_per_step_without_the_loading_before_the_first() -> None:
    steps: list[Event | float] = [PhaseStarted(*ROOF, "high"), 300.0]
    for step in range(1, 5):
        steps += [StepDone(*ROOF, step, 50), 4.9]
    assert progress(*started(A), *steps).now == "sampling clip roof (step 4/50, 4.9 s/step)"
    again: list[Event | float] = [
        PhaseDone(*ROOF, "high", 4, 320.0),
        PhaseStarted(*ROOF, "low"),
        60.0,
        StepDone(*ROOF, 5, 50),
    ]
    assert "s/step" not in progress(*started(A), *steps, *again).now.replace("60.0 s/step", "")


def test_of_several_boards_the_current_one_is_named() -> None:
    assert progress(*started(A, B), StepDone(B, "x", 0, 1, 4)).now == "b.yaml: sampling clip x (step 1/4)"


def test_of_several_workers_each_is_shown() -> None:
    workers = [WorkerStarted(1, "h", 7), WorkerStarted(2, "h", 8)]
    found = progress(*started(A), *workers, StepDone(*ROOF, 3, 8), 1.0, StepDone(A, "sea", 0, 1, 8))
    assert found.now == "2 workers: roof step 3/8; sea step 1/8"
    frames = [FramesDone(B, "roof", 0, 18, 45), PhaseStarted(*ROOF, "high")]
    found = progress(*started(A, B), *workers, *frames)
    assert found.now == "2 workers: a/roof starting; b/roof decoding 18/45"


def test_a_board_that_is_begun_anew_counts_its_segments_once() -> None:
    done = SegmentDone(*ROOF, "k", 1.0, 0.5, 0.5)
    again = [BoardDelayed(A, "full"), started(A)[1], SegmentReused(*ROOF, "k")]
    assert progress(*started(A, B), done, *again).finished == 1


@pytest.mark.parametrize("width", [20, 40, 60, 80, 140])
def test_two_lines_that_fit_the_terminal(width: int) -> None:
    display = Display(lambda *_, **__: None)
    memory = DeviceMemory(61 * 2**30, 80 * 2**30)
    steps = [
        StepDone(A, "a clip with a long name, 猫", 0, 1, 50),
        memory,
        TimeLeft(4800.0, at_least=False),
    ]
    for event in (*started(A), SegmentDone(*ROOF, "k", 1.0, 0.5, 0.5), *steps):
        display(event)
    first, second = display.lines(display._progress.first + 725, width)
    assert max(map(cell_len, (first, second))) <= width
    assert first.startswith("a.yaml")
    assert "1/2 segments" in first
    assert ("1:20:00 left" in first) == (width >= 60)
    assert ("12:05 so far" in first) == (width >= 80)
    assert "━" in first or width < 60
    assert second.startswith("sampl")
    assert second.endswith("GPU 61.0/80.0 GiB") == (width >= 40)


def test_films_and_failures_stay_and_the_review_has_a_bar() -> None:
    kept: list[str] = []
    display = Display(lambda line, **_: kept.append(line))
    display(FilmDone(A, Path("a.mp4"), 10, 1.0, made=True))
    display(FilmDone(A, Path("a.clips/2-roof~take3.mp4"), 10, 1.0, made=True))
    display(TakesDone(A, 1))
    display(BoardDelayed(B, "the disk\nis full"))
    assert kept == [
        "a.yaml: done: 10 frames, 1.00 s",
        "a.yaml: 2-roof~take3.mp4: done: 10 frames, 1.00 s",
        "a.yaml: 1 more take rendered",
        "b.yaml: failed for now: the disk",
        "b.yaml: failed for now: is full",
    ]
    display(Measured(A, "clips", 2, 8))
    assert display.lines(0.0, 60)[0].endswith("2/8 clips")


def test_a_pipe_gets_a_line_for_each_board_and_segment(svi_story: Run, write_board: Write) -> None:
    err = svi_story("render", write_board(), "--engine", "animatic").err.splitlines()
    assert len(err) == 5
    assert "3 of 3 segments to render" in err[0]
    assert re.search(r"clip-02: done in [\d.]+ s \(2 of 3 segments, about \d:\d\d left\)", err[2])
    assert "board.yaml: done" in err[4]
    quiet = svi_story("render", write_board("other.yaml"), "--engine", "animatic", "--quiet")
    assert quiet.err == ""


def test_a_log_says_every_minute_what_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("svi_story.cli.console.time.monotonic", lambda: clock[0])
    lines = Lines()
    for event in started(A):
        lines(event)
    for second in range(0, 200, 10):
        clock[0] = 1000.0 + second
        lines(ModelLoading("high", second * 2**30 // 10, 20 * 2**30))
    assert capsys.readouterr().err.splitlines() == [
        "a.yaml: 2 of 2 segments to render (2 clips)",
        "loading the high-noise expert (7.0 GiB of 20.0 GiB)",
        "loading the high-noise expert (14.0 GiB of 20.0 GiB)",
    ]


def test_before_a_run_starts_the_clock_shows_that_it_is_alive() -> None:
    display = Display(lambda *_, **__: None)
    assert display.lines(display._started + 65, 60) == ["preparing  1:05 so far"]
    display(Hashing(Path("m/a-file-with-a-long-name.gguf"), 2**30, 2**31))
    (line,) = display.lines(display._started + 65, 40)
    assert line == "hashing a-file-with-a-l…  1:05 so far"


def test_verbose_is_a_line_for_each_phase_and_no_steps(svi_story: Run, write_board: Write) -> None:
    err = svi_story("render", write_board(), "--engine", "animatic", "--verbose").err
    assert err.count(": camera: 1 steps in") == 3
    assert err.count(": decode") == 3
    assert "step 1 of 1" not in err


@pytest.mark.parametrize("width", [60, pytest.param(140, marks=pytest.mark.slow)])
def test_a_terminal_shows_it(write_board: Write, width: int) -> None:
    board = write_board()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TERM": "xterm"}
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 10, width, 0, 0))
    words = [sys.executable, "-m", "svi_story", "render", str(board), "--engine", "animatic"]
    environment.pop("COLUMNS", None)
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:
                break
            if not part:
                break
            shown += part
        process.communicate(timeout=60)
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode("utf-8"))
    assert process.returncode == 0
    assert re.search(r"board\.yaml  [━╌]{8,40}  \d/3 segments", text)
    assert re.search(r"(decoding|preparing|encoding|joining)", text)
    assert max(len(line.rstrip("\r")) for line in re.split(r"[\r\n]+", text) if "segments" in line) <= width
    assert "board.yaml: done" in text
