"""Runs: the log of a run's events in `<cache>/runs/<run>/events.jsonl`, and requests to stop beside it.

A log never stops or slows a render: a thread of its own writes it and looks for requests, and what cannot be
written is left out.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Thread, current_thread, main_thread
from typing import TYPE_CHECKING, Literal

import psutil

from svi_story import __version__
from svi_story.cache.layout import Layout
from svi_story.commands import command_to_resume
from svi_story.errors import InputError, Problem, RenderError
from svi_story.event_json import as_json, from_json
from svi_story.events import (
    BoardStarted,
    ClipDone,
    DeviceMemory,
    FramesDone,
    Hashing,
    ModelLoading,
    ModelWorking,
    PhaseStarted,
    RunDone,
    RunEnded,
    RunOpened,
    RunStarted,
    SegmentStarted,
    StepDone,
    TimeLeft,
    Warned,
)
from svi_story.files import make_folder, open_regular, read_regular, write_atomic
from svi_story.portable import is_private, stop_main_thread
from svi_story.render.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from svi_story.events import Event, Reporter

EVENTS = "events.jsonl"
Stop = Literal["clip", "now"]
LARGEST = 32 * 2**20
"""Bytes of a log; after them only the end of the run is written."""
LONGEST_LINE = 2**16
KEPT_RUNS = 30
NEWEST = 3
"""Runs that `status` reads though they have ended: for how long things usually take."""
KEPT_BYTES = 128 * 2**20
"""Of all runs of a cache together, when another one starts."""
FREQUENT = (StepDone, FramesDone, Hashing, ModelLoading, ModelWorking, DeviceMemory, TimeLeft)
"""Of each of these kinds one event a second is enough."""
WAITING = 10_000
"""Events that wait for a slow disk; more are left out."""
LOST = 90.0
"""Seconds without a renewal after which a run on another host counts as dead."""
CLOSE_SECONDS = 5.0
"""How long to wait at the end for a slow disk."""
HANG_FACTOR = 5
"""A run without events counts as hanging after this many times the longest pause so far in such a phase."""
HANG_SECONDS = 120.0
"""Shorter pauses are never reported."""
HANG_UNKNOWN = 1800.0
"""Seconds after which it counts as hanging in a phase that was never timed: loading, compiling."""

POLL = 1.0
"""Seconds between two looks for a request, and two renewals of a log's time of modification."""
CONTROL = "control"
"""The folder for requests, which only the user who renders may enter."""
STOP = "stop"
NEW_WORK = (BoardStarted, SegmentStarted, PhaseStarted, StepDone)
"""Events after a finished clip that show that more is left to do than joining the film."""
STOPS: Mapping[Stop, str] = {"clip": "after the current clip", "now": "now"}

RunState = Literal["running", "hanging", "died", "done", "failed", "stopped", "interrupted"]


class StopRequested(KeyboardInterrupt):
    """The user requested that the run stops."""


class RunLog:
    """A reporter that passes events on and has them written to the run logs of some caches.

    Nothing is created before the first event of a run that renders.
    """

    def __init__(self, caches: Iterable[Path], report: Reporter, command: Sequence[str]) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self.run = f"{stamp}-{secrets.token_hex(3)}"
        self._caches = tuple(cache.absolute() for cache in caches)
        self._report = report
        self._command = tuple(command)
        self._queue: Queue[tuple[float, Event] | None] = Queue(WAITING)
        self._done: RunDone | None = None
        self._thread: Thread | None = None
        self.stop: Stop | None = None
        """The stop that was requested, if any."""
        self._clip_done = False
        """Whether a clip was finished since then."""
        self._interrupted = False
        """Whether the main thread was interrupted from another one."""

    def __call__(self, event: Event) -> None:
        """Pass an event on, and have it written. Raises StopRequested where the run is to stop."""
        self._put(event)
        if isinstance(event, RunDone):
            self._done = event
        if self._thread is None and isinstance(event, RunStarted | Hashing):
            self._thread = Thread(target=self._write_all, name="run log", daemon=True)
            self._thread.start()
        self._report(event)
        if self.stop:
            self._clip_done |= isinstance(event, ClipDone)
            if self.stop == "now" or (self._clip_done and isinstance(event, NEW_WORK)):
                self._stop_main_thread()

    def close(self, ending: str = "") -> None:
        """Write how the run ended; without `ending` as its last event says."""
        if self._thread is None:
            return
        if not ending:
            failed = self._done is None or self._done.failed or self._done.refused
            ending = "failed" if failed else "done"
        self._put(RunEnded(ending))
        with suppress(Full):
            self._queue.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)

    def _put(self, event: Event) -> None:
        with suppress(Full):
            self._queue.put_nowait((time.time(), event))

    def _write_all(self) -> None:
        """The thread: open the logs, and write every event to all of them."""
        logs = [log for cache in self._caches if (log := _opened(Layout(cache), self.run))]
        if not logs:
            return
        opened = RunOpened(*_this_process(), Path.cwd(), self._command, __version__)
        newest: dict[type, float] = {}
        polled = time.monotonic()
        for log in logs:
            log.write(self._line(time.time(), opened))
        while True:
            item: tuple[float, Event] | tuple[()] | None
            try:
                item = self._queue.get(timeout=POLL)
            except Empty:
                item = ()
            if time.monotonic() - polled >= POLL:
                polled = time.monotonic()
                self._poll(logs)
            if item is None:
                break
            if not item:
                continue
            at, event = item
            if isinstance(event, FREQUENT):
                if 0 <= at - newest.get(type(event), 0.0) < 1:
                    continue
                newest[type(event)] = at
            line = self._line(at, event)
            for log in logs:
                log.write(line, last=isinstance(event, RunDone | RunEnded))
        for log in logs:
            log.close()

    def _poll(self, logs: Sequence[_LogFile]) -> None:
        """Show that the process is alive; if a stop is requested, interrupt the main thread."""
        for log in logs:
            log.renew()
        found = next((stop for log in logs if (stop := requested_stop(log.folder))), None)
        if found and self.stop not in (found, "now"):
            self.stop = found
            self._report(Warned(f"stopping {STOPS[found]}, as requested; what is rendered is kept"))
            if found == "now":
                self._stop_main_thread()

    def _stop_main_thread(self) -> None:
        """Interrupt the main thread, from others only once: it may be cleaning up since then."""
        if current_thread() is not main_thread():
            if self._interrupted:
                return
            self._interrupted = True
        stop_main_thread(StopRequested)

    def _line(self, at: float, event: Event) -> bytes:
        text = json.dumps({"time": round(at, 3), "run": self.run, **as_json(event)}) + "\n"
        return text.encode("ascii") if len(text) <= LONGEST_LINE else b""


class _LogFile:
    """A log that is written, as far as it can be."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self._file = path.open("xb", buffering=0)
        self._descriptor = self._file.fileno()
        self._size = 0
        self._torn = False
        """Whether the last line was written in part only."""

    def write(self, line: bytes, *, last: bool = False) -> None:
        """Append a line, unless the log is full or the disk fails."""
        if self._size > LARGEST and not last:
            return
        left = b"\n" + line if self._torn else line
        with suppress(OSError):
            while left:
                written = os.write(self._descriptor, left)
                self._torn = left[written - 1 : written] != b"\n"
                self._size += written
                left = left[written:]

    def renew(self) -> None:
        """Set the time of modification, which shows that the process is alive."""
        with suppress(OSError):
            os.utime(self.folder / EVENTS)

    def close(self) -> None:
        """Nothing more is written."""
        with suppress(OSError):
            self._file.close()


def _opened(layout: Layout, run: str) -> _LogFile | None:
    """A new log in a cache; None where it cannot be written."""
    try:
        layout.create()
        make_folder(layout.runs)
        prune(layout)
        folder = layout.runs / run
        folder.mkdir()
        (folder / CONTROL).mkdir(mode=0o700)
        return _LogFile(folder / EVENTS)
    except (OSError, RenderError):
        return None


@contextmanager
def run_log(caches: Iterable[Path], report: Reporter, command: Sequence[str]) -> Iterator[RunLog]:
    """The log of a run. How the run ends is written into it, whatever happens."""
    log = RunLog(caches, report, command)
    try:
        yield log
    except KeyboardInterrupt as error:
        log.close("stopped" if log.stop else "interrupted")
        if log.stop:
            raise StopRequested from error
        raise
    except BaseException:
        log.close("failed")
        raise
    else:
        log.close()


def requested_stop(folder: Path) -> Stop | None:
    """The stop that is requested in a run's control folder; a folder that others can write to is ignored."""
    try:
        if not is_private(folder / CONTROL):
            return None
        found = read_regular(folder / CONTROL / STOP, 16).decode("ascii")
    except (OSError, ValueError):
        return None
    return "now" if found == "now" else "clip" if found == "clip" else None


def request_stop(folder: Path, stop: Stop) -> None:
    """Ask a run to stop. Raises InputError where only another user may."""
    control = folder / CONTROL
    try:
        if is_private(control):
            write_atomic(control / STOP, stop.encode("ascii"))
            return
    except (OSError, RenderError) as error:
        raise InputError(Problem(f"cannot be written: {error}", file=str(control))) from error
    raise InputError(Problem("the run belongs to another user; ask them to stop it", file=str(control)))


def prune(layout: Layout) -> None:
    """Remove the oldest runs that have ended, so that the cache keeps KEPT_RUNS and KEPT_BYTES at most."""
    total = 0
    for number, path in enumerate(log_files(layout), 1):
        with suppress(OSError):
            status = path.stat()
            total += status.st_size
            too_many = number >= KEPT_RUNS or total > KEPT_BYTES
            if too_many and time.time() - status.st_mtime > LOST:
                shutil.rmtree(path.parent)


def log_files(layout: Layout) -> list[Path]:
    """The logs of a cache, the newest first."""
    try:
        return sorted((path / EVENTS for path in layout.runs.iterdir()), reverse=True)
    except OSError:
        return []


def _this_process() -> tuple[str, str, int, float]:
    process = os.getpid()
    return socket.gethostname(), _namespace(), process, _start_of(process) or 0.0


def _namespace() -> str:
    """The namespace of process ids: containers on one host may use the same ids."""
    with suppress(OSError):
        return str(os.stat("/proc/self/ns/pid").st_ino) if sys.platform == "linux" else ""  # noqa: PTH116
    return ""


def _start_of(process: int) -> float | None:
    """When a process started, in whole seconds; None when there is none, or it has ended."""
    try:
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else round(found.create_time())
    except psutil.Error:
        return None


@dataclass(frozen=True)
class RunReport:
    """The state of a run at some moment, from its log."""

    run: str
    state: RunState
    progress: Progress
    silent: float
    """Seconds since the last event."""
    usual: float | None
    """The longest pause so far in such a phase."""

    @property
    def message(self) -> str:
        """What the run is doing, or how it ended."""
        progress, opened = self.progress, self.progress.opened
        where = f"process {opened.process} on {opened.host}" if opened else "an unknown process"
        match self.state:
            case "running":
                count = f"{progress.finished} of {progress.segments} segments" if progress.segments else ""
                facts = (progress.now, count, progress.time_left(time.time()), where)
                return "; ".join(fact for fact in facts if fact)
            case "hanging":
                usual = f"such pauses took {self.usual:.0f} s at most" if self.usual else "it was never timed"
                what = f"no event for {self.silent:.0f} s; {usual}"
                return (
                    f"hangs: {progress.now}; {what}; {where}; if it does not go on, stop it and run it again"
                )
            case "died":
                again = f": {command_to_resume(opened.command)}" if opened and opened.command else ""
                elsewhere = f", in {opened.folder}" if opened and opened.folder != Path.cwd() else ""
                what = f"{progress.now}; the same command resumes it{elsewhere}{again}"
                return f"died ({where} is gone): {what}"
            case _:
                return self.state


class LogReader:
    """Reads a run log, and goes on reading where it stopped. What is not a line of a log is skipped."""

    def __init__(self, path: Path) -> None:
        self.run = path.parent.name
        self.progress = Progress()
        self._path = path
        self._offset = 0

    def update(self) -> bool:
        """Read what was added; whether anything was. A line that is not complete yet is left for later."""
        try:
            with open_regular(self._path) as file:
                file.seek(self._offset)
                data = file.read(2 * LARGEST - self._offset) if self._offset < 2 * LARGEST else b""
        except OSError:
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            if len(line) > LONGEST_LINE:
                continue
            with suppress(ValueError, RecursionError, OverflowError):
                found = json.loads(line)
                event = from_json(found) if isinstance(found, dict) else None
                at = found.get("time") if event else None
                if event and isinstance(at, int | float):
                    self.progress.add(event, float(at))
        return bool(whole)

    def report(self, usual: dict[str, float] | None = None) -> RunReport:
        """How the run is now; `usual` are the longest pauses of earlier runs, by phase."""
        progress = self.progress
        silent = max(time.time() - progress.latest, 0.0)
        longest = max((usual or {}).get(progress.phase, 0.0), progress.pauses.get(progress.phase, 0.0))
        if progress.ending:
            state: RunState = progress.ending
        elif not self._is_alive():
            state = "died"
        else:
            limit = max(HANG_SECONDS, HANG_FACTOR * longest) if longest else HANG_UNKNOWN
            state = "hanging" if silent > limit else "running"
        return RunReport(self.run, state, progress, silent, longest or None)

    def _is_alive(self) -> bool:
        """Whether its process exists; for another host, whether its log was written a short time ago."""
        opened = self.progress.opened
        if opened and (opened.host, opened.namespace) == (socket.gethostname(), _namespace()):
            start = _start_of(opened.process)
            return start is not None and abs(start - opened.started) <= 2  # clocks are set
        return _is_fresh(self._path)


def read_runs(cache: Path) -> list[RunReport]:
    """The newest runs of a cache, and all that may be running, the newest first."""
    paths = log_files(Layout(cache.absolute()))[:KEPT_RUNS]
    readers = [LogReader(path) for number, path in enumerate(paths) if number < NEWEST or _is_fresh(path)]
    for reader in readers:
        reader.update()
    usual = usual_pauses(readers)
    return [reader.report(usual) for reader in readers if reader.progress.opened]


def _is_fresh(path: Path) -> bool:
    """Whether a log was written, or renewed, a short time ago."""
    try:
        return time.time() - path.stat().st_mtime < LOST
    except OSError:
        return False


def usual_pauses(readers: Iterable[LogReader]) -> dict[str, float]:
    """The longest pauses of runs, by phase."""
    longest: dict[str, float] = {}
    for reader in readers:
        for phase, pause in reader.progress.pauses.items():
            longest[phase] = max(pause, longest.get(phase, 0.0))
    return longest
