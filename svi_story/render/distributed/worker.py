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
from svi_story.commands import repeating
from svi_story.engines import implementation_of
from svi_story.errors import InputError, Problem, StoryError, TransientError
from svi_story.events import Event
from svi_story.plan.fingerprints import Fingerprints
from svi_story.render.executor import LocalExecutor, SegmentFailed, SegmentReady, system_error
from svi_story.render.live import Previews, SegmentShown
from svi_story.render.record import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from svi_story.cache.entry import Entry
    from svi_story.commands import Given
    from svi_story.engines.base import Engine
    from svi_story.enginespec import EngineOptions
    from svi_story.plan.model import Segment
    from svi_story.render.executor import Result

T = TypeVar("T")

VISIBLE_SECONDS = 90.0
"""Seconds in which what another host wrote must appear: NFS caches for a minute that a file is missing."""


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to start. Its paths are absolute."""

    options: EngineOptions
    cache: Path
    probe: Path
    """A file in the cache that the worker must see."""
    fallbacks: tuple[Path, ...] = ()
    """Other caches, which are only read."""
    preview_every: int = 0
    """Steps between two previews; 0 for none."""
    given: Mapping[str, Given] = field(default_factory=dict)
    """What the commands repeat that messages suggest."""
    version: str = __version__
    """Of svi-story, where the films are cut."""
    workers: Mapping[str, int] = field(default_factory=dict)
    """How many workers there may be on each node, by Ray's id of the node."""


@dataclass(frozen=True)
class WorkerState:
    """What a worker reports of itself: when its process is there, and when it can work."""

    host: str
    process: int
    versions: Mapping[str, str]
    """Of what frames depend on."""
    one_at_a_time: bool | None = None
    """Whether models take turns on its device; None until its engines are entered."""


class WorkerBugError(Exception):
    """A bug on a worker; its text is the traceback there."""


Message: TypeAlias = Event | SegmentShown | WorkerState | SegmentReady | SegmentFailed | Exception
"""What a worker sends. An exception: it cannot work."""


class Worker:
    """The actor. Its work runs in one thread, so that everything can be reported at once."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._store = Store(setup.cache, self._report, setup.fallbacks)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._stack = ExitStack()
        self._executor: LocalExecutor | None = None
        self._state = WorkerState(socket.gethostname(), os.getpid(), versions())
        self._send: Callable[[Message], None] = lambda _: None
        if os.environ.get("OMP_NUM_THREADS") == "1":  # Ray's, which knows nothing of what we compute
            del os.environ["OMP_NUM_THREADS"]

    def enter(self, wanted: Sequence[Segment]) -> Iterator[Message]:
        """Check that this host can work, and enter the engines: prepared for everything that is missing."""
        yield from self._messages(lambda: self._enter(wanted))

    def render(self, before: Sequence[Segment], chains: Sequence[Sequence[Segment]]) -> Iterator[Message]:
        """Render chains of segments; `before` are the segments they continue from."""
        yield from self._messages(lambda: self._render(before, chains))

    def _messages(self, work: Callable[[], None]) -> Iterator[Message]:
        """The messages that are sent while this is done, as they come."""
        sent: SimpleQueue[Message | None] = SimpleQueue()
        self._send = sent.put

        def run() -> None:
            try:
                with repeating(self._setup.given):
                    work()
            except Exception as error:  # noqa: BLE001 - it must reach the driver, whatever it is
                sent.put(portable(error))
            finally:
                sent.put(None)

        self._thread.submit(run)
        while (message := sent.get()) is not None:
            yield message

    def _report(self, event: Event) -> None:
        self._send(event)

    def _enter(self, wanted: Sequence[Segment]) -> None:
        self._send(self._state)
        setup, host = self._setup, self._state.host
        if __version__ != setup.version:
            what = f"svi-story {__version__} is installed on {host}"
            raise InputError(f"{what}, {setup.version} where the films are cut; install the same")
        if not _wait_for(setup.probe.exists):
            what = f"{host} does not see the cache: workers need a file system that all share"
            raise InputError(Problem(f"{what}; choose a folder there with --cache", file=str(setup.cache)))
        fingerprints = Fingerprints.of_this_machine(self._report, [setup.cache])
        self._stack.callback(fingerprints.save)
        options = setup.options
        if setup.workers:
            import ray  # outside of Ray, asking it would start a cluster

            node = ray.get_runtime_context().get_node_id()
            options = replace(options, workers_on_host=setup.workers.get(node, 1))

        def create(name: str) -> Engine:
            return implementation_of(name).create_engine(
                options, fingerprints.file, self._store.embedding, self._report
            )

        previews = Previews(setup.preview_every, lambda *shown: self._send(SegmentShown(*shown)))
        executor = LocalExecutor(create, wanted, self._store, self._report, previews)
        self._executor = self._stack.enter_context(executor)
        for name in dict.fromkeys(segment.engine for segment in wanted):
            executor.enter(name)
        self._send(replace(self._state, one_at_a_time=executor.one_at_a_time))

    def _render(self, before: Sequence[Segment], chains: Sequence[Sequence[Segment]]) -> None:
        executor = self._executor
        assert executor is not None, "enter comes first"
        for segment in before:
            wait_for_entry(self._store, segment.key)
        wanted: dict[str, Segment] = {}
        for chain in chains:
            try:
                executor.check(chain)
            except StoryError as error:
                for segment in chain:
                    self._send(SegmentFailed(segment, error))
            else:
                wanted |= {segment.key: segment for segment in chain}
        for result in executor.render([*before, *wanted.values()]):
            if result.segment.key in wanted:
                self._send(portable_result(result))
        self._send(replace(self._state, one_at_a_time=executor.one_at_a_time))


def wait_for_entry(store: Store, key: str) -> Entry:
    """An entry that another host has just published. Raises TransientError when it does not appear here."""
    entry = _wait_for(lambda: store.entry(key))
    if entry is None:
        raise TransientError(
            f"{store.folder(key)} was written on another host and does not appear on {socket.gethostname()}; "
            "check that both use the same file system"
        )
    return entry


def _wait_for(look: Callable[[], T]) -> T:
    """What `look` finds within VISIBLE_SECONDS, or its last falsy result."""
    until = time.monotonic() + VISIBLE_SECONDS
    while not (found := look()) and time.monotonic() < until:
        time.sleep(0.2)
    return found


def portable(error: Exception) -> Exception:
    """An error that can be sent: a StoryError as it is, another one as the text of its traceback."""
    host = socket.gethostname()
    known = system_error(error, Path(host), host)
    return (
        known if isinstance(known, StoryError) else WorkerBugError("".join(traceback.format_exception(error)))
    )


def portable_result(result: Result) -> Result:
    """A result that can be sent."""
    return replace(result, error=portable(result.error)) if isinstance(result, SegmentFailed) else result


def absolute(value: T) -> T:
    """The same value with every path in it absolute, for a process with another working directory."""
    if isinstance(value, Path):
        return cast("T", value.absolute())
    if isinstance(value, tuple):
        return cast("T", tuple(absolute(each) for each in value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: absolute(getattr(value, each.name)) for each in fields(value)})
    return value


def portable_segment(segment: Segment) -> Segment:
    """A segment for another host: with absolute paths of its files, and its board as the user named it."""
    return replace(absolute(segment), board=segment.board)
