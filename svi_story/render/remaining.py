"""How long a run will still take: what is left of every segment, at the pace of this or earlier runs."""

from __future__ import annotations

import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from svi_story.errors import StoryError
from svi_story.events import (
    PhaseDone,
    PhaseStarted,
    PieceDone,
    SegmentDone,
    SegmentEvent,
    SegmentReused,
    StepDone,
    TimeLeft,
    WorkerLost,
    WorkerStarted,
)
from svi_story.render.cost import kind_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from svi_story.events import Event, Reporter
    from svi_story.render.cost import Calibration, Name, Timed, Timings, WorkKind

EVERY = 2.0
"""Seconds between two estimates."""
ENCODING = 2e-8
"""Seconds to encode a pixel of a frame, until it was measured."""
JOINING = 1.0, 0.0005
"""Seconds to join a film, and for each of its frames."""


@dataclass
class _Segment:
    """What is known about a segment."""

    timed: Timed
    phases_done: int = 0
    finished: bool = False
    steps: int = 0
    """Done in the phase under way, since the first one."""
    first_step: float = 0.0


@dataclass
class RemainingTime:
    """A reporter that passes events on, and reports from time to time how much time is left.

    `timings` are those of this run, with all its segments, and `known` those of earlier ones; `shown` are the
    keys of the segments that films show, `frames` and `pixels` those of all films.
    """

    timings: Timings
    shown: Collection[str]
    frames: int
    pixels: int
    films: int
    known: Calibration
    report: Reporter
    _segments: dict[Name, _Segment] = field(default_factory=dict)
    _encoded: int = 0
    """Frames."""
    _encoded_before: int = 0
    """In earlier runs, about."""
    _encoding: float = 0.0
    """Seconds that their encoding took."""
    _workers: set[int] = field(default_factory=set)
    _reported: float = 0.0

    def __post_init__(self) -> None:
        self._segments = {name: _Segment(timed) for name, timed in self.timings.segments.items()}

    def __call__(self, event: Event) -> None:
        """Learn from an event, report an estimate if it is time, and pass the event on."""
        now = time.monotonic()
        with suppress(StoryError):
            self.timings(event)
        self._learn(event, now)
        is_due = isinstance(event, StepDone | PhaseDone | PieceDone) and now - self._reported >= EVERY
        if is_due or isinstance(event, SegmentDone):
            self._reported = now
            with suppress(StoryError):
                self.report(self.estimate(now))
        self.report(event)

    def _learn(self, event: Event, now: float) -> None:
        match event:
            case PieceDone():
                self._encoded += event.frames
                self._encoding += event.seconds
            case WorkerStarted():
                self._workers.add(event.worker)
            case WorkerLost():
                self._workers.discard(event.worker)
            case SegmentEvent():
                if segment := self._segments.get(event.name):
                    self._learn_of(segment, event, now)
            case _:
                pass

    def _learn_of(self, segment: _Segment, event: SegmentEvent, now: float) -> None:
        match event:
            case PhaseStarted():
                segment.steps = 0
            case StepDone():
                if segment.steps == 0:
                    segment.first_step = now
                segment.steps += 1
            case PhaseDone():
                segment.phases_done += 1
                segment.steps = 0
            case SegmentDone():
                segment.finished = True
            case SegmentReused():
                if not segment.finished and segment.timed.segment.key in self.shown:  # its piece is encoded
                    self._encoded_before += segment.timed.segment.contributes
                segment.finished = True
            case _:
                pass

    def estimate(self, now: float) -> TimeLeft:
        """How long everything will take that is left."""
        rendering = beside = longest = last_beside = 0.0
        unknown = False
        seen: set[str] = set()
        for each in self._segments.values():
            if each.finished or each.timed.segment.key in seen:
                continue
            seen.add(each.timed.segment.key)
            seconds, hidden, is_unknown = self._left_of(each, now)
            rendering, beside = rendering + seconds, beside + hidden
            longest, last_beside = max(longest, seconds + hidden), max(last_beside, hidden)
            unknown = unknown or is_unknown
        workers = max(len(self._workers), 1)
        rendering = max(rendering / workers + last_beside, beside / workers, longest)
        frames = max(self.frames - self._encoded - self._encoded_before, 0)
        per_frame = self.pixels / max(self.frames, 1) * ENCODING
        if self._encoded:
            per_frame = self._encoding / self._encoded
        last = min(frames, max((each.segment.frames for each in self.timings.segments.values()), default=0))
        joining = self.films * JOINING[0] + self.frames * JOINING[1]
        seconds = max(rendering + last * per_frame, frames * per_frame) + joining
        return TimeLeft(round(seconds, 1), at_least=unknown)

    def _left_of(self, each: _Segment, now: float) -> tuple[float, float, bool]:
        """Seconds that are left of a segment, alone and beside others' sampling; whether some are unknown.

        Where the next one needs the frames, it waits for them.
        """
        seconds, unknown, before = 0.0, False, 0
        phases = self.timings.phases(each.timed)
        for number, phase in enumerate(phases):
            if number >= each.phases_done:
                per_pass = self._seconds(each.timed, phase.model)
                count, steps = float(max(phase.passes, 1)), phase.until - before
                if number == each.phases_done and each.steps and steps:
                    count *= max(steps - each.steps, 0) / steps
                    if each.steps > 2:  # the pace of this very phase
                        pace = (now - each.first_step) / (each.steps - 1)
                        per_pass = pace * steps / max(phase.passes, 1)
                seconds += count * (per_pass or 0.0)
                unknown = unknown or per_pass is None
            before = phase.until
        decoding, storing = (self._seconds(each.timed, work) for work in ("decode", "store"))
        waits = any(phase.needs_frames for phase in phases)
        overlaps = self.timings.setting(each.timed.engine).overlap and not waits
        hidden = (0.0 if waits else storing or 0.0) + (decoding or 0.0) * overlaps
        alone = (storing or 0.0) + (decoding or 0.0) - hidden
        return seconds + alone, hidden, unknown or decoding is None

    def _seconds(self, timed: Timed, work: str) -> float | None:
        """What it takes, measured in this run, else scaled from other sizes in it, else in earlier runs."""
        setting, kind = self.timings.setting(timed.engine), kind_of(work, timed.segment)
        for times in (self.timings.learnt, self.known):
            if (seconds := times.seconds(setting, kind)) is not None:
                return seconds
        for other, found in reversed(self.timings.learnt.times.get(setting, {}).items()):
            if other.work == work:
                return statistics.median(found) * _volume(kind) / _volume(other)
        return None


def _volume(kind: WorkKind) -> int:
    """The pixels of a segment."""
    width, height = map(int, kind.size.split("x"))
    return width * height * kind.frames
