"""Ray's driver, in a process of its own.

Ray's calls may block where no signal is heard, and end their process when the cluster is lost. Whoever wants
segments made talks to this process over a connection, and may kill it at any moment.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from svi_story.cache.store import Store
from svi_story.enginespec import spec_of
from svi_story.errors import InputError, TransientError
from svi_story.files import read_regular
from svi_story.render.distributed.pool import WorkerFactory, WorkerPool, last_line
from svi_story.render.distributed.worker import Worker, WorkerSetup, absolute, portable, portable_segment
from svi_story.render.executor import SegmentFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from svi_story.cache.entry import Entry
    from svi_story.enginespec import EngineOptions
    from svi_story.plan.model import Segment

LOCAL = "local"
"""The address of a cluster that is started here, for as long as it is needed."""
CONNECT_SECONDS = 10.0
CHECK = "check the address, the versions of Python and Ray, and RAY_AUTH_MODE and RAY_AUTH_TOKEN"
LARGEST_LOG = 64 * 2**20
"""Bytes of a worker's log that are read."""
OBJECTS = 80 * 2**20
"""Bytes for what travels between processes, which is little: frames and latents go through the cache."""


@dataclass(frozen=True)
class Join:
    """The first that the driver is result. It answers None, or with an InputError."""

    address: str
    workers: int
    """How many there are to be; 0: one for each GPU; where there is none, one for each two cores."""
    folder: Path
    """Ray's own, of a cluster that is started here."""


@dataclass(frozen=True)
class Request:
    """Segments to render. The driver answers with events, with a Result for each, and in the end with None.

    An exception instead means that it cannot go on.
    """

    options: EngineOptions
    cache: Path
    fallbacks: tuple[Path, ...]
    """Other caches, which are only read."""
    probe: Path
    """A file in the cache that workers must see."""
    wanted: Mapping[str, Segment]
    entries: dict[str, Entry]
    """Those that are there."""


def main() -> None:
    """Join a cluster and carry out assignments, until nobody wants more."""
    connection = Connection(int(sys.argv[1]))
    with suppress(EOFError, ConnectionError):  # nobody listens any more
        join: Join = connection.recv()
        try:
            _join(join)
        except InputError as error:
            connection.send(error)
            return
        connection.send(None)
        while True:
            _render(connection.recv(), join, connection)


def _join(join: Join) -> None:
    """Raises InputError when the cluster cannot be joined."""
    options: dict[str, Any] = {"address": join.address}
    if join.address == LOCAL:
        options |= {
            "num_cpus": max(os.cpu_count() or 1, join.workers),
            "object_store_memory": OBJECTS,
            "include_dashboard": False,
        }
    elif ":" in join.address:
        host, _, port = join.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            what = f"--ray {join.address}: nothing answers there ({error})"
            raise InputError(f"{what}; give the address that `ray start --head` printed") from error
    import ray

    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        raise InputError(f"--ray {join.address}: {text.splitlines()[0]}; {CHECK}") from error


def _render(request: Request, join: Join, connection: Connection) -> None:
    from ray.exceptions import RayError

    try:
        report = connection.send
        store = Store(request.cache, report, request.fallbacks)
        pool = WorkerPool(request.wanted, request.entries, store, report, _factory(request, join))
        try:
            for result in pool.render():
                connection.send(
                    replace(result, error=portable(result.error))
                    if isinstance(result, SegmentFailed)
                    else result
                )
            connection.send(None)
        finally:
            pool.stop_all()
    except (EOFError, ConnectionError):
        raise
    except RayError as error:
        connection.send(TransientError(f"Ray ended or was lost: {last_line(error)}"))
    except Exception as error:  # noqa: BLE001 - it must reach the one who can report it
        connection.send(portable(error))


def _factory(request: Request, join: Join) -> WorkerFactory:
    import ray

    there = ray.cluster_resources()
    bare = not any(spec_of(segment.engine).needs_gpu for segment in request.wanted.values())
    gpus = 0 if bare else int(there.get("GPU", 0))
    count = join.workers or gpus or max(1, int(there.get("CPU", 1)) // 2)
    options = absolute(replace(request.options, threads=0 if gpus or bare else _threads()))
    actor = ray.remote(num_cpus=1, num_gpus=min(gpus, 1))(Worker)
    on_nodes = workers_by_node(ray.nodes(), count, gpus)
    setup = WorkerSetup(options, request.cache, request.probe, request.fallbacks, workers=on_nodes)

    def start(missing: Sequence[Segment]) -> tuple[Any, Any]:
        worker = actor.remote(setup)
        result = worker.enter.options(num_returns="streaming").remote(
            [portable_segment(segment) for segment in missing]
        )
        return worker, result

    return WorkerFactory(count, start, lambda: last_words(join.folder))


def workers_by_node(nodes: Iterable[Mapping[str, Any]], count: int, gpus: int) -> dict[str, int]:
    """How many of `count` workers there may be on each node, by its id: one for each GPU, or CPU without."""
    return {
        node["NodeID"]: max(1, min(count, int(node["Resources"].get("GPU" if gpus else "CPU", 0))))
        for node in nodes
    }


def last_words(folder: Path) -> str:
    """The last line that a worker process of a Ray that was started here wrote to its log; empty for none."""
    logs = sorted(folder.glob("ray/session_latest/logs/worker-*.err"), key=lambda path: path.stat().st_mtime)
    for log in reversed(logs):
        lines = read_regular(log, LARGEST_LOG).decode("utf-8", "replace").split("\n")
        if written := [line.strip() for line in lines if line.strip()]:
            return written[-1][:200]
    return ""


def _threads() -> int:
    """As many as torch takes here: with another number, the last bits of what a CPU computes differ."""
    import torch

    return torch.get_num_threads()
