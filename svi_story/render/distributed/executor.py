"""An executor on the workers of a Ray cluster, joined or started here."""

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

from svi_story.commands import repeated
from svi_story.errors import InputError, StoryError, TransientError
from svi_story.events import Event, Starting
from svi_story.files import disk, make_folder, temp_name
from svi_story.portable import IS_POSIX
from svi_story.render.distributed.driver import CHECK, LOCAL, Request
from svi_story.render.distributed.watchdog import MARK, end_all
from svi_story.render.distributed.worker import WorkerBugError
from svi_story.render.executor import SegmentFailed, SegmentQueue
from svi_story.render.live import SegmentShown

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from types import TracebackType

    from svi_story.cache.store import Store
    from svi_story.engines.base import Engine
    from svi_story.plan.model import Segment
    from svi_story.render.executor import Result
    from svi_story.render.live import Previews
    from svi_story.render.runner import Group

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
"""Time, process and place in the source, which start Ray's log lines."""
LOG_TAIL = 4096
"""Bytes of a log to look for its last line."""
PROGRAM = "import sys; sys.path[:] = {path!r}; from svi_story.render.distributed.{module} import main; main()"
"""What a child process runs, with our own path: it finds the same svi-story, however this one was found."""


class Cluster:
    """A Ray cluster. Joined, or started, when there is something to render; left on exit.

    `workers` 0 means one for each GPU; where there is none, one for each two cores.
    """

    def __init__(self, address: str, workers: int) -> None:
        self.address = checked(address)
        self._workers = workers
        self._session: Session | None = None
        self._joined = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def executor(
        self, create: Callable[[str], Engine], group: Group, store: Store, previews: Previews
    ) -> RayExecutor:
        """An executor on the cluster's workers.

        Raises InputError when there is something to render and the cluster cannot be joined.
        """
        if any(store.state(segment.key) != "cached" for segment in group.wanted):
            self.join()
        return RayExecutor(self, create, group, store, previews)

    def join(self) -> Session:
        """The session; a new one when the last one has ended. TransientError when there was one before."""
        if self._session is None:
            session = Session(self.address, self._workers)
            try:
                session.join()
            except InputError as error:
                session.end()
                if self._joined:
                    raise TransientError(*error.problems) from error
                raise
            except BaseException:
                session.end()
                raise
            self._session, self._joined = session, True
        return self._session

    def leave(self) -> None:
        """End the session and everything that it started."""
        session, self._session = self._session, None
        if session is not None:
            session.end()


class RayExecutor:
    """Renders on the workers of a cluster. Engines are entered there, and never here."""

    def __init__(
        self,
        cluster: Cluster,
        create: Callable[[str], Engine],
        group: Group,
        store: Store,
        previews: Previews,
    ) -> None:
        self._cluster = cluster
        self._options = group.options
        self._store = store
        self._report = store.report
        self._previews = previews
        self._engines = {name: create(name) for name in group.engines}
        self._under_way = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._under_way.close()

    def notes(self, segment: Segment) -> tuple[str, ...]:
        """See `Executor.notes`."""
        return self._engines[segment.engine].notes(segment)

    def check(self, segments: Sequence[Segment]) -> None:
        """Nothing can be checked here: workers check what they are results."""

    def retry(self) -> None:
        """Nothing is kept: a cluster that was lost is joined again."""

    def render(self, segments: Sequence[Segment], later: Sequence[Segment] = ()) -> Iterator[Result]:
        """See `Executor.render`. Raises InputError when the cluster cannot be joined for the first time.

        `later` are assigned where nothing else can be started, so that no worker is idle.
        """
        rendering = self._render(segments, later)
        self._under_way.callback(rendering.close)  # whoever reads it may be interrupted
        return rendering

    def _render(self, segments: Sequence[Segment], later: Sequence[Segment]) -> Generator[Result, None, None]:
        queue = SegmentQueue.of(segments, later)
        yield from queue.look_up(self._store)
        if not queue.missing():
            return
        where = "" if self._cluster.address == LOCAL else f" at {self._cluster.address}"
        self._report(Starting(f"workers with Ray{where}"))
        try:
            session = self._cluster.join()
            with _probe(self._store.layout.root) as probe:
                yield from prefetch(self._results(queue, session, probe), self._cluster.leave)
        except InputError:
            raise
        except (StoryError, WorkerBugError) as error:
            self._cluster.leave()
            yield from queue.fail([segment.key for segment in queue.missing()], error)

    def _results(self, queue: SegmentQueue, session: Session, probe: Path) -> Iterator[Result]:
        """What the workers report: events and previews are passed on, results are kept and returned."""
        root, fallbacks = self._store.layout.root, self._store.fallbacks
        request = Request(
            *(self._options, root, fallbacks, probe, self._previews.every, queue.wanted, queue.entries),
            later=queue.later,
            given=repeated(),
        )
        for message in session.messages(request):
            if isinstance(message, Event):
                self._report(message)
                continue
            if isinstance(message, SegmentShown):
                self._previews.show(message.segment, message.frames)
                continue
            key = message.segment.key
            if isinstance(message, SegmentFailed):
                queue.failed.add(key)
            else:
                queue.entries[key] = message.entry
            yield message


class Session:
    """Ray's driver in a process of its own, and a watchdog that ends everything which came of it.

    All of it ends with this process too, however that ends.
    """

    def __init__(self, address: str, workers: int) -> None:
        self._address = address
        place = tempfile.gettempdir()
        if len(os.fsencode(place)) > LONGEST_PLACE:
            place = "/tmp"  # noqa: S108 - sockets have short names only
        self._folder = Path(place, f"svi-ray-{secrets.token_hex(4)}")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the session
        environment = {"RAY_USAGE_STATS_ENABLED": "0", **os.environ, MARK: str(self._folder)}
        if address == LOCAL:
            token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
            environment = {**token, **environment, "RAY_TMPDIR": str(self._folder)}
        self._connection, theirs = Pipe()
        with theirs:
            fd = str(theirs.fileno())
            driver = [*_program("driver"), fd, address, str(workers), str(self._folder)]
            self._watchdog = subprocess.Popen(  # noqa: S603 - ourselves
                [*_program("watchdog"), str(self._folder), fd, *driver],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                process_group=0,  # ^C is for this process alone
                env=environment,
            )

    def join(self) -> None:
        """Wait until the cluster is joined, or started. Raises InputError."""
        seconds = START_SECONDS if self._address == LOCAL else JOIN_SECONDS
        try:
            if not self._connection.poll(seconds):
                raise InputError(f"--ray {self._address}: no Ray answers within {seconds:g} s; {CHECK}")
            error = self._connection.recv()
        except (EOFError, OSError) as lost:
            what = f"--ray {self._address}: Ray ended before it could be used"
            raise InputError(f"{what} ({self._last_log_line()}); {CHECK}") from lost
        if error is not None:
            raise error

    def messages(self, request: Request) -> Iterator[Event | SegmentShown | Result]:
        """What the driver answers. Raises TransientError when it is gone."""
        try:
            self._connection.send(request)
            while (message := self._connection.recv()) is not None:
                if isinstance(message, Exception):
                    raise message
                yield message
        except (EOFError, OSError) as lost:
            again = "run the same command again: everything rendered so far is kept"
            raise TransientError(f"Ray ended or was lost ({self._last_log_line()}); {again}") from lost

    def end(self) -> None:
        """End the driver and everything that came of it."""
        assert self._watchdog.stdin is not None
        with suppress(OSError):
            self._watchdog.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            if self._watchdog.wait(END_SECONDS) < 0:  # it was killed itself
                end_all(self._folder, self._watchdog.pid)
        self._connection.close()
        self._log.close()

    def _last_log_line(self) -> str:
        """The last line that the driver has written."""
        with suppress(ValueError):  # closed meanwhile
            self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - LOG_TAIL))
            lines = self._log.read().decode("utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
            return re.sub(LOG_PREFIX, "", last)[:200]
        return "it was stopped"


def checked(address: str) -> str:
    """Where to look for Ray. Raises InputError where it is not installed, or the address cannot be one."""
    if not IS_POSIX:
        raise InputError("--ray does not work on Windows; use WSL 2 or Linux, or leave out --ray")
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


def prefetch(work: Iterator[T], stop: Callable[[], object]) -> Iterator[T]:
    """What an iterator yields, computed in a thread of its own until it ends or is no longer read.

    `stop` ends the iterator from outside.
    """
    results: SimpleQueue[T | None] = SimpleQueue()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for each in work:
                results.put(each)
        except BaseException as error:  # noqa: BLE001 - raised where the iterator is read
            failures.append(error)
        finally:
            results.put(None)

    thread = Thread(target=run, name="workers")
    thread.start()
    ended = False
    try:
        while (each := results.get()) is not None:
            yield each
        ended = True
    finally:
        if not ended:
            stop()
        thread.join()
    if failures:
        raise failures[0]
