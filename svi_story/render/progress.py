"""The state of a run, computed from its events: for progress bars, `status` and the page of `watch`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from svi_story.events import (
    BoardDelayed,
    BoardFailed,
    BoardRefused,
    BoardStarted,
    DeviceMemory,
    EngineSettled,
    Event,
    FilmDone,
    FramesDone,
    Hashing,
    JoinStarted,
    ModelLoaded,
    ModelLoading,
    ModelMoved,
    ModelWorking,
    PhaseDone,
    PhaseStarted,
    PromptsStarted,
    RunEnded,
    RunOpened,
    RunStarted,
    SegmentDone,
    SegmentEvent,
    SegmentReused,
    SegmentStarted,
    Starting,
    StepDone,
    TakesDone,
    TimeLeft,
    Warned,
    WorkerLost,
    WorkerStarted,
)
from svi_story.units import clock, gib

if TYPE_CHECKING:
    from pathlib import Path

    Name = tuple[Path, str, int, int]
    """Of a segment: board, clip, take, index."""

Ending = Literal["done", "failed", "stopped", "interrupted"]
KEPT_MESSAGES = 50
"""Newest warnings."""
SAMPLING = 0.9
"""The part of a segment that is done when it is sampled: decoding is short."""
MODEL_NAMES = {
    "high": "high-noise expert",
    "low": "low-noise expert",
    "vae": "VAE",
    "text": "text encoder",
    "camera": "camera",
}


@dataclass
class SegmentProgress:
    """How far a segment is."""

    state: Literal["sampling", "decoding", "done", "cached"]
    step: int = 0
    steps: int = 0
    step_seconds: float | None = None
    """Seconds per step, of the last steps."""
    frames: int = 0
    """That are decoded."""
    of_frames: int = 0
    latents: tuple[int, int] = (0, 0)
    """That are decoded while another segment is sampled, and all."""
    seen: float = 0.0
    """When its last event happened."""
    _steps: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=6))

    @property
    def is_finished(self) -> bool:
        """Whether it is in the cache."""
        return self.state in ("done", "cached")

    @property
    def fraction(self) -> float:
        """How much of it is done, from 0 to 1; most of the time goes into sampling."""
        if self.is_finished:
            return 1.0
        sampled = self.step / self.steps if self.steps else 0.0
        return SAMPLING * sampled + (1 - SAMPLING) * self.frames / max(self.of_frames, 1)

    @property
    def activity(self) -> str:
        """What is done with it, in short."""
        if self.state == "decoding" and self.frames:
            return f"decoding {self.frames}/{self.of_frames}"
        if self.state == "decoding" and self.latents[0]:
            return f"decoding {self.latents[0]}/{self.latents[1]} latents"
        return self.state if self.state != "sampling" else _steps(self) or "starting"

    def start_steps(self, at: float) -> None:
        """Forget how long steps took: another model may take longer."""
        self._steps.clear()
        self._steps.append((at, self.step))
        self.step_seconds = None

    def add_step(self, step: int, steps: int, at: float) -> None:
        """One more step is done."""
        self.state, self.step, self.steps = "sampling", step, steps
        if self._steps and step < self._steps[-1][1]:  # the segment was started again
            self._steps.clear()
        self._steps.append((at, step))
        (first_at, first), count = self._steps[0], step - self._steps[0][1]
        if len(self._steps) > 1 and count > 0:
            # the first step of a phase includes loading: ignore it as soon as there is another one
            if len(self._steps) > 2:
                first_at, first = self._steps[1]
                count = step - first
            self.step_seconds = max((at - first_at) / count, 0.0) if count else None


@dataclass
class BoardProgress:
    """How far a board is."""

    film: Path | None = None
    clips: int = 0
    segments: int = 0
    state: Literal["waiting", "rendering", "joining", "done", "failed", "refused", "delayed"] = "waiting"
    message: str = ""
    """Why it failed, was refused or is delayed."""
    takes: int = 0
    """To render after the film."""
    started: dict[tuple[str, int, int], SegmentProgress] = field(default_factory=dict)
    """The segments that had any event so far, by clip, take and index."""

    @property
    def finished(self) -> int:
        """How many segments are in the cache."""
        return sum(each.is_finished for each in self.started.values())


class Progress:
    """What a run has done and is doing. Events are added in the order in which they happened."""

    def __init__(self) -> None:
        self.opened: RunOpened | None = None
        self.ending: Ending | None = None
        self.boards: dict[Path, BoardProgress] = {}
        self.number_of_boards = 0
        self.segments = 0
        """Of all boards."""
        self.first = 0.0
        """When the first event happened, in seconds since 1970."""
        self.latest = 0.0
        self.phase = "preparing"
        """What takes time now, by a name that other runs have too: for comparing how long it takes."""
        self.pauses: dict[str, float] = {}
        """The longest pause between two events in each phase, in seconds."""
        self.doing = "preparing"
        """What takes time now, for people."""
        self.current: Name | None = None
        """The segment that is worked on; with several workers, the one with the latest event. Where one is
        sampled while another one is decoded, the one that is sampled."""
        self._sampling: Name | None = None
        """The segment whose phase is under way."""
        self._to_sample = ""
        """That phase, for people."""
        self._decoding: Name | None = None
        """The segment that is decoded and stored."""
        self.memory: DeviceMemory | None = None
        self.left: TimeLeft | None = None
        self.left_at = 0.0
        self.workers: dict[int, str] = {}
        """Hosts, by worker."""
        self.messages: deque[tuple[float, str]] = deque(maxlen=KEPT_MESSAGES)
        """Warnings with their time, the newest last."""

    @property
    def finished(self) -> int:
        """How many segments of all boards are in the cache."""
        return sum(board.finished for board in self.boards.values())

    @property
    def fraction(self) -> float:
        """How much of all segments is rendered, from 0 to 1."""
        segments = (each for board in self.boards.values() for each in board.started.values())
        return min(sum(each.fraction for each in segments) / max(self.segments, 1), 1.0)

    @property
    def segment(self) -> SegmentProgress | None:
        """How far the current segment is."""
        return self._found(self.current)

    def _found(self, name: Name | None) -> SegmentProgress | None:
        board = self.boards.get(name[0]) if name else None
        return board.started.get(name[1:]) if board and name else None

    @property
    def now(self) -> str:
        """What it is doing, in a sentence; the board is named where there are several."""
        if len(self.workers) > 1:
            return f"{len(self.workers)} workers: {'; '.join(self._active()) or self.doing}"
        board = self.current[0] if self.current else None
        named = f"{board}: " if board and self.number_of_boards > 1 else ""
        return f"{named}{self.activity}"

    @property
    def activity(self) -> str:
        """The same without the board."""
        steps = _steps(self.segment) if self.phase.startswith("sampling") else ""
        beside = ""
        decoded = self._found(self._decoding)
        if self._decoding and decoded and self._decoding != self.current:
            board, clip, take, index = self._decoding
            label = SegmentEvent(board, clip, index, take=take).label
            beside = f"; clip {label}: {decoded.activity}"
        return f"{self.doing}{f' ({steps})' if steps else ''}{beside}"

    def _active(self) -> list[str]:
        """What each worker is doing: as many segments as there are workers, by their latest events."""
        found = [
            (segment.seen, f"{path.stem + '/' if self.number_of_boards > 1 else ''}{clip} {segment.activity}")
            for path, board in self.boards.items()
            for (clip, _, _), segment in board.started.items()
            if not segment.is_finished and board.state in ("rendering", "waiting")
        ]
        return sorted(text for _, text in sorted(found, reverse=True)[: len(self.workers)])

    def seconds_left(self, now: float) -> float | None:
        """The time left as estimated last, less what has passed since."""
        return None if self.left is None else max(self.left.seconds - (now - self.left_at), 0.0)

    def time_left(self, now: float) -> str:
        """The time left, as `about 1:20:00 left`; empty while it is unknown."""
        seconds = self.seconds_left(now)
        if seconds is None or self.left is None:
            return ""
        return f"{'at least' if self.left.at_least else 'about'} {clock(seconds)} left"

    def add(self, event: Event, at: float) -> None:
        """Take an event into account."""
        if self.latest:
            pause = max(at - self.latest, 0.0)
            self.pauses[self.phase] = max(pause, self.pauses.get(self.phase, 0.0))
        self.first = self.first or at
        self.latest = max(at, self.latest)
        if isinstance(event, SegmentEvent):
            self._add_to_segment(event, at)
        elif isinstance(
            event,
            BoardStarted | BoardDelayed | BoardFailed | BoardRefused | JoinStarted | FilmDone | TakesDone,
        ):
            self._add_to_board(event)
        else:
            self._add_to_run(event, at)

    def _add_to_run(self, event: Event, at: float) -> None:
        match event:
            case RunOpened():
                self.opened = event
            case RunEnded(ending=("done" | "failed" | "stopped" | "interrupted") as ending):
                self.ending = ending
            case RunStarted():
                self.number_of_boards, self.segments = event.boards, event.segments
            case DeviceMemory():
                self.memory = event
            case TimeLeft():
                self.left, self.left_at = event, at
            case WorkerStarted():
                self.workers[event.worker] = event.host
                self._do("starting workers", f"starting {_count(len(self.workers), 'worker')}")
            case WorkerLost():
                self.workers.pop(event.worker, None)
                self.messages.append((at, str(event)))
            case Warned():
                self.messages.append((at, event.message))
            case _:
                self._add_work(event)

    def _add_work(self, event: Event) -> None:
        """Take into account what takes time and belongs to no segment."""
        match event:
            case Hashing() if event.done < event.total:
                self._do("hashing", f"hashing {event.path.name} ({_of(event.done, event.total)})")
            case ModelLoading():
                name = MODEL_NAMES.get(event.model, event.model)
                self._do(f"loading {event.model}", f"loading the {name} ({_of(event.done, event.total)})")
            case Starting():
                self._do(str(event), str(event))
            case Hashing() | ModelLoaded() | ModelMoved() | EngineSettled():
                self._do("preparing", self._to_sample if self._sampling else "preparing")
            case PromptsStarted():
                self._do("encoding prompts", f"encoding {_count(event.prompts, 'prompt')}")
            case ModelWorking(model="text"):
                self._do("encoding prompts", f"encoding prompts ({event.done} of {event.total})")
            case ModelWorking(model="vae") if self._sampling and self.phase != "sampling vae":
                if decoded := self._found(self._decoding):
                    decoded.latents = event.done, event.total
            case ModelWorking(model="vae"):
                doing = self.doing.partition(" (")[0]
                self._do(self.phase, f"{doing} ({event.done} of {event.total} latents)")
            case ModelWorking():
                amount = f"{_of(event.done, event.total)} on the GPU"
                self._do(f"moving {event.model}", f"moving the {MODEL_NAMES[event.model]} ({amount})")
            case _:
                pass

    def _add_to_board(self, event: Event) -> None:
        match event:
            case BoardStarted():
                board = self._board(event.board)
                board.film, board.clips, board.segments = event.film, event.clips, event.segments
                board.takes, board.state, board.message = event.takes, "rendering", ""
            case BoardDelayed() | BoardFailed():
                board = self._board(event.board)
                board.state = "delayed" if isinstance(event, BoardDelayed) else "failed"
                lines = event.message.strip().splitlines() or [""]
                board.message = lines[-1] if lines[0].startswith("Traceback") else "\n".join(lines)
                self._do("preparing", "preparing")
            case BoardRefused():
                board = self._board(event.board)
                board.state, board.message = "refused", "\n".join(event.problems)
            case JoinStarted():
                self._board(event.board).state = "joining"
                self.current = None
                self._do("joining", f"joining {event.film.name} ({_count(event.pieces, 'piece')})")
            case FilmDone():
                board = self._board(event.board)
                board.film, board.message = event.film, ""
                board.state = "rendering" if board.takes else "done"
                self._do("preparing", "preparing")
            case TakesDone():
                board = self._board(event.board)
                board.takes, board.state = 0, "done"
            case _:
                pass

    def _add_to_segment(self, event: SegmentEvent, at: float) -> None:
        board = self._board(event.board)
        name = (event.clip, event.take, event.segment)
        if isinstance(event, SegmentReused):
            if name not in board.started or not board.started[name].is_finished:
                board.started[name] = SegmentProgress("cached")
            return
        segment = board.started.setdefault(name, SegmentProgress("sampling"))
        segment.seen = at
        shown, own = f"clip {event.label}", (event.board, *name)
        phase, doing = self.phase, self.doing
        match event:
            case SegmentStarted():
                segment.state, segment.of_frames = "sampling", event.frames
                phase, doing = "preparing", f"preparing {shown}"
            case PhaseStarted(model="decode"):
                segment.state, segment.latents, self._decoding = "decoding", (0, 0), own
                phase, doing = "decoding", f"decoding {shown}"
            case PhaseStarted():
                segment.state, self._sampling = "sampling", own
                segment.start_steps(at)
                phase, doing = f"sampling {event.model}", f"sampling {shown}"
                self._to_sample = doing
            case StepDone():
                segment.add_step(event.step, event.steps, at)
                self._sampling = own
                phase, doing = phase if phase.startswith("sampling") else "sampling", f"sampling {shown}"
            case PhaseDone():
                self._sampling = None
                phase, doing = "preparing", f"preparing {shown}"
            case FramesDone():
                segment.state, segment.frames, segment.of_frames = "decoding", event.done, event.frames
                phase, doing = "decoding", f"decoding {shown} ({event.done} of {event.frames} frames)"
            case SegmentDone():
                segment.state, self._decoding = "done", None
                phase, doing = "encoding", "encoding"
            case _:
                pass
        if segment.state == "sampling" or self._sampling is None or len(self.workers) > 1:
            self.current = own  # else another one is sampled meanwhile
            self._do(phase, doing)

    def _board(self, path: Path) -> BoardProgress:
        return self.boards.setdefault(path, BoardProgress())

    def _do(self, phase: str, doing: str) -> None:
        self.phase, self.doing = phase, doing


def _steps(segment: SegmentProgress | None) -> str:
    """How far the sampling of a segment is; empty before the first step."""
    if segment is None or segment.state != "sampling" or not segment.steps:
        return ""
    per_step = f", {segment.step_seconds:.1f} s/step" if segment.step_seconds is not None else ""
    return f"step {segment.step}/{segment.steps}{per_step}"


def _count(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _of(done: int, total: int) -> str:
    return f"{gib(done)} of {gib(total)}"
