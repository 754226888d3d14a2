"""Executors render segments. The carry always comes from the store.

Two threads share the work of this process (`schedule.py`): the caller's samples, another one decodes what is
sampled and stores it, one segment at a time. Latents are on disk before a segment is decoded, so a segment
that needs no frames of its parent begins when the parent is sampled, with the parent's latents from there.
"""

from __future__ import annotations

import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from threading import Event as Flag
from typing import TYPE_CHECKING, Protocol, Self

from svi_story.engines.base import Carry
from svi_story.errors import InputError, TransientError
from svi_story.events import (
    FramesDone,
    PhaseDone,
    PhaseStarted,
    SegmentDone,
    SegmentStarted,
    Starting,
    StepDone,
)
from svi_story.files import disk_error
from svi_story.render.record import versions
from svi_story.render.schedule import segment_works

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    from svi_story.cache.entry import Entry
    from svi_story.cache.store import Store
    from svi_story.cache.work import WorkFolder
    from svi_story.engines.base import Engine, Frame, Latents, OnStep, Phase
    from svi_story.events import Reporter
    from svi_story.plan.keys import Json
    from svi_story.plan.model import Segment
    from svi_story.render.live import Previews
    from svi_story.render.schedule import Work


@dataclass(frozen=True)
class SegmentReady:
    """A segment is in the cache."""

    segment: Segment
    entry: Entry
    fresh: bool
    """Whether it was rendered just now."""


@dataclass(frozen=True)
class SegmentFailed:
    """A segment could not be rendered. Those that continue from it fail with the same error."""

    segment: Segment
    error: Exception


Result = SegmentReady | SegmentFailed


class Executor(Protocol):
    """Renders segments that share engines, options and a cache. Frees everything on exit."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def notes(self, segment: Segment) -> tuple[str, ...]:
        """Warnings for the user before a segment is rendered."""
        ...

    def check(self, segments: Sequence[Segment]) -> None:
        """Check everything that these segments need, before any of them is rendered. Raises InputError."""
        ...

    def retry(self) -> None:
        """Forget what failed transiently, so that it is tried again."""
        ...

    def render(self, segments: Sequence[Segment], later: Sequence[Segment] = ()) -> Iterator[Result]:
        """Render those of these segments that are not in the cache, each once; yields each result at once.

        `segments` lists parents before those that continue from them, and may list one several times. `later`
        are more segments, which may continue from them, and are rendered after all of them.
        """
        ...


@dataclass
class SegmentQueue:
    """Segments to be rendered: those that are in the cache, those that failed, and those that are missing."""

    wanted: Mapping[str, Segment]
    """By key, parents first. A segment of several boards is reported under the first one's name."""
    entries: dict[str, Entry] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    later: frozenset[str] = frozenset()
    """The keys of those that are rendered after all others."""

    @classmethod
    def of(cls, segments: Iterable[Segment], later: Iterable[Segment] = ()) -> SegmentQueue:
        """The queue of these segments, each once, `later` at the end."""
        wanted: dict[str, Segment] = {}
        for segment in segments:
            wanted.setdefault(segment.key, segment)
        first = frozenset(wanted)
        for segment in later:
            wanted.setdefault(segment.key, segment)
        return cls(wanted, later=frozenset(wanted) - first)

    def is_missing(self, key: str) -> bool:
        """Whether a segment is neither ready nor failed."""
        return key not in self.entries and key not in self.failed

    def missing(self) -> list[Segment]:
        """All segments that are neither ready nor failed, parents first."""
        return [segment for key, segment in self.wanted.items() if self.is_missing(key)]

    def look_up(self, store: Store) -> Iterator[SegmentReady]:
        """Look up all segments; yields those that are in the cache."""
        for key, segment in self.wanted.items():
            entry = store.entry(key)
            if entry is not None:
                self.entries[key] = entry
                yield SegmentReady(segment, entry, fresh=False)

    def fail(self, keys: Iterable[str], error: Exception) -> Iterator[SegmentFailed]:
        """Mark segments as failed, with everything that continues from them."""
        failed = set(keys)
        for key, segment in self.wanted.items():
            if segment.parent in failed:
                failed.add(key)
            if key in failed and self.is_missing(key):
                self.failed.add(key)
                yield SegmentFailed(segment, error)


class LocalExecutor:
    """Renders in this process. An engine is entered when it is first needed: an up-to-date film needs none.

    `create` makes the engine of a name; `wanted` are all segments that will be rendered.
    """

    def __init__(
        self,
        create: Callable[[str], Engine],
        wanted: Sequence[Segment],
        store: Store,
        report: Reporter,
        previews: Previews | None = None,
    ) -> None:
        self._wanted = wanted
        self._store = store
        self._report = report
        self._previews = previews
        self._engines = {name: create(name) for name in dict.fromkeys(segment.engine for segment in wanted)}
        self._entered: dict[str, Engine] = {}
        self._failures: dict[str, Exception] = {}
        self._stack = ExitStack()
        self._decoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decoder")
        self._decoding: tuple[str, Future[SegmentReady]] | None = None
        """The key of the segment that is decoded and stored now."""
        self._ending = Flag()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._stack.close()  # which ends what is decoded; what is decoded already is stored
        self._decoder.shutdown(cancel_futures=True)

    def notes(self, segment: Segment) -> tuple[str, ...]:
        """See `Executor.notes`."""
        return self._engines[segment.engine].notes(segment)

    def check(self, segments: Sequence[Segment]) -> None:
        """See `Executor.check`."""
        for name, some in _by_engine(segments).items():
            self.enter(name).prepare(some)

    def retry(self) -> None:
        """See `Executor.retry`."""
        self._failures = {
            name: error for name, error in self._failures.items() if not isinstance(error, TransientError)
        }

    def enter(self, name: str) -> Engine:
        """The engine of that name, entered once and prepared for everything that is missing.

        If that fails, every later call raises the same error.
        """
        if name in self._failures:
            raise self._failures[name]
        if name not in self._entered:
            self._report(Starting(f"the {name} engine"))
            try:
                engine = self._stack.enter_context(self._engines[name])
                missing = [each for each in self._wanted if self._store.state(each.key) != "cached"]
                with suppress(InputError):  # raised again for the board that it is about; the others go on
                    engine.prepare([each for each in missing if each.engine == name])
            except Exception as error:
                self._failures[name] = error
                self._stack.close()
                self._entered.clear()
                raise
            self._entered[name] = engine
        return self._entered[name]

    @property
    def one_at_a_time(self) -> bool:
        """Whether models of an entered engine take turns on the device."""
        return any(engine.one_at_a_time for engine in self._entered.values())

    @property
    def _how(self) -> dict[str, bool]:
        """How the entered engines want the work to be scheduled."""
        beside = all(engine.decodes_beside for engine in self._entered.values())
        return {"one_at_a_time": self.one_at_a_time, "beside": beside}

    def render(self, segments: Sequence[Segment], later: Sequence[Segment] = ()) -> Iterator[Result]:
        """See `Executor.render`. When an engine changes its memory mode, the rest is scheduled again.

        What is decoded meanwhile is yielded at the end of a phase.
        """
        queue = SegmentQueue.of(segments, later)
        yield from queue.look_up(self._store)
        phases_done: defaultdict[str, int] = defaultdict(int)
        seconds: defaultdict[str, float] = defaultdict(float)

        def phases(segment: Segment) -> Sequence[Phase]:
            return self.enter(segment.engine).phases(segment)[phases_done[segment.key] :]

        while missing := queue.missing():
            for name, some in _by_engine(missing).items():
                try:
                    self.enter(name)
                except Exception as error:  # noqa: BLE001 - reported for every board that needs the engine
                    yield from queue.fail((segment.key for segment in some), error)
            missing = queue.missing()
            how = self._how
            keys = {segment.key for segment in missing}
            for work in segment_works(list(queue.wanted.values()), keys, phases, **how, later=queue.later):
                decoding = self._decoding[0] if self._decoding else ""
                yield from self._collect(queue, wait=work.kind == "decode" or work.after == decoding != "")
                if not queue.is_missing(work.key):
                    continue
                try:
                    if work.phase:
                        seconds[work.key] += self._sample(work, queue, first=not phases_done[work.key])
                        phases_done[work.key] += 1
                    else:
                        self._start_decoding(work, queue, seconds[work.key])
                except Exception as error:  # noqa: BLE001 - a bug in one segment must not stop the others
                    yield from queue.fail([work.key], error)
                if self._how != how:
                    break
            yield from self._collect(queue, wait=True)

    def _collect(self, queue: SegmentQueue, *, wait: bool) -> Iterator[Result]:
        """The result of the decoding under way, if it has ended; with `wait`, as soon as it ends."""
        if self._decoding is None or not (wait or self._decoding[1].done()):
            return
        (key, future), self._decoding = self._decoding, None
        try:
            ready = future.result()
        except Exception as error:  # noqa: BLE001 - as above
            yield from queue.fail([key], error)
        else:
            queue.entries[key] = ready.entry
            yield ready

    def _sample(self, work: Work, queue: SegmentQueue, *, first: bool) -> float:
        """Sample to the end of a phase, unless another process did meanwhile; the seconds that it took."""
        segment, phase = queue.wanted[work.key], work.phase
        assert phase is not None
        with self._store.work(work.key) as folder:
            if self._store.entry(work.key) is not None:  # it is found again when it would be decoded
                return 0.0
            task = self._task(segment, queue, folder)
            if first:
                task.report_start()
            return task.sample(phase, last=work.last)

    def _start_decoding(self, work: Work, queue: SegmentQueue, sampling: float) -> None:
        """Begin to decode and store a segment; returns as soon as sampling may go on.

        `sampling` is the seconds that it took before.
        """
        segment, device_is_free = queue.wanted[work.key], Flag()

        def run() -> SegmentReady:
            with self._store.work(segment.key, self._ending.is_set) as folder:
                entry = self._store.entry(segment.key)
                fresh = entry is None  # else another process rendered it meanwhile
                task = self._task(segment, queue, folder)
                return SegmentReady(segment, entry or task.publish(sampling, device_is_free), fresh)

        future = self._decoder.submit(run)
        future.add_done_callback(lambda _: device_is_free.set())
        self._decoding = segment.key, future
        if not work.beside:
            device_is_free.wait()

    def _task(self, segment: Segment, queue: SegmentQueue, folder: WorkFolder) -> _Task:
        engine = self.enter(segment.engine)

        def carry() -> Carry | None:
            if segment.parent is None:
                return None
            parent = queue.entries.get(segment.parent)
            if parent is None:  # it is sampled and not stored yet: no frames of it are needed
                latents = self._store.latents(segment.parent)
                if latents is not None:
                    return Carry(segment.engine, latents, ())
                parent = self._store.entry(segment.parent)  # stored meanwhile, here or by another process
            if parent is None:
                what = f"the latents that clip {segment.clip} continues from are damaged"
                raise TransientError(f"{what}; run the same command again, which makes them again")
            needs_frames = parent.engine != segment.engine or engine.phases(segment)[0].needs_frames
            return carry_of(parent, max(segment.overlap, 1) if needs_frames else 0)

        return _Task(segment, carry, folder, engine, self._report, self._previews)


@dataclass(frozen=True)
class _Task:
    """One segment being rendered."""

    segment: Segment
    carry: Callable[[], Carry | None]
    """What the parent hands over."""
    folder: WorkFolder
    engine: Engine
    report: Reporter
    previews: Previews | None

    def sample(self, phase: Phase, *, last: bool) -> float:
        """Sample to the end of a phase, unless the latents are there; returns the seconds it took."""
        start, steps = time.monotonic(), 0
        self.report(PhaseStarted(*self.name, phase.model, take=self.take))

        def on_step(step: int, total: int) -> None:
            nonlocal steps
            steps += 1
            self.report(StepDone(*self.name, step, total, take=self.take))
            if self.previews:
                self.previews.sampled(self.segment, self.engine, step)

        if self.folder.latents() is None:
            if last:
                self.folder.save_latents(self._latents(on_step))
            else:
                self.engine.advance(self.segment, self.carry(), self.folder.checkpoint, on_step, phase)
        spent = time.monotonic() - start
        self.report(PhaseDone(*self.name, phase.model, steps, round(spent, 3), take=self.take))
        return spent

    def publish(self, sampling: float, device_is_free: Flag) -> Entry:
        """Decode the latents; the finished segment. `sampling` is the seconds that it took before.

        Sets `device_is_free` when only storing is left.
        """
        segment, start = self.segment, time.monotonic()
        latents: Latents | None = self.folder.latents()
        if latents is None:  # they were damaged meanwhile
            latents = self._latents(
                lambda step, total: self.report(StepDone(*self.name, step, total, take=self.take))
            )
            self.folder.save_latents(latents)
        self.report(PhaseStarted(*self.name, "decode", take=self.take))
        frames = self.engine.decode(segment, latents)
        first = next(frames, None)
        free = time.monotonic()
        environment: dict[str, Json] = {**self.engine.environment()}
        device_is_free.set()
        frames = self._reported(chain([first] if first is not None else [], frames))
        self.folder.write_frames(frames, segment.fps, segment.frames)
        end = time.monotonic()
        decoding = end - start
        notes: dict[str, Json] = {
            "clip": segment.clip,
            "prompt": segment.prompt,
            "sampling_seconds": round(sampling, 3),
            "decoding_seconds": round(decoding, 3),
            "versions": {**versions()},
            "environment": environment,
        }
        entry = self.folder.publish(segment.inputs, notes)
        seconds = (round(sampling + decoding, 3), round(sampling, 3), round(decoding, 3))
        storing = round(end - free, 3)
        self.report(SegmentDone(*self.name, segment.key, *seconds, storing, take=self.take))
        return entry

    @property
    def name(self) -> tuple[Path, str, int]:
        """The segment's name in events, without the take."""
        return self.segment.board, self.segment.clip, self.segment.index

    @property
    def take(self) -> int:
        """The number of its take."""
        return self.segment.take

    def report_start(self) -> None:
        """Report that the segment's rendering starts."""
        self.report(SegmentStarted(*self.name, self.segment.key, self.segment.frames, take=self.take))

    def _latents(self, on_step: OnStep) -> Latents:
        return self.engine.sample(self.segment, self.carry(), self.folder.checkpoint, on_step)

    def _reported(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """The same frames; every tenth of them is reported."""
        total = self.segment.frames
        if self.previews:
            frames = self.previews.drawing(self.segment, frames)
        for done, frame in enumerate(frames, 1):
            yield frame
            if done * 10 // total > (done - 1) * 10 // total:
                self.report(FramesDone(*self.name, done, total, take=self.take))


def carry_of(entry: Entry, count: int) -> Carry:
    """The latents and the last `count` frames of a finished segment."""
    with entry.frames() as frames:
        last = range(max(len(frames) - count, 0), len(frames))
        return Carry(entry.engine, entry.latents(), [frames[number] for number in last])


def system_error(error: Exception, path: Path, host: str = "") -> Exception:
    """The StoryError for a MemoryError or OSError, about `path` if it names no file; others unchanged."""
    if isinstance(error, MemoryError):
        where = f" on {host}" if host else ""
        remedy = "close other programs, then run the same command again: everything rendered so far is kept"
        return TransientError(f"RAM ran out{where}; {remedy}")
    if isinstance(error, OSError):
        return disk_error(error, Path(error.filename or path), "reading or writing")
    return error


def _by_engine(segments: Iterable[Segment]) -> dict[str, list[Segment]]:
    found: dict[str, list[Segment]] = {}
    for segment in segments:
        found.setdefault(segment.engine, []).append(segment)
    return found
