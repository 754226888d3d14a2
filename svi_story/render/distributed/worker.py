"""A worker of a cluster: a process with an engine that renders chains of segments and reports progress."""

from __future__ import annotations

import os
import socket
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from svi_story import __version__
from svi_story.cache.store import Store
from svi_story.engines import implementation_of
from svi_story.errors import InputError, Problem, StoryError, TransientError
from svi_story.events import Event
from svi_story.files import disk_error
from svi_story.plan.fingerprints import Fingerprints
from svi_story.render.executor import LocalExecutor, SegmentFailed
from svi_story.render.record import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from svi_story.cache.entry import Entry
    from svi_story.engines.base import Engine
    from svi_story.enginespec import EngineOptions
    from svi_story.plan.model import Segment

T = TypeVar("T")

VISIBLE_SECONDS = 90.0
"""Seconds until what another host wrote must be seen: NFS remembers for a minute what was not there."""


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to start. Its paths are absolute."""

    options: EngineOptions
    cache: Path
    probe: Path
    """A file in the cache that the worker must see."""
    fallbacks: tuple[Path, ...] = ()
    """Other caches, which are only read."""
    version: str = __version__
    """Of svi-story, where the films are cut."""
    workers: Mapping[str, int] = field(default_factory=dict)
    """How many workers there may be on each node, by Ray's id of the node."""


@dataclass(frozen=True)
class Started:
    """The worker's process is there."""

    host: str
    process: int
    versions: Mapping[str, str]
    """Of what frames depend on."""


@dataclass(frozen=True)
class EngineReady:
    """The engine is entered."""

    one_at_a_time: bool
    """Whether its models take turns on the device."""


@dataclass(frozen=True)
class Finished:
    """A segment is in the cache."""

    key: str
    fresh: bool
    """Whether it was made just now."""


@dataclass(frozen=True)
class Failed:
    """A segment that could not be made; without a key: the worker cannot work."""

    key: str
    error: Exception


class WorkerBugError(Exception):
    """A mistake of ours on a worker; its text is the traceback there."""


Message: TypeAlias = Event | Started | EngineReady | Finished | Failed
"""What a worker sends."""


@dataclass(frozen=True)
class Assignment:
    """Chains of segments for one worker, and the segments they continue from."""

    before: tuple[Segment, ...]
    chains: tuple[tuple[Segment, ...], ...]


class Worker:
    """The actor. Its work runs in one thread, so that everything can be reported at once."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._stack = ExitStack()
        self._store: Store | None = None
        self._executor: LocalExecutor | None = None
        self._send: Callable[[Message], None] = lambda _: None
        if os.environ.get("OMP_NUM_THREADS") == "1":  # Ray's, which knows nothing of what we compute
            del os.environ["OMP_NUM_THREADS"]

    def enter(self, wanted: Sequence[Segment]) -> Iterator[Message]:
        """Check that this host can work, and enter the engines: prepared for everything that is missing."""
        yield from self._messages(lambda: self._enter(wanted))

    def render(self, assignment: Assignment) -> Iterator[Message]:
        """Render chains of segments."""
        yield from self._messages(lambda: self._render(assignment))

    def _messages(self, work: Callable[[], None]) -> Iterator[Message]:
        """The messages that are sent while this is done, as they come."""
        sent: SimpleQueue[Message | None] = SimpleQueue()
        self._send = sent.put

        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - it must reach the driver, whatever it is
                sent.put(Failed("", portable(error)))
            finally:
                sent.put(None)

        self._thread.submit(run)
        while (message := sent.get()) is not None:
            yield message

    def _report(self, event: Event) -> None:
        self._send(event)

    def _enter(self, wanted: Sequence[Segment]) -> None:
        import ray

        setup = self._setup
        self._send(Started(socket.gethostname(), os.getpid(), versions()))
        _check(setup)
        fingerprints = Fingerprints.of_this_machine(self._report, [setup.cache])
        store = Store(setup.cache, self._report, setup.fallbacks)
        node = ray.get_runtime_context().get_node_id()
        options = replace(setup.options, workers_on_host=setup.workers.get(node, 1))

        def create(name: str) -> Engine:
            return implementation_of(name).create_engine(
                options, fingerprints.file, store.embedding, self._report
            )

        executor = self._stack.enter_context(LocalExecutor(create, wanted, store, self._report))
        for name in dict.fromkeys(segment.engine for segment in wanted):
            executor.enter(name)
        self._store, self._executor = store, executor
        self._send(EngineReady(executor.one_at_a_time))

    def _render(self, assignment: Assignment) -> None:
        store, executor = self._store, self._executor
        assert store is not None and executor is not None, "enter comes first"  # noqa: PT018
        for segment in assignment.before:
            wait_for_entry(store, segment.key)
        good = [chain for chain in assignment.chains if self._is_fine(chain, executor)]
        asked = {segment.key for chain in good for segment in chain}
        for result in executor.render([*assignment.before, *(each for chain in good for each in chain)]):
            if result.segment.key not in asked:
                continue
            if isinstance(result, SegmentFailed):
                self._send(Failed(result.segment.key, portable(result.error)))
            else:
                self._send(Finished(result.segment.key, result.fresh))
        self._send(EngineReady(executor.one_at_a_time))

    def _is_fine(self, chain: Sequence[Segment], executor: LocalExecutor) -> bool:
        """Whether nothing is wrong with what a chain needs; else its segments are reported as failed."""
        try:
            executor.check(chain)
        except StoryError as error:
            for segment in chain:
                self._send(Failed(segment.key, error))
            return False
        return True


def _check(setup: WorkerSetup) -> None:
    """Raises InputError where this place cannot work for the one that cuts the films."""
    if __version__ != setup.version:
        what = f"svi-story {__version__} is installed on {socket.gethostname()}"
        raise InputError(f"{what}, {setup.version} where the films are cut; install the same")
    if not _wait_for(setup.probe.exists):
        what = f"{socket.gethostname()} does not see the cache: workers need a file system that all share"
        raise InputError(Problem(f"{what}; choose a folder there with --cache", file=str(setup.cache)))


def wait_for_entry(store: Store, key: str) -> Entry:
    """An entry that another host has just made. Raises TransientError when it does not come to be seen."""
    entry = _wait_for(lambda: store.entry(key))
    if entry is None:
        raise TransientError(
            f"{store.folder(key)} was made on another host and is not seen on {socket.gethostname()}; check "
            "that both use the same file system"
        )
    return entry


def _wait_for(look: Callable[[], T]) -> T:
    """What is found in the end; falsy when it does not come in VISIBLE_SECONDS."""
    until = time.monotonic() + VISIBLE_SECONDS
    while not (found := look()) and time.monotonic() < until:
        time.sleep(0.2)
    return found


def portable(error: Exception) -> Exception:
    """An error that can travel: ours as it is, another one as the text of its traceback."""
    if isinstance(error, StoryError):
        return error
    if isinstance(error, MemoryError):
        return TransientError(f"RAM ran out on {socket.gethostname()}; close what else uses it there")
    if isinstance(error, OSError):
        return disk_error(error, Path(error.filename or socket.gethostname()), "reading or writing")
    return WorkerBugError("".join(traceback.format_exception(error)))


def absolute(value: T) -> T:
    """The same value, with every path in it absolute: for somebody who stands in another folder."""
    if isinstance(value, Path):
        return cast("T", value.absolute())
    if isinstance(value, tuple):
        return cast("T", tuple(absolute(each) for each in value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: absolute(getattr(value, each.name)) for each in fields(value)})
    return value


def portable_segment(segment: Segment) -> Segment:
    """A segment for another host: its files by absolute paths, its board as the user named it."""
    return replace(absolute(segment), board=segment.board)
