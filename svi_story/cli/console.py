"""Reporters: what happens, shown as progress bars, as lines, as JSON, or hardly at all."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.cli.terminal import answer_json, complain, drop_output, shorten
from svi_story.errors import RenderError, on_one_line
from svi_story.event_json import as_json
from svi_story.events import (
    BoardDelayed,
    BoardFailed,
    BoardRefused,
    BoardStarted,
    BundleOpened,
    ClipReviewed,
    Event,
    FilmDone,
    FramesDone,
    Hashing,
    RunStarted,
    SegmentDone,
    SegmentReused,
    SegmentStarted,
    StepDone,
    Warned,
    WorkerLost,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.progress import Progress, TaskID

    from svi_story.events import Reporter


def fail(event: Event) -> None:
    """Show failures only."""
    if isinstance(event, BoardFailed | BoardRefused):
        tell(event)


def warn(event: Event) -> None:
    """Show what went wrong or may, and how a bundle is made; nothing else."""
    if isinstance(event, BoardDelayed | BoardFailed | BoardRefused | BundleOpened | Warned | WorkerLost):
        tell(event)


def tell(event: Event) -> None:
    """Show everything, a line each."""
    complain(*lines_of(event))


def lines_of(event: Event) -> tuple[str, ...]:
    """An event for people: one line, but for a board that is refused, which may have many faults."""
    return event.problems if isinstance(event, BoardRefused) else (str(event),)


def to_json(event: Event) -> None:
    """Give an event as a line of JSON on standard output."""
    answer_json(as_json(event))


class JsonLines:
    """Gives every event as a line of JSON on standard output.

    Where that cannot be written the work goes on without, and fails in the end.
    """

    def __init__(self) -> None:
        self.error: OSError | None = None

    def __call__(self, event: Event) -> None:
        """Give one event."""
        if self.error is None:
            try:
                to_json(event)
            except OSError as error:
                drop_output()
                self.error = error

    def check(self) -> None:
        """Raises RenderError when an event could not be given."""
        if self.error:
            what = "not every event could be written; what was rendered is kept"
            raise RenderError(f"standard output: {self.error.strerror}: {what}")


@contextmanager
def reporter(*, as_json: bool, quiet: bool, verbose: bool) -> Iterator[Reporter]:
    """The reporter that fits what the user asked for and where standard error goes."""
    if as_json:
        events = JsonLines()
        yield events
        events.check()
    elif quiet:
        yield fail
    elif verbose:
        yield tell
    elif sys.stderr.isatty():
        with bars() as report:
            yield report
    else:
        yield warn


@contextmanager
def bars() -> Iterator[Reporter]:
    """Progress bars: all segments, and the one under way."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bars(progress)


@dataclass
class Bars:
    """Turns events into the movement of two bars and a line per finished film."""

    progress: Progress

    def __post_init__(self) -> None:
        self.run = self._bar("segments")
        self.segment = self._bar("steps")
        self._boards = 0
        self._done: set[tuple[Path, str, int]] = set()
        """Segments, each once: a board that is begun anew meets them again."""

    def _bar(self, unit: str) -> TaskID:
        return self.progress.add_task("", total=None, visible=False, unit=unit)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case RunStarted():
                self._boards = event.boards
                self._start(self.run, "all boards", event.segments)
            case BoardStarted() if self._boards == 1:
                self._start(self.run, event.board.name, event.segments)
            case SegmentStarted():
                self._start(self.segment, f"{event.clip}/{event.segment}", None)
            case StepDone() | FramesDone() | Hashing():
                self._move(event)
            case SegmentDone() | SegmentReused():
                self._done.add((event.board, event.clip, event.segment))
                self.progress.update(self.segment, visible=False)
                self.progress.update(self.run, completed=len(self._done))
            case ClipReviewed():
                name, done = shorten(event.board.name, 30), event.done
                self.progress.update(self.run, description=name, completed=done, total=event.clips)
                self.progress.update(self.run, visible=True, unit="clips")
            case (
                BundleOpened()
                | FilmDone()
                | Warned()
                | WorkerLost()
                | BoardDelayed()
                | BoardFailed()
                | BoardRefused()
            ):
                self._tell(event)
            case _:
                pass

    def _tell(self, event: Event) -> None:
        for line in lines_of(event):
            self.progress.console.print(on_one_line(line), soft_wrap=True)

    def _move(self, event: StepDone | FramesDone | Hashing) -> None:
        """The lower bar: steps, then frames; or the bytes of a file that is hashed for the first time.

        Segments take turns in a wave, so it is named anew by every event.
        """
        match event:
            case StepDone():
                self._show(f"{event.clip}/{event.segment}", event.step, event.steps, "steps")
            case FramesDone():
                self._show(f"{event.clip}/{event.segment}", event.done, event.frames, "frames")
            case Hashing():
                self._show(event.path.name, event.done, event.total, "bytes")

    def _show(self, name: str, done: int, total: int, unit: str) -> None:
        self.progress.update(
            self.segment,
            description=shorten(name, 30),
            completed=done,
            total=total,
            visible=unit != "bytes" or done < total,
            unit=unit,
        )

    def _start(self, bar: TaskID, name: str, total: int | None) -> None:
        self.progress.reset(bar, total=total, description=shorten(name, 30), visible=True)
