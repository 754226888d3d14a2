"""A worker of a cluster: a process with an engine that makes chains of segments, and tells as it goes."""

from __future__ import annotations

import os
import socket
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from svi_story import __version__
from svi_story.cache.store import Store
from svi_story.engines import implementation_of
from svi_story.errors import InputError, PassingError, Problem, StoryError
from svi_story.events import Event
from svi_story.files import refused
from svi_story.plan.fingerprints import Fingerprints
from svi_story.render.record import versions
from svi_story.render.segments import Lost, Wanted, make
from svi_story.render.stage import Stage, Studio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from svi_story.cache.entry import Entry
    from svi_story.enginespec import EngineOptions
    from svi_story.plan.model import Segment
    from svi_story.render.segments import Made

T = TypeVar("T")

PATIENCE = 90.0
"""Seconds until what another host wrote must be seen: NFS remembers for a minute what was not there."""


@dataclass(frozen=True)
class Post:
    """What a worker is told before it starts. Its paths are absolute."""

    engine: str
    options: EngineOptions
    cache: Path
    probe: Path
    """A file in the cache that the worker must see."""
    version: str = __version__
    """Of svi-story, where the films are cut."""


@dataclass(frozen=True)
class Here:
    """The worker's process is there."""

    host: str
    process: int
    versions: Mapping[str, str]
    """Of what frames depend on."""


@dataclass(frozen=True)
class Ready:
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


Message: TypeAlias = Event | Here | Ready | Finished | Failed
"""What a worker tells."""


@dataclass(frozen=True)
class Batch:
    """Chains of segments for one worker, and the segments they continue from."""

    before: tuple[Wanted, ...]
    chains: tuple[tuple[Wanted, ...], ...]


class Worker:
    """The actor. Its work runs in one thread, so that everything it does can be told at once."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._stack = ExitStack()
        self._studio: Studio | None = None
        self._tell: Callable[[Message], None] = lambda _: None
        if os.environ.get("OMP_NUM_THREADS") == "1":  # Ray's, which knows nothing of what we compute
            del os.environ["OMP_NUM_THREADS"]

    def enter(self, wanted: Sequence[Segment]) -> Iterator[Message]:
        """Check that this place will do, and enter the engine: prepared for all that is missing."""
        yield from self._telling(lambda: self._enter(wanted))

    def make(self, batch: Batch) -> Iterator[Message]:
        """Make chains of segments."""
        yield from self._telling(lambda: self._make(batch))

    def _telling(self, work: Callable[[], None]) -> Iterator[Message]:
        """What is told while this is done, as it is told."""
        told: SimpleQueue[Message | None] = SimpleQueue()
        self._tell = told.put

        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - it must reach the driver, whatever it is
                told.put(Failed("", portable(error)))
            finally:
                told.put(None)

        self._thread.submit(run)
        while (message := told.get()) is not None:
            yield message

    def _report(self, event: Event) -> None:
        self._tell(event)

    def _enter(self, wanted: Sequence[Segment]) -> None:
        post = self._post
        self._tell(Here(socket.gethostname(), os.getpid(), versions()))
        _check(post)
        fingerprints = Fingerprints.load(post.cache / "memo.json", self._report)
        store = Store(post.cache, self._report)
        engine = implementation_of(post.engine).create_engine(
            post.options, fingerprints.file, store.embedding, self._report
        )
        stage = self._stack.enter_context(Stage(engine, wanted, store))
        entered = stage.entered()
        encoder = self._stack.enter_context(ThreadPoolExecutor(max_workers=1))  # it never has anything to do
        self._studio = Studio(stage, store, encoder, self._report)
        self._tell(Ready(entered.one_at_a_time))

    def _make(self, batch: Batch) -> None:
        studio = self._studio
        assert studio is not None, "enter comes first"
        for each in batch.before:
            see(studio.store, each.segment.key)
        good = [chain for chain in batch.chains if self._can(chain, studio)]
        wanted = [*batch.before, *(each for chain in good for each in chain)]
        asked = {each.segment.key for chain in good for each in chain}
        for told in make(wanted, studio):
            if told.segment.key in asked:
                self._tell(_ended(told))
        self._tell(Ready(studio.stage.entered().one_at_a_time))

    def _can(self, chain: Sequence[Wanted], studio: Studio) -> bool:
        """Whether nothing is wrong with what a chain needs; else that is told of all its segments."""
        try:
            studio.stage.check([each.segment for each in chain])
        except StoryError as error:
            for each in chain:
                self._tell(Failed(each.segment.key, error))
            return False
        return True


def _ended(told: Made | Lost) -> Message:
    if isinstance(told, Lost):
        return Failed(told.segment.key, portable(told.error))
    return Finished(told.segment.key, told.fresh)


def _check(post: Post) -> None:
    """Raises InputError where this place cannot work for the one that cuts the films."""
    if __version__ != post.version:
        what = f"svi-story {__version__} is installed on {socket.gethostname()}"
        raise InputError(f"{what}, {post.version} where the films are cut; install the same")
    if not _comes(post.probe.exists):
        what = f"{socket.gethostname()} does not see the cache: workers need a file system that all share"
        raise InputError(Problem(f"{what}; choose a folder there with --cache", file=str(post.cache)))


def see(store: Store, key: str) -> Entry:
    """An entry that another host has just made. Raises PassingError when it does not come to be seen."""
    entry = _comes(lambda: store.entry(key))
    if entry is None:
        raise PassingError(
            f"{store.folder(key)} was made on another host and is not seen on {socket.gethostname()}; check "
            "that both use the same file system"
        )
    return entry


def _comes(look: Callable[[], T]) -> T:
    """What is found in the end, or nothing when patience is over."""
    until = time.monotonic() + PATIENCE
    while not (found := look()) and time.monotonic() < until:
        time.sleep(0.2)
    return found


def portable(error: Exception) -> Exception:
    """An error that can travel: ours as it is, another one as the text of its traceback."""
    if isinstance(error, StoryError):
        return error
    if isinstance(error, MemoryError):
        return PassingError(f"RAM ran out on {socket.gethostname()}; close what else uses it there")
    if isinstance(error, OSError):
        return refused(error, Path(error.filename or socket.gethostname()), "reading or writing")
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
