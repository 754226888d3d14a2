"""Runs commands of svi-story as on Windows, as far as Linux can: `python windows_like.py FOLDER COMMANDS`.

svi-story finds none of the modules, functions and constants that Windows lacks. Below FOLDER, what is open
can be neither renamed nor deleted, and no file gets a name that Windows refuses. Whatever svi-story tries of
that is an error, also where the program would continue. COMMANDS is a JSON list of command lines.
"""

from __future__ import annotations

import builtins
import errno
import importlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}
NAMES: dict[ModuleType, set[str]] = {
    os: {
        *(
            "O_NOFOLLOW",
            "O_NONBLOCK",
            "O_CLOEXEC",
            "O_NOCTTY",
            "O_DIRECTORY",
            "O_SYNC",
            "O_TMPFILE",
            "O_PATH",
        ),
        *(
            "sysconf",
            "confstr",
            "pathconf",
            "killpg",
            "getpgid",
            "getpgrp",
            "setpgid",
            "setsid",
            "getsid",
            "nice",
        ),
        *(
            "getuid",
            "geteuid",
            "getgid",
            "getegid",
            "getgroups",
            "setuid",
            "setgid",
            "chown",
            "lchown",
            "fchmod",
        ),
        *(
            "fchown",
            "fchdir",
            "fork",
            "forkpty",
            "wait",
            "waitid",
            "WNOHANG",
            "mkfifo",
            "mknod",
            "pipe2",
            "uname",
        ),
        *("pread", "pwrite", "preadv", "sendfile", "fdatasync", "sync", "statvfs", "fstatvfs", "getloadavg"),
        *(
            "sched_getaffinity",
            "sched_setaffinity",
            "posix_fadvise",
            "lockf",
            "ctermid",
            "getxattr",
            "setxattr",
        ),
    },
    signal: {
        *(
            "SIGHUP",
            "SIGKILL",
            "SIGQUIT",
            "SIGPIPE",
            "SIGALRM",
            "SIGCHLD",
            "SIGSTOP",
            "SIGCONT",
            "SIGTSTP",
            "SIGUSR1",
        ),
        *(
            "SIGUSR2",
            "SIGXCPU",
            "SIGWINCH",
            "alarm",
            "setitimer",
            "pause",
            "pthread_kill",
            "pthread_sigmask",
            "sigwait",
        ),
    },
    socket: {"AF_UNIX", "send_fds", "recv_fds", "socketpair"},
}
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
REFUSED = re.compile(r'[<>:"|?*\x00-\x1f]|[. ]$')
LONGEST_PATH = 259
tried: list[str] = []
"""What Windows would have refused."""


class Reduced(ModuleType):
    """A module without some of its names, and with others replaced."""

    def __init__(self, module: ModuleType, missing: set[str], **replaced: object) -> None:
        super().__init__(module.__name__)
        self.__dict__.update(replaced)
        self._module, self._missing = module, missing

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise AttributeError(f"{self.__name__}.{name}: Windows has none")
        return getattr(self._module, name)


def refuse(code: int, what: str) -> OSError:
    tried.append(what)
    return OSError(code, what)


def install(folder: str) -> None:
    """Make this process like one on Windows."""
    root = Path(folder).resolve()
    reduced = {
        module.__name__: Reduced(module, names, **(of_os() if module is os else {}))
        for module, names in NAMES.items()
    }
    import_, import_module = builtins.__import__, importlib.import_module

    def is_ours(name: object) -> bool:
        return str(name).partition(".")[0] == "svi_story"

    def limited_import(name: str, globals: Any = None, *rest: Any, **named: Any) -> Any:  # noqa: A002
        if not is_ours(globals and globals.get("__name__")):
            return import_(name, globals, *rest, **named)
        if name in MODULES:
            raise ModuleNotFoundError(f"Windows has no {name}")
        module = import_(name, globals, *rest, **named)
        return reduced.get(getattr(module, "__name__", ""), module)

    def limited_import_module(name: str, package: str | None = None) -> Any:
        if name in MODULES and is_ours(sys._getframe(1).f_globals.get("__name__")):
            raise ModuleNotFoundError(f"Windows has no {name}")
        return import_module(name, package)

    builtins.__import__ = limited_import
    importlib.import_module = limited_import_module
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    for name in ("rename", "replace", "unlink", "remove", "rmdir"):
        setattr(os, name, closed_only(getattr(os, name), root))
    for owner, name in (
        (os, "mkdir"),
        (os, "rename"),
        (os, "replace"),
        (os, "open"),
        (io, "open"),
        (builtins, "open"),
    ):
        setattr(owner, name, with_good_names(getattr(owner, name), root))
    popen = subprocess.Popen.__init__

    def start(
        self: Any, *args: Any, pass_fds: object = (), process_group: object = None, **rest: Any
    ) -> None:
        assert not pass_fds, "Windows passes no descriptors on"
        assert process_group is None, "Windows has no process groups"
        popen(self, *args, **rest)

    subprocess.Popen.__init__ = start  # type: ignore[method-assign]
    warnings.filterwarnings("error", category=EncodingWarning, module="svi_story")


def of_os() -> dict[str, object]:
    """Functions of `os` that do less on Windows."""

    def open_(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if os.path.isdir(path):  # noqa: PTH112 - pathlib may call this
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return os.open(path, flags, *rest, **named)

    def fsync(descriptor: int) -> None:
        import fcntl

        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_RDWR | os.O_WRONLY):
            raise refuse(errno.EBADF, "a descriptor that only reads is synced")
        os.fsync(descriptor)

    def kill(*_: object) -> None:
        raise refuse(
            errno.EINVAL, "os.kill is called: 0 is ^C on Windows, and any other signal ends the process"
        )

    return {"open": open_, "fsync": fsync, "kill": kill}


def closed_only(call: Callable[..., Any], root: Path) -> Callable[..., Any]:
    """The function, for files and folders with files that are not open."""

    def checked(path: Any, *rest: Any, **named: Any) -> Any:
        place = os.path.abspath(path)  # noqa: PTH100 - links stay
        if Path(place).is_relative_to(root):
            for each in Path("/proc/self/fd").iterdir():
                try:
                    opened = str(each.readlink())
                except OSError:  # that of the listing itself
                    continue
                if opened == place or opened.startswith(f"{place}/"):
                    raise refuse(errno.EACCES, f"{opened} is open, and {call.__name__} is called for {place}")
        return call(path, *rest, **named)

    return checked


def with_good_names(call: Callable[..., Any], root: Path) -> Callable[..., Any]:
    """The function, for paths that Windows takes."""

    def checked(*args: Any, **named: Any) -> Any:
        paths = args if call.__name__ in ("rename", "replace", "checked") else args[:1]
        for path in paths:
            if isinstance(path, str | os.PathLike):
                place = os.path.abspath(path)  # noqa: PTH100 - links stay
                if Path(place).is_relative_to(root):
                    inside = Path(place).relative_to(root)
                    for part in inside.parts:
                        if REFUSED.search(part) or part.partition(".")[0].rstrip().casefold() in RESERVED:
                            raise refuse(errno.EINVAL, f"Windows takes no name like {part!r}: {place}")
                    if len(f"C:\\Users\\someone\\Documents\\{inside}") > LONGEST_PATH:
                        raise refuse(errno.ENOENT, f"this path is too long for Windows: {inside}")
        return call(*args, **named)

    return checked


def main() -> None:
    """Run commands one after the other; ends with 1 where one fails."""
    folder, commands = sys.argv[1], json.loads(sys.argv[2])
    install(folder)
    from svi_story.cli import main as svi_story
    from svi_story.media import guard

    guard._BOOT = guard._BOOT.replace(
        "from svi", f"import windows_like; windows_like.install({folder!r}); from svi"
    )
    for command in commands:
        sys.argv = ["svi-story", *command]
        try:
            svi_story()
        except SystemExit as end:
            if end.code:
                raise SystemExit(f"{command} ended with {end.code}") from None
    if tried:
        raise SystemExit("\n".join(tried))


if __name__ == "__main__":
    main()
