"""Segments: looked up, else made, in the order of the schedule. The carry always comes from the store."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from svi_story.engines.base import Carry
from svi_story.events import FramesDone, PhaseDone, SegmentDone, SegmentStarted, StepDone
from svi_story.render.record import versions
from svi_story.render.schedule import segment_works

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from svi_story.cache.entry import Entry
    from svi_story.cache.work import Work as Bench
    from svi_story.engines.base import Engine, Frame, Latents, OnStep, Phase
    from svi_story.plan.keys import Json
    from svi_story.plan.model import Segment
    from svi_story.render.schedule import Work
    from svi_story.render.stage import Studio


@dataclass(frozen=True)
class Wanted:
    """A segment, and the board that is named when something happens to it."""

    segment: Segment
    board: Path


@dataclass(frozen=True)
class Made:
    """A segment is there."""

    segment: Segment
    entry: Entry
    fresh: bool
    """Whether it was made just now."""


@dataclass(frozen=True)
class Lost:
    """A segment that cannot be had, and why; those that continue from it are lost with it."""

    segment: Segment
    error: Exception


def make(wanted: Sequence[Wanted], studio: Studio) -> Iterator[Made | Lost]:
    """Make sure of all these segments, each once; tells of each as soon as it is known.

    `wanted` lists parents before those that continue from them.
    """
    yield from Line(by_key(wanted), studio=studio).make()


def by_key(wanted: Sequence[Wanted]) -> dict[str, Wanted]:
    """Each segment once, under the name of the first board that wants it."""
    first: dict[str, Wanted] = {}
    for each in wanted:
        first.setdefault(each.segment.key, each)
    return first


@dataclass
class Progress:
    """Which of the wanted segments are there, and which cannot be had."""

    wanted: dict[str, Wanted]
    """By key, parents first."""
    entries: dict[str, Entry] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    def is_missing(self, key: str) -> bool:
        """Whether a segment is neither there nor given up."""
        return key not in self.entries and key not in self.lost

    def followers(self, key: str) -> Iterator[str]:
        """All that continue from a segment, near and far."""
        above = {key}
        for other, each in self.wanted.items():
            if each.segment.parent in above:
                above.add(other)
                yield other

    def lose(self, keys: Iterable[str], error: Exception) -> Iterator[Lost]:
        """Give up segments."""
        for key in keys:
            self.lost.add(key)
            yield Lost(self.wanted[key].segment, error)


@dataclass
class Line(Progress):
    """Segments on their way through the engine."""

    studio: Studio = field(kw_only=True)
    done: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Phases that are done, by key."""
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Spent on sampling, by key."""

    def make(self) -> Iterator[Made | Lost]:
        """What is there already, then what is made."""
        order = list(self.wanted)
        yield from self.look_up(order)
        yield from self.run(order)

    def look_up(self, order: Sequence[str]) -> Iterator[Made]:
        """What is there already."""
        for key in order:
            entry = self.studio.store.entry(key)
            if entry is not None:
                self.entries[key] = entry
                yield Made(self.wanted[key].segment, entry, fresh=False)

    def run(self, order: Sequence[str]) -> Iterator[Made | Lost]:
        """Make what is missing. Where memory changes the engine's ways, the rest is scheduled anew."""
        while missing := [key for key in order if self.is_missing(key)]:
            try:
                engine = self.studio.stage.entered()
            except Exception as error:  # noqa: BLE001 - told for every board that wants one of these
                yield from self.lose(missing, error)
                return
            in_turns = engine.one_at_a_time
            segments = [self.wanted[key].segment for key in order]
            for work in segment_works(segments, {*missing}, self._phases, one_at_a_time=in_turns):
                if self.is_missing(work.key):
                    yield from self._try(work, engine)
                if engine.one_at_a_time != in_turns:
                    break

    def _phases(self, segment: Segment) -> Sequence[Phase]:
        return self.studio.stage.entered().phases(segment)[self.done[segment.key] :]

    def _try(self, work: Work, engine: Engine) -> Iterator[Made | Lost]:
        try:
            made = self._do(work, engine)
        except Exception as error:  # noqa: BLE001 - a bug in one segment must not cost the others
            yield from self.lose([work.key, *self.followers(work.key)], error)
        else:
            yield from [made] if made else []

    def _do(self, work: Work, engine: Engine) -> Made | None:
        """One work of a segment; the finished segment, if that is what came of it."""
        each = self.wanted[work.key]
        with self.studio.store.work(work.key) as bench:
            entry = self.studio.store.entry(work.key)
            if entry is not None:  # another process made it meanwhile
                return self._found(each.segment, entry, fresh=False)
            maker = Maker(each, self._parent(each.segment), bench, engine, self.studio)
            if work.kind == "sample":
                self._sample(work, maker)
                return None
            return self._found(each.segment, maker.publish(self.seconds[work.key]), fresh=True)

    def _sample(self, work: Work, maker: Maker) -> None:
        key, phase = work.key, work.phase
        assert phase is not None
        if not self.done[key]:
            maker.tell_start()
        start = time.monotonic()
        steps = maker.finish() if work.last else maker.advance(phase)
        spent = time.monotonic() - start
        self.done[key] += 1
        self.seconds[key] += spent
        maker.tell_phase(phase, steps, spent)

    def _parent(self, segment: Segment) -> Entry | None:
        return None if segment.parent is None else self.entries[segment.parent]

    def _found(self, segment: Segment, entry: Entry, *, fresh: bool) -> Made:
        self.entries[segment.key] = entry
        return Made(segment, entry, fresh)


@dataclass(frozen=True)
class Maker:
    """One segment at work."""

    wanted: Wanted
    parent: Entry | None
    bench: Bench
    engine: Engine
    studio: Studio

    def advance(self, phase: Phase) -> int:
        """Sample to the end of a phase, unless the latents are there; returns the steps it took."""
        if self.bench.latents() is not None:
            return 0
        steps = Steps(self)
        self.engine.advance(self.segment, self._carry(), self.bench.checkpoint, steps, phase)
        return steps.taken

    def finish(self) -> int:
        """Sample to the end and keep the latents, unless they are there; returns the steps it took."""
        steps = Steps(self)
        if self.bench.latents() is None:
            self.bench.save_latents(self._sampled(steps))
        return steps.taken

    def publish(self, sampling: float) -> Entry:
        """Decode the latents; the finished segment."""
        segment, start = self.segment, time.monotonic()
        latents: Latents | None = self.bench.latents()
        if latents is None:  # they were damaged meanwhile
            latents = self._sampled(Steps(self))
            self.bench.save_latents(latents)
        frames = self._told(self.engine.decode(segment, latents))
        self.bench.write_frames(frames, segment.fps, segment.frames)
        decoding = time.monotonic() - start
        notes: dict[str, Json] = {
            "clip": segment.clip,
            "prompt": segment.prompt,
            "sampling_seconds": round(sampling, 3),
            "decoding_seconds": round(decoding, 3),
            "versions": {**versions()},
            "environment": {**self.engine.environment()},
        }
        entry = self.bench.publish(self.segment.inputs, notes)
        seconds = (round(sampling + decoding, 3), round(sampling, 3), round(decoding, 3))
        self.studio.report(SegmentDone(*self.name, self.segment.key, *seconds))
        return entry

    @property
    def segment(self) -> Segment:
        """What is made."""
        return self.wanted.segment

    @property
    def name(self) -> tuple[Path, str, int]:
        """What events call it."""
        return self.wanted.board, self.segment.clip, self.segment.index

    def tell_start(self) -> None:
        """Somebody starts to make it."""
        self.studio.report(SegmentStarted(*self.name, self.segment.key, self.segment.frames))

    def tell_phase(self, phase: Phase, steps: int, seconds: float) -> None:
        """A phase is done."""
        self.studio.report(PhaseDone(*self.name, phase.model, steps, round(seconds, 3)))

    def _sampled(self, steps: OnStep) -> Latents:
        return self.engine.sample(self.segment, self._carry(), self.bench.checkpoint, steps)

    def _carry(self) -> Carry | None:
        return None if self.parent is None else carry_of(self.parent, max(self.segment.overlap, 1))

    def _told(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """The same frames, telling of every tenth of them."""
        due = self.segment.frames
        for done, frame in enumerate(frames, 1):
            yield frame
            if done * 10 // due > (done - 1) * 10 // due:
                self.studio.report(FramesDone(*self.name, done, due))


class Steps:
    """Tells of every step, and counts them."""

    def __init__(self, maker: Maker) -> None:
        self._maker = maker
        self.taken = 0

    def __call__(self, step: int, steps: int) -> None:
        """One step more."""
        self.taken += 1
        self._maker.studio.report(StepDone(*self._maker.name, step, steps))


def carry_of(entry: Entry, count: int) -> Carry:
    """What a finished segment hands over: its latents and its last `count` frames."""
    with entry.frames() as frames:
        last = range(max(len(frames) - count, 0), len(frames))
        return Carry(entry.engine, entry.latents(), [frames[number] for number in last])
