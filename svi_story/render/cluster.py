"""A Ray cluster, joined or started here, whose workers make the segments."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import Pipe
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Self, TypeVar

from svi_story.errors import InputError, PassingError, StoryError
from svi_story.events import Event
from svi_story.files import disk, make_folder, temp_name
from svi_story.render.driver import CHECK, LOCAL, Assignment, Join
from svi_story.render.keeper import MARK, end_all
from svi_story.render.segments import Line, Lost, by_key
from svi_story.render.stage import Elsewhere
from svi_story.render.worker import WorkerBugError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from types import TracebackType

    from svi_story.cache.store import Store
    from svi_story.engines.base import Engine
    from svi_story.plan.keys import Task
    from svi_story.render.batch import Setup
    from svi_story.render.segments import Made, Wanted
    from svi_story.render.stage import Stage, Studio

T = TypeVar("T")

AUTO = "auto"
"""The address of a cluster that runs on this machine already."""
JOIN_SECONDS = 22.0
"""After which an address that accepts connections is not Ray's."""
START_SECONDS = 120.0
"""After which a Ray that is started here will not come."""
END_SECONDS = 30.0
"""Seconds to wait for the end of all that was started."""
LONGEST_PLACE = 18
"""Bytes of a folder that leave room for the names of Ray's sockets below it, of 103 that systems take."""
LOG_PREFIX = r"^\[[^]]*\] (\S+:\d+: )?"
"""Time, process and place in the source, of which Ray's log lines tell first."""
LAST_WORDS = 4096
"""Bytes of a log to look for its last line."""
PROGRAM = "import sys; sys.path[:] = {path!r}; from svi_story.render.{module} import main; main()"
"""What a child process runs, with our own path: it finds the same svi-story, however this one was found."""


class Cluster:
    """Workers, each with an engine of its own. Joined, or started, when there is something to make.

    `workers` 0 means one for each GPU; where there is none, one for each two cores.
    """

    def __init__(self, address: str, workers: int) -> None:
        self._address = checked(address)
        self._workers = workers
        self._under_way = ExitStack()
        self._session: Session | None = None
        self._joined = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._under_way:
            self._end()

    def stage(self, setup: Setup, engine: Engine, wanted: Sequence[Task], store: Store) -> Stage:
        """The engine works on the workers.

        Raises InputError when they are needed and the cluster cannot be joined.
        """
        if any(store.state(task.key) != "cached" for task in wanted):
            self._join()
        return Elsewhere(engine, wanted, store, options=setup.options)

    def make(self, wanted: Sequence[Wanted], studio: Studio) -> Iterator[Made | Lost]:
        """Have segments made. Raises InputError when the cluster cannot be joined for the first time."""
        making = self._make(wanted, studio)
        self._under_way.callback(making.close)  # whoever reads it may be interrupted
        return making

    def _make(self, wanted: Sequence[Wanted], studio: Studio) -> Generator[Made | Lost, None, None]:
        yield from Remote(by_key(wanted), studio=studio, join=self._join, end=self._end).make()

    def _join(self) -> Session:
        """The session; a new one where the last one has ended. PassingError where there was one before."""
        if self._session is None:
            session = Session(self._address)
            try:
                session.join(self._workers)
            except InputError as error:
                session.end()
                if self._joined:
                    raise PassingError(*error.problems) from error
                raise
            except BaseException:
                session.end()
                raise
            self._session, self._joined = session, True
        return self._session

    def _end(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.end()


class Session:
    """Ray's driver in a process of its own, and a keeper that ends everything which came of it.

    All of it ends with this process too, however that ends.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        place = tempfile.gettempdir()
        if len(os.fsencode(place)) > LONGEST_PLACE:
            place = "/tmp"  # noqa: S108 - sockets have short names only
        self._folder = Path(place, f"svi-ray-{secrets.token_hex(4)}")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the session
        self._connection, theirs = Pipe()
        with theirs:
            fd = theirs.fileno()
            self._keeper = subprocess.Popen(  # noqa: S603 - ourselves
                [*_program("keeper"), str(self._folder), str(fd), *_program("driver"), str(fd)],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[fd],
                process_group=0,  # ^C is for this process alone
                env=self._environment(),
            )

    def _environment(self) -> dict[str, str]:
        local = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        ours = {"RAY_USAGE_STATS_ENABLED": "0", **(local if self._address == LOCAL else {})}
        folders = {"RAY_TMPDIR": str(self._folder)} if self._address == LOCAL else {}
        return {**ours, **os.environ, **folders, MARK: str(self._folder)}

    def join(self, workers: int) -> None:
        """Join the cluster, or start it. Raises InputError."""
        seconds = START_SECONDS if self._address == LOCAL else JOIN_SECONDS
        try:
            self._connection.send(Join(self._address, workers, self._folder))
            if not self._connection.poll(seconds):
                raise InputError(f"--ray {self._address}: no Ray answers within {seconds:g} s; {CHECK}")
            error = self._connection.recv()
        except (EOFError, OSError) as lost:
            what = f"--ray {self._address}: Ray ended before it could be used"
            raise InputError(f"{what} ({self._last_words()}); {CHECK}") from lost
        if error is not None:
            raise error

    def carry_out(self, assignment: Assignment) -> Iterator[Event | Made | Lost]:
        """What the driver tells. Raises PassingError when it is gone."""
        try:
            self._connection.send(assignment)
            while (told := self._connection.recv()) is not None:
                if isinstance(told, Exception):
                    raise told
                yield told
        except (EOFError, OSError) as lost:
            again = "the same command goes on from what is made"
            raise PassingError(f"Ray ended or was lost ({self._last_words()}); {again}") from lost

    def end(self) -> None:
        """End the driver and everything that came of it."""
        assert self._keeper.stdin is not None
        with suppress(OSError):
            self._keeper.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            if self._keeper.wait(END_SECONDS) < 0:  # it was killed itself
                end_all(self._folder, self._keeper.pid)
        self._connection.close()
        self._log.close()

    def _last_words(self) -> str:
        """The last line that the driver has written."""
        with suppress(ValueError):  # closed meanwhile
            self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - LAST_WORDS))
            lines = self._log.read().decode("utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "without a word")
            return re.sub(LOG_PREFIX, "", last)[:200]
        return "it was told to"


class Remote(Line):
    """Segments on their way through a cluster: what is missing is made by its workers."""

    def __init__(
        self, wanted: dict[str, Wanted], studio: Studio, join: Callable[[], Session], end: Callable[[], None]
    ) -> None:
        super().__init__(wanted, studio=studio)
        self._join = join
        self._end = end

    def run(self, order: Sequence[str]) -> Iterator[Made | Lost]:
        """Have made what is missing; what is told meanwhile is passed on while films are cut."""
        if not any(map(self.is_missing, order)):
            return
        try:
            session = self._join()
            with _probe(self.studio.store.layout.root) as probe:
                yield from ahead(self._made(session, probe), self._end)
        except InputError:
            raise
        except (StoryError, WorkerBugError) as error:
            self._end()
            yield from self.lose([key for key in order if self.is_missing(key)], error)

    def _made(self, session: Session, probe: Path) -> Iterator[Made | Lost]:
        stage = self.studio.stage
        assert isinstance(stage, Elsewhere), "the stage is a cluster's"
        root = self.studio.store.layout.root
        engine = stage.engine.identity.name
        work = Assignment(engine, stage.options, root, probe, self.wanted, self.entries)
        for told in session.carry_out(work):
            if isinstance(told, Event):
                self.studio.report(told)
                continue
            key = told.task.key
            if isinstance(told, Lost):
                self.lost.add(key)
            else:
                self.entries[key] = told.entry
            yield told


def checked(address: str) -> str:
    """Where to look for Ray. Raises InputError where it is not installed, or the address cannot be one."""
    if any(find_spec(name) is None for name in ("ray", "psutil")):
        raise InputError("--ray needs Ray: pip install 'svi-story[ray]'")
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS") or AUTO
    if address.startswith("ray://"):
        what = f"--ray {address}: Ray's client cannot hand over work as it is made"
        raise InputError(f"{what}; run this on a machine of the cluster, with --ray auto or HOST:6379")
    host, _, port = address.rpartition(":")
    if address not in (LOCAL, AUTO) and not (host and port.isdecimal() and 0 < int(port) < 2**16):
        what = f"--ray {address}: not an address; give auto, or HOST:PORT with a port of 1 to 65535"
        raise InputError(f"{what}, as `ray start --head` printed it")
    return address


def _program(module: str) -> list[str]:
    """The command that runs a module of this package."""
    return [sys.executable, "-c", PROGRAM.format(path=sys.path, module=module)]


@contextmanager
def _probe(root: Path) -> Iterator[Path]:
    """A file in the cache, by which workers know that they see the same one."""
    path = root / temp_name()
    with disk(root, "preparing the cache for workers"):
        make_folder(root)
        path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def ahead(work: Iterator[T], stop: Callable[[], object]) -> Iterator[T]:
    """What an iterator gives; it goes on in a thread of its own, until it ends or nobody wants more."""
    given: SimpleQueue[T | None] = SimpleQueue()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for each in work:
                given.put(each)
        except BaseException as error:  # noqa: BLE001 - raised where the iterator is read
            failures.append(error)
        finally:
            given.put(None)

    thread = Thread(target=run, name="workers")
    thread.start()
    ended = False
    try:
        while (each := given.get()) is not None:
            yield each
        ended = True
    finally:
        if not ended:
            stop()
        thread.join()
    if failures:
        raise failures[0]
