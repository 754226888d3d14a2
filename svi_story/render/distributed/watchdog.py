"""A process that runs a command for its owner and ends everything the command started, whatever happens.

The owner holds a pipe to the watchdog's standard input. When it is closed, because the owner wants it or is
gone, and also when the command ends by itself, every process that came of the command is killed and its
folder is removed. Nobody needs to be alive for this but the watchdog, which therefore does nothing else.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import psutil

MARK = "SVI_STORY_RUN"
"""The environment variable by which a watchdog's processes are known: its value is their folder."""
POLL = 0.1
"""Seconds between two looks at the command and at the owner."""
LONGEST = 20.0
"""Seconds after which what cannot be killed is left to the system."""
PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Run a command that gets an open file: `FOLDER FD COMMAND...`."""
    if sys.platform == "win32":  # `--ray` is refused there
        raise NotImplementedError
    folder, fd, command = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the owner, who closes the pipe
    signal.signal(signal.SIGTERM, _end)
    try:
        if sys.platform == "linux":  # then orphaned descendants become children of this process
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        folder.mkdir(mode=0o700)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[fd])  # noqa: S603
        os.close(fd)
        while process.poll() is None and not select.select([sys.stdin], [], [], POLL)[0]:
            pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_all(folder, os.getpid())


def _end(*_: object) -> NoReturn:
    raise SystemExit(1)


def end_all(folder: Path, watchdog: int) -> None:
    """Kill every process that came of a watchdog, which may be dead itself, and remove its folder."""
    import psutil

    until = time.monotonic() + LONGEST
    while (found := _members(folder, watchdog)) and time.monotonic() < until:
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=POLL)
    shutil.rmtree(folder, ignore_errors=True)


def _members(folder: Path, watchdog: int) -> list[psutil.Process]:
    """The watchdog's descendants, and what has its mark or is of its group: no sign alone is always there."""
    import psutil

    if sys.platform == "win32":  # `--ray` is refused there
        raise NotImplementedError
    found: set[psutil.Process] = set()
    with suppress(psutil.Error):
        found.update(psutil.Process(watchdog).children(recursive=True))
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            marked = os.getpgid(process.pid) == watchdog or process.environ().get(MARK) == str(folder)
            if marked and process.pid not in (watchdog, os.getpid()):
                found.add(process)
    return list(found)
