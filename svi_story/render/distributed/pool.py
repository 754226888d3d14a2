"""The workers of a cluster: which chains they render, what they report, what happens when one dies."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Any

from svi_story.errors import RenderError, StoryError, TransientError
from svi_story.events import ChainGiven, Event, SegmentEvent, Warned, WorkerLost, WorkerStarted
from svi_story.render.distributed.worker import (
    Assignment,
    EngineReady,
    Failed,
    Finished,
    Started,
    WorkerBugError,
    portable_segment,
    wait_for_entry,
)
from svi_story.render.executor import SegmentQueue, SegmentReady
from svi_story.render.record import versions
from svi_story.render.schedule import chains_of, ready, share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from svi_story.cache.entry import Entry
    from svi_story.cache.store import Store
    from svi_story.events import Reporter
    from svi_story.plan.model import Segment
    from svi_story.render.distributed.worker import Message
    from svi_story.render.executor import Result, SegmentFailed
    from svi_story.render.schedule import Chain

MOST_DEATHS = 2
"""How many workers may die over a segment before it is given up with the third."""
POLL_SECONDS = 1.0
"""Seconds to wait for news before looking around."""
SLOW_START_SECONDS = 60.0
"""Seconds after which a warning says that no worker has started."""
REMEDY = "if RAM runs out there, ask for fewer with --workers; Ray's log of the workers may say more"


@dataclass
class WorkerHandle:
    """A worker, as the driver sees it."""

    number: int
    actor: Any
    """Ray's handle."""
    stream: Any
    """Messages of the assignment it works on; None when it is idle."""
    host: str = ""
    ready: EngineReady | None = None
    """The state its engine reported last; None before it can work."""
    left: list[str] = field(default_factory=list)
    """Keys assigned to it that it has not finished or failed."""
    last: str = ""
    """The key of its latest event."""

    def next_message(self) -> Message | None:
        """Its next message; None at the end of the assignment. Raises RayError when the worker has died."""
        import ray

        try:
            ref = next(self.stream)
        except StopIteration:
            return None
        message: Message = ray.get(ref)
        return message


@dataclass(frozen=True)
class WorkerFactory:
    """How many workers to start, and how."""

    count: int
    start: Callable[[Sequence[Segment]], tuple[Any, Any]]
    """From all missing segments to Ray's handle and the stream of messages while the engine starts."""
    last_words: Callable[[], str] = str
    """The last line that a worker process wrote to its log; empty where the log cannot be read."""


class WorkerPool(SegmentQueue):
    """Segments rendered by workers."""

    def __init__(
        self,
        wanted: Mapping[str, Segment],
        entries: dict[str, Entry],
        store: Store,
        report: Reporter,
        factory: WorkerFactory,
    ) -> None:
        super().__init__(wanted, entries)
        self._store = store
        self._report = report
        self._factory = factory
        self._workers: list[WorkerHandle] = []
        self._started = 0
        self._deaths: Counter[str] = Counter()
        self._failed_starts = 0
        self._failure: Exception = RenderError("no worker could be started")
        """Why no worker is left, when none is."""
        self._since = 0.0
        """When the first worker was requested; infinite once one has started or the warning was given."""
        self._names = {(segment.board, segment.clip, segment.index): key for key, segment in wanted.items()}

    def render(self) -> Iterator[Result]:
        """Render what is missing, with as many workers as there is work for."""
        while missing := self.missing():
            self._start_workers(missing)
            if not self._workers:
                yield from self.fail([segment.key for segment in missing], self._failure)
                return
            self._assign_all(missing)
            yield from self._wait()

    def stop_all(self) -> None:
        """Stop every worker at once; checkpoints keep the work in progress."""
        for worker in tuple(self._workers):
            self._stop(worker)

    def _waiting(self, missing: Sequence[Segment]) -> list[Chain]:
        """The chains that can start now."""
        assigned = {key for worker in self._workers for key in worker.left}
        keys = {segment.key for segment in missing}
        return ready(chains_of(list(self.wanted.values()), keys - assigned), keys)

    def _start_workers(self, missing: Sequence[Segment]) -> None:
        """Start workers while there are more chains than idle workers."""
        idle = sum(not worker.left for worker in self._workers)
        needed = min(self._factory.count - len(self._workers), len(self._waiting(missing)) - idle)
        self._since = self._since or time.monotonic()
        for _ in range(needed):
            self._started += 1
            actor, stream = self._factory.start(missing)
            self._workers.append(WorkerHandle(self._started, actor, stream))

    def _assign_all(self, missing: Sequence[Segment]) -> None:
        """Give chains to idle workers."""
        workers = max(self._factory.count, len(self._workers))
        for worker in self._workers:
            if worker.stream is None and worker.ready is not None:
                waiting = self._waiting(missing)
                count = share(len(waiting), workers, one_at_a_time=worker.ready.one_at_a_time)
                if count:
                    self._assign(worker, waiting[:count])

    def _assign(self, worker: WorkerHandle, chains: Sequence[Chain]) -> None:
        worker.left = [key for chain in chains for key in chain.keys]
        worker.last = ""
        before = dict.fromkeys(chain.after for chain in chains if chain.after)
        assignment = Assignment(
            tuple(portable_segment(self.wanted[key]) for key in before),
            tuple(tuple(portable_segment(segment) for segment in chain.segments) for chain in chains),
        )
        for chain in chains:
            first, count = self.wanted[chain.keys[0]], len(chain.segments)
            self._report(ChainGiven(first.board, first.clip, first.index, worker.number, count))
        worker.stream = worker.actor.render.options(num_returns="streaming").remote(assignment)

    def _wait(self) -> Iterator[Result]:
        """Wait for a message that changes what can be scheduled; events before it are forwarded."""
        from ray.exceptions import RayError

        while True:
            worker = self._next_worker()
            try:
                message = worker.next_message()
            except RayError as error:
                yield from self._on_death(worker, reason_of(error))
                return
            if isinstance(message, Event):
                self._forward(worker, message)
            else:
                yield from self._handle(worker, message)
                return

    def _next_worker(self) -> WorkerHandle:
        """A worker with a message, or one that is done."""
        import ray

        busy = [worker for worker in self._workers if worker.stream is not None]
        while True:
            ready_streams, _ = ray.wait([worker.stream for worker in busy], timeout=POLL_SECONDS)
            if ready_streams:
                return next(worker for worker in busy if worker.stream is ready_streams[0])
            self._warn_if_none_starts()

    def _warn_if_none_starts(self) -> None:
        """Warn once if no worker has started in time."""
        if time.monotonic() > self._since + SLOW_START_SECONDS:
            import ray

            free = ray.available_resources()
            resources = ", ".join(f"{free.get(name, 0):g} {name}s" for name in ("GPU", "CPU"))
            what = f"no worker has started yet: the cluster has {resources} free; waiting (^C loses nothing)"
            self._report(Warned(what))
            self._since = inf

    def _handle(
        self, worker: WorkerHandle, message: Started | EngineReady | Finished | Failed | None
    ) -> Iterator[Result]:
        match message:
            case None if any(map(self.is_missing, worker.left)):
                yield from self._on_death(worker, "it ended before its work")
            case None:
                worker.stream, worker.left = None, []
            case Started():
                self._on_started(worker, message)
            case EngineReady():
                worker.ready = message
                self._failed_starts = 0
            case Finished(key, fresh):
                yield from self._on_finished(worker, key, fresh=fresh)
            case Failed("", error):
                self._on_refusal(worker, error)
                yield from self._on_death(worker, last_line(error), error)
            case Failed(key, error):
                yield from self._on_failed(worker, key, error)

    def _on_refusal(self, worker: WorkerHandle, error: Exception) -> None:
        """A worker reports that it cannot run where it was placed: expect one worker fewer."""
        if worker.ready is None and isinstance(error, StoryError) and not isinstance(error, TransientError):
            self._failure = error
            self._factory = replace(self._factory, count=self._factory.count - 1)
            self._failed_starts -= 1  # it is not started again

    def _on_started(self, worker: WorkerHandle, started: Started) -> None:
        worker.host = started.host
        self._since = inf
        self._report(WorkerStarted(worker.number, started.host, started.process))
        ours = versions()
        others = [
            f"{name} {it}, not {ours.get(name)}"
            for name, it in started.versions.items()
            if it != ours.get(name)
        ]
        if others:
            what = f"worker {worker.number} on {started.host} has {', '.join(others)}: its frames may differ"
            self._report(Warned(what))

    def _forward(self, worker: WorkerHandle, event: Event) -> None:
        if isinstance(event, SegmentEvent):
            worker.last = self._names.get((event.board, event.clip, event.segment), "")
        self._report(event)

    def _on_finished(self, worker: WorkerHandle, key: str, *, fresh: bool) -> Iterator[Result]:
        worker.left.remove(key)
        try:
            self.entries[key] = wait_for_entry(self._store, key)
        except TransientError as error:
            yield from self.fail([key], error)
        else:
            yield SegmentReady(self.wanted[key], self.entries[key], fresh)

    def _on_failed(self, worker: WorkerHandle, key: str, error: Exception) -> Iterator[SegmentFailed]:
        """A segment failed. An unexpected error may come from a broken process: try once more in another."""
        if isinstance(error, WorkerBugError) and not self._deaths[key]:
            self._deaths[key] = MOST_DEATHS - 1  # with this one, the next is the last
            yield from self._on_death(worker, last_line(error))
            return
        worker.left.remove(key)
        if key in self.failed:
            return
        yield from self.fail([key], error)

    def _on_death(
        self, worker: WorkerHandle, reason: str, error: Exception | None = None
    ) -> Iterator[SegmentFailed]:
        """A worker died: its unfinished segments are released; the one it was rendering is blamed.

        `error` is what the worker itself reported, if anything.
        """
        self._stop(worker)
        self._report(WorkerLost(worker.number, worker.host, reason))
        left = [key for key in worker.left if self.is_missing(key)]
        if worker.ready is None:
            self._failed_starts += 1
            if self._failed_starts > MOST_DEATHS:
                self._failure = error or self._died_early(reason)
                self._factory = replace(self._factory, count=0)
        elif left:
            blamed = worker.last if worker.last in left else left[0]
            self._deaths[blamed] += 1
            if self._deaths[blamed] > MOST_DEATHS:
                what = f"{self._deaths[blamed]} workers died while they made it, the last one so: {reason}"
                yield from self.fail([blamed], RenderError(what))

    def _died_early(self, reason: str) -> TransientError:
        """The error when workers die before they can report why."""
        last_words = self._factory.last_words()
        what = f"{self._failed_starts} workers died before they could work, the last one so: {reason}"
        return TransientError(f"{what}{f' ({last_words})' if last_words else ''}; {REMEDY}")

    def _stop(self, worker: WorkerHandle) -> None:
        import ray

        self._workers.remove(worker)
        ray.kill(worker.actor)


def reason_of(error: Exception) -> str:
    """Why a worker died, on one line."""
    found = re.search(r"The actor (?:is dead|died) because (its .*?)[.\n]", str(error))
    return found[1] if found else last_line(error)


def last_line(error: Exception) -> str:
    """The last line of an error's text; of a traceback, the error itself."""
    return re.sub(r"\x1b\[\d*m", "", str(error).strip() or type(error).__name__).splitlines()[-1]
