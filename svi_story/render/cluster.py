"""Many hands: a Ray cluster, joined or started here, whose workers make the segments."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

from svi_story.enginespec import spec_of
from svi_story.errors import InputError
from svi_story.files import disk, make_folder, temp_name
from svi_story.render.pool import Pool, Staff
from svi_story.render.segments import by_key
from svi_story.render.stage import Elsewhere
from svi_story.render.worker import Post, Worker, absolute

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from svi_story.cache.store import Store
    from svi_story.engines.base import Engine
    from svi_story.plan.model import Segment
    from svi_story.render.batch import Setup
    from svi_story.render.segments import Lost, Made, Wanted
    from svi_story.render.stage import Stage, Studio

LOCAL = "local"
"""The address of a cluster that is started here, for as long as it is needed."""
CONNECT_SECONDS = 10.0
CHECK = "check the address, the versions of Python and Ray, and the token if there is one (RAY_AUTH_TOKEN)"
OBJECTS = 80 * 2**20
"""Bytes for what travels between processes, which is little: frames and latents go through the cache."""
SOCKETS = 40
"""Characters of a folder that leave room for the names of Ray's sockets in it."""


class Cluster:
    """Workers, each with an engine of its own. Joined, or started, when there is first something to make.

    `workers` 0 means one for each GPU; where there is none, one for each two cores.
    """

    def __init__(self, address: str, workers: int) -> None:
        check_ray(address)
        self._address = address
        self._workers = workers
        self._stack = ExitStack()
        self._under_way = ExitStack()
        self._joined = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self._under_way.close()

    def stage(self, setup: Setup, engine: Engine, wanted: Sequence[Segment], store: Store) -> Stage:
        """The engine works on the workers."""
        return Elsewhere(engine, wanted, store, options=setup.options)

    def make(self, wanted: Sequence[Wanted], studio: Studio) -> Iterator[Made | Lost]:
        """Give chains to workers. Raises InputError when the cluster cannot be joined."""
        making = self._make(wanted, studio)
        self._under_way.callback(making.close)  # whoever reads it may be interrupted
        return making

    def _make(self, wanted: Sequence[Wanted], studio: Studio) -> Generator[Made | Lost, None, None]:
        with ExitStack() as stack:
            pool = Pool(studio, by_key(wanted), lambda: self._staff(studio, stack))
            stack.callback(pool.dismiss_all)
            yield from pool.make()

    def _staff(self, studio: Studio, stack: ExitStack) -> Staff:
        if not self._joined:
            self._stack.enter_context(joined(self._address, self._workers))
            self._joined = True
        import ray

        engine = studio.stage.engine.identity.name
        there = ray.cluster_resources()
        gpus = 0 if not spec_of(engine).needs_gpu else int(there.get("GPU", 0))
        count = self._workers or gpus or max(1, int(there.get("CPU", 1)) // 2)
        threads = 0 if gpus or not spec_of(engine).needs_gpu else _threads()
        assert isinstance(studio.stage, Elsewhere), "the stage is ours"
        options = absolute(replace(studio.stage.options, threads=threads))
        root = studio.store.layout.root
        probe = stack.enter_context(_probe(root))
        actor = ray.remote(num_cpus=1, num_gpus=min(gpus, 1))(Worker)
        post = Post(engine, options, root, probe)

        def start(missing: Sequence[Segment]) -> tuple[Any, Any]:
            worker = actor.remote(post)
            told = worker.enter.options(num_returns="streaming").remote(
                [absolute(segment) for segment in missing]
            )
            return worker, told

        return Staff(count, start)


def check_ray(address: str) -> None:
    """Raises InputError where Ray is not installed, or cannot be used in this way."""
    if find_spec("ray") is None:
        raise InputError("--ray needs Ray: pip install 'svi-story[ray]'")
    if address.startswith("ray://"):
        what = f"--ray {address}: Ray's client cannot hand over work as it is made"
        raise InputError(f"{what}; run this on a machine of the cluster, with --ray auto or HOST:6379")
    if ":" in address:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, ValueError, OverflowError) as error:
            what = f"--ray {address}: nothing answers there ({error})"
            raise InputError(f"{what}; give the address that `ray start --head` printed") from error


@contextmanager
def joined(address: str, workers: int) -> Iterator[None]:
    """A connection to a cluster; one that is started here ends with it, and leaves nothing behind."""
    with ExitStack() as stack:
        stack.enter_context(_environment({"RAY_USAGE_STATS_ENABLED": "0"}))
        options: dict[str, Any] = {"address": address}
        if address == LOCAL:
            stack.enter_context(
                _environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
            )
            folder = tempfile.gettempdir()
            place = folder if len(folder) < SOCKETS else "/tmp"  # noqa: S108 - sockets have short names only
            options |= {
                "num_cpus": max(os.cpu_count() or 1, workers),
                "object_store_memory": OBJECTS,
                "include_dashboard": False,
                "_temp_dir": stack.enter_context(_folder(place)),
            }
        with _signals_kept(held=address == LOCAL):
            import ray  # after the environment is set: it reads that only once

            stack.callback(ray.shutdown)
            _quiet()
            try:
                ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise InputError(f"--ray {address}: {str(error).strip().splitlines()[0]}; {CHECK}") from error
        yield


def _folder(place: str) -> tempfile.TemporaryDirectory[str]:
    """For Ray's sockets and logs; what it still writes while it is removed may stay."""
    return tempfile.TemporaryDirectory(prefix="svi-ray-", dir=place, ignore_cleanup_errors=True)


def _quiet() -> None:
    """What Ray says goes to its logs: standard output is for data, and what happens is told as events."""
    import ray._private.worker

    ray._private.worker.print_to_stdstream = lambda *_args, **_options: None


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables that nobody has set, for a while."""
    ours = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def _signals_kept(*, held: bool) -> Iterator[None]:
    """Ray installs handlers of its own; ours come back. Held: what comes meanwhile is handled then.

    A start that is cut short would leave processes behind.
    """
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    came: list[int] = []
    if held:
        for number in kept:
            signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


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


def _threads() -> int:
    """As many as torch takes here: with another number, the last bits of what a CPU computes differ."""
    import torch

    return torch.get_num_threads()
