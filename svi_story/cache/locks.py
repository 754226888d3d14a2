"""Locks between processes. A lock saves work; nothing relies on it to be right."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from enum import Enum
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POLL_SECONDS = 0.1
FOREVER = -1


class Hold(Enum):
    """What came of asking for a lock."""

    HELD = "held"
    BUSY = "busy"
    UNSUPPORTED = "unsupported"
    """The file system has no locks, or refused: go on as if held, but trust nothing to be stale."""


@contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[Hold]:
    """Hold the lock, waiting for another process as long as it takes; ^C ends the wait at once.

    `on_wait` is called once, when there is something to wait for. Never BUSY.
    """
    lock = _lock(path)
    hold = _try(lock)
    if hold is Hold.BUSY:
        on_wait()
        hold = _try(lock, FOREVER)
    yield from _release_after(lock, hold)


@contextmanager
def lock_if_free(path: Path) -> Iterator[Hold]:
    """Hold the lock unless somebody else does (BUSY)."""
    lock = _lock(path)
    yield from _release_after(lock, _try(lock))


def _lock(path: Path) -> FileLock:
    # Not the fall-back to a marker file: one left by a host that died would make everybody wait for ever.
    return FileLock(path, poll_interval=POLL_SECONDS, fallback_to_soft=False)


def _try(lock: FileLock, timeout: float = 0) -> Hold:
    there = os.path.lexists(lock.lock_file)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        return Hold.BUSY
    except OSError:
        if not there:  # its file was made for nothing
            with suppress(OSError):
                os.unlink(lock.lock_file)  # noqa: PTH108 - filelock has it as text
        return Hold.UNSUPPORTED
    return Hold.HELD


def _release_after(lock: FileLock, hold: Hold) -> Iterator[Hold]:
    try:
        yield hold
    finally:
        with suppress(OSError):  # the lock dies with the process at the latest
            lock.release()
