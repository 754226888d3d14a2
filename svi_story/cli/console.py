"""Reporters: show events as progress bars, as lines, as JSON, or only the failures."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from svi_story.cli.terminal import answer_json, complain, drop_output
from svi_story.errors import RenderError, on_one_line
from svi_story.event_json import as_json
from svi_story.events import (
    BoardDelayed,
    BoardFailed,
    BoardRefused,
    BoardStarted,
    BundleOpened,
    Event,
    FilmDone,
    Measured,
    SegmentDone,
    TakesDone,
    Warned,
    WorkerLost,
)
from svi_story.render.progress import Progress
from svi_story.render.runs import FREQUENT
from svi_story.units import GIB, clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

    from svi_story.events import Reporter


KEPT = (BundleOpened, FilmDone, TakesDone, Warned, WorkerLost, BoardDelayed, BoardFailed, BoardRefused)
"""Events whose messages stay in the terminal, above the progress."""


def fail(event: Event) -> None:
    """Show failures only."""
    if isinstance(event, BoardFailed | BoardRefused):
        show(event)


def warn(event: Event) -> None:
    """Show errors, warnings and the settings of bundles; nothing else."""
    if isinstance(event, BoardDelayed | BoardFailed | BoardRefused | BundleOpened | Warned | WorkerLost):
        show(event)


def show(event: Event) -> None:
    """Show everything, a line each."""
    complain(*lines_of(event))


def show_phases(event: Event) -> None:
    """Show everything but the frequent events, such as single steps, a line each."""
    if not isinstance(event, FREQUENT):
        show(event)


QUIET_SECONDS = 60.0
"""After which a log gets a line about what is going on."""


class Lines:
    """Shows a line for each board and segment, errors and warnings: for logs and pipes.

    What takes long, such as loading a model, gets a line every minute.
    """

    def __init__(self) -> None:
        self._progress = Progress()
        self._shown = time.monotonic()
        """When there was a line last."""

    def __call__(self, event: Event) -> None:
        """Show one event."""
        progress = self._progress
        progress.add(event, time.time())
        left = progress.time_left(time.time())
        if isinstance(event, BoardStarted | FilmDone | TakesDone):
            show(event)
        elif isinstance(event, SegmentDone):
            count = f"{progress.finished} of {progress.segments} segments"
            complain(f"{event} ({count}{f', {left}' if left else ''})")
        elif isinstance(event, FREQUENT) and time.monotonic() - self._shown > QUIET_SECONDS:
            complain(f"{progress.now}{f', {left}' if left else ''}")
        else:
            warn(event)
            return
        self._shown = time.monotonic()


def lines_of(event: Event) -> tuple[str, ...]:
    """An event for people: one line, but for boards with several problems."""
    if isinstance(event, BoardRefused):
        return event.problems
    if isinstance(event, BoardFailed | BoardDelayed):
        lines = str(event).splitlines()
        return tuple(lines[-1:] if event.message.startswith("Traceback") else lines)
    return (str(event),)


def to_json(event: Event) -> None:
    """Print an event as a line of JSON on standard output."""
    answer_json(as_json(event))


class JsonLines:
    """Prints every event as a line of JSON on standard output.

    If they cannot be written, the work continues without them and fails at the end.
    """

    def __init__(self) -> None:
        self.error: OSError | None = None

    def __call__(self, event: Event) -> None:
        """Print one event."""
        if self.error is None:
            try:
                to_json(event)
            except OSError as error:
                drop_output()
                self.error = error

    def check(self) -> None:
        """Raises RenderError when an event could not be printed."""
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
        yield show_phases
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with display() as report:
            yield report
    else:
        yield Lines()


@contextmanager
def display() -> Iterator[Reporter]:
    """Shows the progress in the last two lines of a terminal, and messages that stay above them."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    shown = Display(console.print)
    with Live(get_renderable=shown.render, console=console, transient=True, refresh_per_second=4):
        yield shown


class Display:
    """Turns events into the two lines of `display`."""

    def __init__(self, keep: Callable[..., None]) -> None:
        self._keep = keep
        self._progress = Progress()
        self._started = time.time()
        self._reviewed: Measured | None = None
        self._lock = Lock()
        """Events come from several threads, and lines are drawn in another one."""

    def __call__(self, event: Event) -> None:
        """Take one event into account."""
        with self._lock:
            self._progress.add(event, time.time())
            if isinstance(event, Measured):
                self._reviewed = event
        if isinstance(event, KEPT):
            for line in lines_of(event):
                self._keep(on_one_line(line), soft_wrap=True)

    def render(self) -> RenderableType:
        """The lines, as wide as the terminal."""
        import shutil

        from rich.text import Text

        with self._lock:
            lines = self.lines(time.time(), shutil.get_terminal_size().columns)
        return Text("\n".join(on_one_line(line) for line in lines), no_wrap=True, overflow="crop")

    def lines(self, now: float, width: int) -> list[str]:
        """What is shown in a terminal of that width."""
        from rich.cells import cell_len

        if each := self._reviewed:
            facts = [f"{each.done}/{each.total} {each.what}"]
            return [overall(each.path.name, each.done / max(each.total, 1), facts, width)]
        progress = self._progress
        if not progress.segments:
            return [f"{fit(progress.now, width - 16)}  {clock(now - self._started)} so far"]
        boards = progress.boards
        name = "all boards"
        if progress.number_of_boards == 1 and boards:
            name = next(iter(boards)).name
        elif boards:
            done = sum(board.state == "done" for board in boards.values())
            name = f"{done}/{progress.number_of_boards} boards"
        facts = [
            f"{progress.finished}/{progress.segments} segments",
            progress.time_left(time.time()),
            f"{clock(now - progress.first)} so far",
        ]
        memory = progress.memory
        gpu = f"GPU {memory.used / GIB:.1f}/{memory.total / GIB:.1f} GiB" if memory else ""
        if len(gpu) > width // 2:
            gpu = ""
        doing = fit(progress.now, width - len(gpu) - 2 if gpu else width)
        return [
            overall(name, progress.fraction, [fact for fact in facts if fact], width),
            f"{doing}{' ' * (width - cell_len(doing) - len(gpu))}{gpu}" if gpu else doing,
        ]


BAR = range(8, 41)
"""How wide a bar may be."""


def overall(name: str, fraction: float, facts: list[str], width: int) -> str:
    """A line with a bar, full at 1. In a narrow terminal, facts are left out, the last one first."""
    from rich.cells import cell_len

    for count in range(len(facts), 0, -1):
        right = "  ".join(facts[:count])
        room = width - cell_len(name) - len(right) - 4
        if room >= BAR.start:
            size = min(room, BAR.stop - 1)
            full = int(size * fraction)
            return f"{name}  {'━' * full}{'╌' * (size - full)}  {right}"
    return fit(f"{name}  {facts[0]}", width)


def fit(text: str, width: int) -> str:
    """The text, shortened to the given number of columns of a terminal."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"
