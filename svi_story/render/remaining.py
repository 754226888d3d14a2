"""How long a run will still take: what is left of every segment, at the pace of this or earlier runs."""

from __future__ import annotations

import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from svi_story.errors import StoryError
from svi_story.events import (
    EngineSettled,
    ModelLoaded,
    ModelMoved,
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
from svi_story.render.cost import Calibration, Setting, WorkKind

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from svi_story.engines.base import Phase
    from svi_story.events import Event, Reporter
    from svi_story.plan.model import Segment
    from svi_story.render.cost import Name, Timed

EVERY = 2.0
"""Seconds between two estimates."""
ENCODING = 2e-8
"""Seconds to encode a pixel of a frame, until it was measured."""
JOINING = 1.0, 0.0005
"""Seconds to join a film, and for each of its frames."""
NEWEST = 8
"""Times of one kind that count."""

Key = tuple[str, str, int, int]
"""What takes the same time: engine, work, pixels of a frame, frames."""


@dataclass
class _Segment:
    """What is known about a segment."""

    timed: Timed
    phases_done: int = 0
    finished: bool = False
    started: float = 0.0
    """When its phase under way started; 0 for none."""
    steps: int = 0
    """Done in the phase under way, since the first one."""
    first_step: float = 0.0


@dataclass
class RemainingTime:
    """A reporter that passes events on, and reports from time to time how much time is left.

    `segments` are all that are wanted, `shown` the keys of those that films show, `frames` and `pixels` those
    of all films, `known` are times of earlier runs.
    """

    segments: Mapping[Name, Timed]
    shown: Collection[str]
    frames: int
    pixels: int
    films: int
    known: Calibration
    report: Reporter
    _segments: dict[Name, _Segment] = field(default_factory=dict)
    _times: dict[Key, list[float]] = field(default_factory=dict)
    """Of one pass, or of the decoding."""
    _settings: dict[str, Setting] = field(default_factory=dict)
    _phases: dict[object, Sequence[Phase]] = field(default_factory=dict)
    _encoded: int = 0
    """Frames."""
    _encoded_before: int = 0
    """In earlier runs, about."""
    _encoding: float = 0.0
    """Seconds that their encoding took."""
    _loading: float = 0.0
    _workers: set[int] = field(default_factory=set)
    _reported: float = 0.0

    def __post_init__(self) -> None:
        self._segments = {name: _Segment(timed) for name, timed in self.segments.items()}

    def __call__(self, event: Event) -> None:
        """Learn from an event, report an estimate if it is time, and pass the event on."""
        now = time.monotonic()
        self._learn(event, now)
        is_due = isinstance(event, StepDone | PhaseDone | PieceDone) and now - self._reported >= EVERY
        if is_due or isinstance(event, SegmentDone):
            self._reported = now
            with suppress(StoryError):
                self.report(self.estimate(now))
        self.report(event)

    def _learn(self, event: Event, now: float) -> None:
        match event:
            case EngineSettled():
                self._settings[event.engine] = Setting.of(event)
            case ModelLoaded() | ModelMoved():
                self._loading += event.seconds
            case PieceDone():
                self._encoded += event.frames
                self._encoding += event.seconds
            case WorkerStarted():
                self._workers.add(event.worker)
            case WorkerLost():
                self._workers.discard(event.worker)
            case SegmentEvent():
                segment = self._segments.get(event.name)
                if segment:
                    with suppress(StoryError):
                        self._learn_of(segment, event, now)
            case _:
                pass

    def _learn_of(self, segment: _Segment, event: SegmentEvent, now: float) -> None:
        match event:
            case PhaseStarted():
                segment.started, segment.steps, self._loading = now, 0, 0.0
            case StepDone():
                if segment.steps == 0:
                    segment.first_step = now
                segment.steps += 1
            case PhaseDone():
                phases = self._phases_of(segment.timed)
                if segment.phases_done < len(phases):
                    phase = phases[segment.phases_done]
                    seconds = max(event.seconds - self._loading, 0.0)
                    before = phases[segment.phases_done - 1].until if segment.phases_done else 0
                    passes = phase.passes * event.steps / max(phase.until - before, 1)
                    if event.steps or phase.until == before:
                        self._add(segment.timed, phase.model, seconds / max(passes, 1.0))
                segment.phases_done += 1
                segment.started, segment.steps, self._loading = 0.0, 0, 0.0
            case SegmentDone():
                segment.finished = True
                self._add(segment.timed, "decode", event.decoding)
            case SegmentReused():
                if not segment.finished and segment.timed.segment.key in self.shown:  # its piece is encoded
                    self._encoded_before += segment.timed.segment.contributes
                segment.finished = True
            case _:
                pass

    def estimate(self, now: float) -> TimeLeft:
        """How long everything will take that is left."""
        rendering, unknown, longest = 0.0, False, 0.0
        seen: set[str] = set()
        for each in self._segments.values():
            if each.finished or each.timed.segment.key in seen:
                continue
            seen.add(each.timed.segment.key)
            seconds, is_unknown = self._left_of(each, now)
            rendering, longest = rendering + seconds, max(longest, seconds)
            unknown = unknown or is_unknown
        rendering = max(rendering / max(len(self._workers), 1), longest)
        frames = max(self.frames - self._encoded - self._encoded_before, 0)
        per_frame = self.pixels / max(self.frames, 1) * ENCODING
        if self._encoded:
            per_frame = self._encoding / self._encoded
        last = min(frames, max((each.segment.frames for each in self.segments.values()), default=0))
        joining = self.films * JOINING[0] + self.frames * JOINING[1]
        seconds = max(rendering + last * per_frame, frames * per_frame) + joining
        return TimeLeft(round(seconds, 1), at_least=unknown)

    def _left_of(self, each: _Segment, now: float) -> tuple[float, bool]:
        """Seconds that are left of a segment, and whether some are unknown."""
        seconds, unknown, before = 0.0, False, 0
        phases = self._phases_of(each.timed)
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
        decoding = self._seconds(each.timed, "decode")
        return seconds + (decoding or 0.0), unknown or decoding is None

    def _seconds(self, timed: Timed, work: str) -> float | None:
        """What it takes, measured in this run, else scaled from other sizes in it, else in earlier runs."""
        key = _key(timed, work)
        if key in self._times:
            return statistics.median(self._times[key])
        setting = self._settings.get(timed.engine, Setting(timed.engine))
        if setting in self.known.times:
            kind = WorkKind(work, str(timed.segment.size), timed.segment.frames)
            if (seconds := self.known.seconds(setting, kind)) is not None:
                return seconds
        like = [other for other in self._times if other[:2] == key[:2]]
        if like:
            other = like[-1]
            return statistics.median(self._times[other]) * (key[2] * key[3]) / (other[2] * other[3])
        return None

    def _add(self, timed: Timed, work: str, seconds: float) -> None:
        times = self._times.setdefault(_key(timed, work), [])
        times.append(seconds)
        del times[:-NEWEST]

    def _phases_of(self, timed: Timed) -> Sequence[Phase]:
        like = timed.engine, timed.segment.options, timed.segment.loras
        if like not in self._phases:
            self._phases[like] = timed.phases()
        return self._phases[like]


def _key(timed: Timed, work: str) -> Key:
    segment: Segment = timed.segment
    return timed.engine, work, segment.size.width * segment.size.height, segment.frames
