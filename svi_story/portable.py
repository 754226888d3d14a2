"""Differences between POSIX and Windows. No other module uses names or behaviour that Windows does not have.

On Windows, open files can be neither renamed nor deleted, folders cannot be synced, and a file can be synced
only through a descriptor that is open for writing.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def user_id() -> int:
    """Of the user who runs this; on Windows 0, which is also the owner of every file there."""
    return os.getuid() if hasattr(os, "getuid") else 0


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _flags(*names: str) -> int:
    flags = 0
    for name in names:
        flags |= getattr(os, name, 0)
    return flags


fcntl: Any = _module("fcntl")
"""None on Windows."""
IS_POSIX = fcntl is not None
"""Whether open files can be renamed and deleted, and folders synced."""
resource: Any = _module("resource")
"""None on Windows: no limits for a process."""

READ_FLAGS = os.O_RDONLY | _flags("O_CLOEXEC", "O_NOINHERIT", "O_NONBLOCK", "O_NOCTTY", "O_BINARY")
"""Opening does not block, even if the file is a pipe."""
WRITE_FLAGS = os.O_RDWR | _flags("O_CLOEXEC", "O_NOINHERIT", "O_BINARY")
NO_FOLLOW = _flags("O_NOFOLLOW")
"""0 on Windows, where making a symbolic link needs a privilege."""
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
)
"""Signals that stop a program as ^C does."""
KILLED = tuple(-getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The exit codes of a process that was ended from outside; on Windows none shows that."""
OUT_OF_TIME = -getattr(signal, "SIGXCPU", 0) or None
"""The exit code of a process that reached its limit of processor time; None where there are no limits."""
OWN_GROUP: dict[str, Any] = (
    {"process_group": 0}
    if IS_POSIX
    else {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
)
"""For Popen: ^C at the terminal does not reach the process."""


def copy_owner(source: Path, target: Path) -> None:
    """Give a file the owner and the group of another one, as far as this user may; nothing on Windows."""
    status = source.stat()
    for ids in ((status.st_uid, status.st_gid), (-1, status.st_gid)):
        with suppress(OSError):
            if hasattr(os, "chown"):
                os.chown(target, *ids)
            return


def is_private(folder: Path) -> bool:
    """Whether a folder belongs to this user, and no other user may enter it. OSError."""
    status = folder.lstat()
    is_ours = not IS_POSIX or (status.st_uid == user_id() and not status.st_mode & 0o077)
    return stat.S_ISDIR(status.st_mode) and is_ours


def stop_main_thread(error: type[BaseException]) -> None:
    """Stop the main thread as SIGTERM does, where the program handles it. Called there, raise the error."""
    if threading.current_thread() is threading.main_thread():
        raise error
    if hasattr(signal, "pthread_kill") and callable(signal.getsignal(signal.SIGTERM)):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def lower_priority() -> None:
    """Let other processes run first. Does nothing on Windows."""
    if hasattr(os, "nice"):
        os.nice(10)


def try_lock(descriptor: int) -> None:
    """Lock an open file until it is closed. OSError if another process has the lock, or without locks."""
    if not IS_POSIX:
        raise OSError(errno.ENOTSUP, "no locks")
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """At most `count` bytes from `offset` on; the position in the file stays."""
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, count)
    finally:
        os.lseek(descriptor, position, os.SEEK_SET)


def is_running(process: int) -> bool:
    """Whether there is a process of that number."""
    import psutil  # os.kill(process, 0) asks on POSIX, and interrupts on Windows

    try:
        return bool(psutil.pid_exists(process))
    except OverflowError:  # no process has that number, but nothing is known about it
        return True


def is_reserved(name: str) -> bool:
    """Whether Windows takes a file's name for a device, whatever its extension: CON, NUL, COM1."""
    stem = name.partition(".")[0].rstrip().casefold()
    return stem in ("con", "prn", "aux", "nul") or re.fullmatch("(com|lpt)[1-9]", stem) is not None


def command_line(words: Sequence[str]) -> str:
    """Words as a line for the shell of this system."""
    return shlex.join(words) if IS_POSIX else subprocess.list2cmdline(words)


def longest_path() -> int:
    """How many characters a path may have; 0 where there is no limit that a cache could reach."""
    if sys.platform == "win32":
        import winreg

        name = r"SYSTEM\CurrentControlSet\Control\FileSystem"
        with suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, name) as key:
            if winreg.QueryValueEx(key, "LongPathsEnabled")[0]:
                return 0
        return 259
    return 0
