"""Progress bars: what they show of boards that are rendered together."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from rich.progress import Progress

from svi_story.cli.console import Bars
from svi_story.events import (
    BoardDelayed,
    BoardStarted,
    FilmDone,
    Hashing,
    RunStarted,
    SegmentDone,
    SegmentReused,
    SegmentStarted,
    StepDone,
)

if TYPE_CHECKING:
    from svi_story.events import Event

A, B = Path("a.yaml"), Path("b.yaml")


@pytest.fixture
def bars() -> Bars:
    return Bars(Progress(console=Console(file=io.StringIO(), force_terminal=False, width=200)))


def told(bars: Bars, *events: Event) -> list[tuple[str, float, float | None, bool]]:
    """The bars after these events: name, done, total, visible."""
    for event in events:
        bars(event)
    return [(each.description, each.completed, each.total, each.visible) for each in bars.progress.tasks]


def started(*boards: Path) -> list[Event]:
    films = [BoardStarted(board, board.with_suffix(".mp4"), 2, 2, 2) for board in boards]
    return [RunStarted(len(boards), 2 * len(boards)), *films]


def test_one_board_is_named(bars: Bars) -> None:
    assert told(bars, *started(A))[0] == ("a.yaml", 0, 2, True)


def test_segments_of_several_boards_count_together_and_take_turns(bars: Bars) -> None:
    assert told(bars, *started(A, B))[0] == ("all boards", 0, 4, True)
    steps = [StepDone(A, "one", 0, 1, 4), StepDone(B, "two", 0, 1, 4), StepDone(A, "one", 0, 2, 4)]
    for event, name in zip(steps, ("one/0", "two/0", "one/0"), strict=True):
        assert told(bars, SegmentStarted(A, "x", 0, "k", 5), event)[1] == (name, event.step, 4, True)
    done = SegmentDone(A, "one", 0, "k", 1.0, 0.5, 0.5)
    assert told(bars, done)[0] == ("all boards", 1, 4, True)
    assert not bars.progress.tasks[1].visible


def test_a_board_that_is_begun_anew_counts_its_segments_once(bars: Bars) -> None:
    done = SegmentDone(A, "one", 0, "k", 1.0, 0.5, 0.5)
    again = [BoardDelayed(A, "full"), started(A)[1], SegmentReused(A, "one", 0, "k")]
    assert told(bars, *started(A, B), done, *again)[0] == ("all boards", 1, 4, True)


def test_hashing_is_shown_while_it_lasts(bars: Bars) -> None:
    assert told(bars, Hashing(Path("models/big.safetensors"), 1, 2))[1] == ("big.safetensors", 1, 2, True)
    assert not told(bars, Hashing(Path("models/big.safetensors"), 2, 2))[1][3]


def test_films_and_failures_are_lines(bars: Bars) -> None:
    told(bars, FilmDone(A, Path("a.mp4"), 10, 1.0, made=True), BoardDelayed(B, "the disk\nis full"))
    file = bars.progress.console.file
    assert isinstance(file, io.StringIO)
    assert "a.mp4: done" in file.getvalue()
    assert "b.yaml: failed for now: is full" in file.getvalue()
