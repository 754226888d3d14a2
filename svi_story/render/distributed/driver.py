"""Ray's driver, in a process of its own: starts workers, assigns chains to them, passes on what they report.

Ray's calls may block where no signal is heard, and end their process when the cluster is lost. The command
that renders talks to this process over a connection, and may kill it at any moment.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svi_story.cache.store import Store
from svi_story.enginespec import spec_of
from svi_story.errors import InputError, RenderError, StoryError, TransientError
from svi_story.events import ChainGiven, Event, SegmentEvent, Warned, WorkerLost, WorkerStarted
from svi_story.files import read_regular
from svi_story.render.distributed.worker import (
    Worker,
    WorkerBugError,
    WorkerSetup,
    WorkerState,
    absolute,
    portable,
    portable_result,
    portable_segment,
    wait_for_entry,
)
from svi_story.render.executor import SegmentFailed, SegmentQueue, SegmentReady
from svi_story.render.live import SegmentShown
from svi_story.render.record import versions
from svi_story.render.schedule import chains_of, ready, share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from svi_story.cache.entry import Entry
    from svi_story.commands import Given
    from svi_story.enginespec import EngineOptions
    from svi_story.plan.model import Segment
    from svi_story.render.distributed.worker import Message
    from svi_story.render.executor import Result
    from svi_story.render.schedule import Chain

    StartWorker = Callable[[Sequence[Segment]], tuple[Any, Any]]
    """From all missing segments to Ray's handle of a worker, and its messages while the engines start."""

LOCAL = "local"
"""The address of a cluster that is started here, for as long as it is needed."""
CONNECT_SECONDS = 10.0
CHECK = "check the address, the versions of Python and Ray, and RAY_AUTH_MODE and RAY_AUTH_TOKEN"
LARGEST_LOG = 64 * 2**20
"""Bytes of a worker's log that are read."""
OBJECTS = 80 * 2**20
"""Bytes for what travels between processes, which is little: frames and latents go through the cache."""
MOST_DEATHS = 2
"""How many workers may die over a segment before it is given up with the third."""
POLL_SECONDS = 1.0
"""Seconds to wait for messages before looking around."""
SLOW_START_SECONDS = 60.0
"""Seconds after which a warning says that no worker has started."""
REMEDY = "if RAM runs out there, ask for fewer with --workers; Ray's log of the workers may say more"


@dataclass(frozen=True)
class Request:
    """Segments to render. The driver answers with events, previews, a Result for each, and in the end None.

    An exception instead means that it cannot continue.
    """

    options: EngineOptions
    cache: Path
    fallbacks: tuple[Path, ...]
    """Other caches, which are only read."""
    probe: Path
    """A file in the cache that workers must see."""
    preview_every: int
    """Steps between two previews; 0 for none."""
    wanted: Mapping[str, Segment]
    entries: dict[str, Entry]
    """Those that are in the cache."""
    later: frozenset[str]
    """As in `SegmentQueue`."""
    given: Mapping[str, Given]
    """What the commands repeat that messages suggest."""


def main() -> None:
    """Join a cluster, answer None or with an InputError, and carry out requests: `FD ADDRESS WORKERS FOLDER`.

    WORKERS is how many there may be; 0: one for each GPU, or for each two cores without. FOLDER is Ray's own,
    for a cluster that is started here.
    """
    descriptor, address, workers, folder = sys.argv[1:]
    connection = Connection(int(descriptor))
    with suppress(EOFError, ConnectionError):  # the command has ended
        try:
            join_cluster(address, int(workers))
        except InputError as error:
            connection.send(error)
            return
        connection.send(None)
        while True:
            carry_out(connection.recv(), int(workers), Path(folder), connection)


def join_cluster(address: str, workers: int) -> None:
    """Raises InputError when the cluster cannot be joined."""
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        options |= {
            "num_cpus": max(os.cpu_count() or 1, workers),
            "object_store_memory": OBJECTS,
            "include_dashboard": False,
        }
    elif ":" in address:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            what = f"--ray {address}: nothing answers there ({error})"
            raise InputError(f"{what}; give the address that `ray start --head` printed") from error
    import ray

    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        raise InputError(f"--ray {address}: {text.splitlines()[0]}; {CHECK}") from error


def carry_out(request: Request, workers: int, folder: Path, connection: Connection) -> None:
    """Render what is requested, on as many workers, and send what they report."""
    from ray.exceptions import RayError

    try:
        store = Store(request.cache, connection.send, request.fallbacks)
        start, count = worker_start(request, workers)
        queue = WorkerPool(
            request.wanted, request.entries, store, count, start, lambda: last_log_line(folder), request.later
        )
        try:
            for message in queue.render():
                connection.send(message if isinstance(message, SegmentShown) else portable_result(message))
            connection.send(None)
        finally:
            queue.stop_all()
    except (EOFError, ConnectionError):
        raise
    except RayError as error:
        connection.send(TransientError(f"Ray ended or was lost: {last_line(error)}"))
    except Exception as error:  # noqa: BLE001 - it must reach the process that can report it
        connection.send(portable(error))


def worker_start(request: Request, workers: int) -> tuple[StartWorker, int]:
    """How to start a worker, and how many to start."""
    import ray

    resources = ray.cluster_resources()
    needs_gpu = any(spec_of(segment.engine).needs_gpu for segment in request.wanted.values())
    gpus = int(resources.get("GPU", 0)) if needs_gpu else 0
    count = workers or gpus or max(1, int(resources.get("CPU", 1)) // 2)
    threads = 0
    if needs_gpu and not gpus:
        import torch

        threads = torch.get_num_threads()  # with another number, the last bits of what a CPU computes differ
    options = absolute(replace(request.options, threads=threads))
    actor = ray.remote(num_cpus=1, num_gpus=min(gpus, 1))(Worker)
    on_nodes = workers_by_node(ray.nodes(), count, gpus)
    setup = WorkerSetup(
        *(options, request.cache, request.probe, request.fallbacks, request.preview_every),
        given=request.given,
        workers=on_nodes,
    )

    def start(missing: Sequence[Segment]) -> tuple[Any, Any]:
        worker = actor.remote(setup)
        enter = worker.enter.options(num_returns="streaming")
        return worker, enter.remote([portable_segment(segment) for segment in missing])

    return start, count


def workers_by_node(nodes: Iterable[Mapping[str, Any]], count: int, gpus: int) -> dict[str, int]:
    """How many of `count` workers there may be on each node, by its id: one for each GPU, or CPU without."""
    return {
        node["NodeID"]: max(1, min(count, int(node["Resources"].get("GPU" if gpus else "CPU", 0))))
        for node in nodes
    }


def last_log_line(folder: Path) -> str:
    """The last line that a worker process of a Ray that was started here wrote to its log; empty for none."""
    logs = sorted(folder.glob("ray/session_latest/logs/worker-*.err"), key=lambda path: path.stat().st_mtime)
    for log in reversed(logs):
        lines = read_regular(log, LARGEST_LOG).decode("utf-8", "replace").split("\n")
        if written := [line.strip() for line in lines if line.strip()]:
            return written[-1][:200]
    return ""


@dataclass
class WorkerHandle:
    """A worker, as the driver sees it."""

    number: int
    actor: Any
    """Ray's handle."""
    messages: Any
    """Of what it works on; None when it is idle."""
    state: WorkerState | None = None
    """What it reported last; None before its process is there."""
    is_ready: bool = False
    """Whether its engines are entered."""
    unfinished: list[str] = field(default_factory=list)
    """Keys assigned to it that it has not finished or failed."""
    last: str = ""
    """The key of its latest event."""


class WorkerPool(SegmentQueue):
    """Segments rendered by at most `count` workers."""

    def __init__(
        self,
        wanted: Mapping[str, Segment],
        entries: dict[str, Entry],
        store: Store,
        count: int,
        start: StartWorker,
        last_log_line: Callable[[], str] = str,
        later: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(wanted, entries, later=later)
        self._store = store
        self._report = store.report
        self._count = count
        self._start = start
        self._last_log_line = last_log_line
        self._workers: list[WorkerHandle] = []
        self._started = 0
        self._deaths: Counter[str] = Counter()
        self._failed_starts = 0
        self._failure: Exception = RenderError("no worker could be started")
        """Why no worker is left, when none is."""
        self._since = 0.0
        """When the first worker was requested; infinite once one has started or the warning was given."""
        self._names = {segment.name: key for key, segment in wanted.items()}

    def render(self) -> Iterator[Result | SegmentShown]:
        """Render what is missing, with as many workers as there is work for; yields their previews, too."""
        while missing := self.missing():
            idle = sum(not worker.unfinished for worker in self._workers)
            self._since = self._since or time.monotonic()
            for _ in range(min(self._count - len(self._workers), len(self._waiting(missing)) - idle)):
                self._started += 1
                self._workers.append(WorkerHandle(self._started, *self._start(missing)))
            if not self._workers:
                yield from self.fail([segment.key for segment in missing], self._failure)
                return
            for worker in self._workers:
                if worker.messages is None and worker.is_ready:
                    self._assign(worker, self._waiting(missing))
            worker, message = self._next_message()
            if isinstance(message, SegmentShown):
                yield message
            else:
                yield from self._handle(worker, message)

    def stop_all(self) -> None:
        """Stop every worker at once; checkpoints keep the work in progress."""
        for worker in tuple(self._workers):
            self._stop(worker)

    def _waiting(self, missing: Sequence[Segment]) -> list[Chain]:
        """The chains that can start now."""
        assigned = {key for worker in self._workers for key in worker.unfinished}
        keys = {segment.key for segment in missing}
        return ready(chains_of(list(self.wanted.values()), keys - assigned, self.later), keys)

    def _assign(self, worker: WorkerHandle, waiting: Sequence[Chain]) -> None:
        """Assign the first of the waiting chains to an idle worker: its share of them."""
        assert worker.state is not None
        workers = max(self._count, len(self._workers))
        chains = waiting[: share(len(waiting), workers, one_at_a_time=bool(worker.state.one_at_a_time))]
        if not chains:
            return
        worker.unfinished = [key for chain in chains for key in chain.keys]
        worker.last = ""
        before = dict.fromkeys(chain.after for chain in chains if chain.after)
        for chain in chains:
            first, count = self.wanted[chain.keys[0]], len(chain.segments)
            name = (first.board, first.clip, first.index)
            self._report(ChainGiven(*name, worker.number, count, take=first.take))
        worker.messages = worker.actor.render.options(num_returns="streaming").remote(
            [portable_segment(self.wanted[key]) for key in before],
            [[portable_segment(segment) for segment in chain.segments] for chain in chains],
        )

    def _next_message(self) -> tuple[WorkerHandle, Message | None]:
        """A worker and its next message that changes what can be scheduled; events before it are passed on.

        None means that it has done its work, a RayError that it has died.
        """
        import ray
        from ray.exceptions import RayError

        busy = [worker for worker in self._workers if worker.messages is not None]
        while True:
            streams, _ = ray.wait([worker.messages for worker in busy], timeout=POLL_SECONDS)
            if not streams:
                if time.monotonic() > self._since + SLOW_START_SECONDS:
                    free = ray.available_resources()
                    resources = ", ".join(f"{free.get(name, 0):g} {name}s" for name in ("GPU", "CPU"))
                    what = f"no worker has started yet: the cluster has {resources} free; waiting"
                    self._report(Warned(f"{what} (^C loses nothing)"))
                    self._since = inf
                continue
            worker = next(worker for worker in busy if worker.messages is streams[0])
            try:
                message: Message = ray.get(next(worker.messages))
            except StopIteration:
                return worker, None
            except RayError as error:
                return worker, error
            if not isinstance(message, Event):
                return worker, message
            if isinstance(message, SegmentEvent):
                worker.last = self._names.get(message.name, "")
            self._report(message)

    def _handle(self, worker: WorkerHandle, message: Message | None) -> Iterator[Result]:
        from ray.exceptions import RayError

        match message:
            case None if any(map(self.is_missing, worker.unfinished)):
                yield from self._on_death(worker, "it ended before its work")
            case None:
                worker.messages, worker.unfinished = None, []
            case WorkerState(one_at_a_time=None):
                self._on_start(worker, message)
            case WorkerState():
                worker.state, worker.is_ready = message, True
                self._failed_starts = 0
            case SegmentReady(segment, _, fresh):
                worker.unfinished.remove(segment.key)
                try:
                    entry = self.entries[segment.key] = wait_for_entry(self._store, segment.key)
                except TransientError as error:
                    yield from self.fail([segment.key], error)
                else:
                    yield SegmentReady(self.wanted[segment.key], entry, fresh)
            case SegmentFailed(segment, WorkerBugError() as error) if not self._deaths[segment.key]:
                # its process may be broken: try once more in another
                self._deaths[segment.key] = MOST_DEATHS - 1  # with this one, the next is the last
                yield from self._on_death(worker, last_line(error))
            case SegmentFailed(segment, error):
                worker.unfinished.remove(segment.key)
                yield from self.fail([segment.key], error)
            case RayError():
                yield from self._on_death(worker, reason_of(message))
            case StoryError() if not worker.is_ready and not isinstance(message, TransientError):
                # it cannot run where it was placed: expect one worker fewer
                self._failure = message
                self._count -= 1
                self._failed_starts -= 1  # it is not started again
                yield from self._on_death(worker, last_line(message), message)
            case Exception():
                yield from self._on_death(worker, last_line(message), message)

    def _on_start(self, worker: WorkerHandle, state: WorkerState) -> None:
        worker.state = state
        self._since = inf
        self._report(WorkerStarted(worker.number, state.host, state.process))
        ours = versions()
        others = [
            f"{name} {it}, not {ours.get(name)}"
            for name, it in state.versions.items()
            if it != ours.get(name)
        ]
        if others:
            what = f"worker {worker.number} on {state.host} has {', '.join(others)}: its frames may differ"
            self._report(Warned(what))

    def _on_death(
        self, worker: WorkerHandle, reason: str, error: Exception | None = None
    ) -> Iterator[SegmentFailed]:
        """A worker died: its unfinished segments are released; the one it was rendering is blamed.

        `error` is what the worker itself reported, if anything.
        """
        self._stop(worker)
        self._report(WorkerLost(worker.number, worker.state.host if worker.state else "", reason))
        unfinished = [key for key in worker.unfinished if self.is_missing(key)]
        if not worker.is_ready:
            self._failed_starts += 1
            if self._failed_starts > MOST_DEATHS:
                last = self._last_log_line()
                what = f"{self._failed_starts} workers died before they could work, the last one so: {reason}"
                died = TransientError(f"{what}{f' ({last})' if last else ''}; {REMEDY}")
                self._failure, self._count = error or died, 0
        elif unfinished:
            blamed = worker.last if worker.last in unfinished else unfinished[0]
            self._deaths[blamed] += 1
            if self._deaths[blamed] > MOST_DEATHS:
                what = f"{self._deaths[blamed]} workers died while they made it, the last one so: {reason}"
                yield from self.fail([blamed], RenderError(what))

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
