"""A file under its name is a whole file: written beside it, synced, renamed."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from svi_story.cache.files import PASSING, is_temp_of_this_host, sync, temp_name
from svi_story.errors import PassingError, Problem, RenderError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CURES = {
    errno.ENOSPC: "free some space on that disk (`svi-story cache gc` lists what is old)",
    errno.EDQUOT: "free some of your quota on that disk (`svi-story cache gc` lists what is old)",
    errno.EACCES: "choose a place you may write to",
    errno.EPERM: "choose a place you may write to",
    errno.EROFS: "choose a place that is not read-only",
    errno.ENOENT: "make that folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def unwritable(target: Path, reason: str) -> RenderError:
    """The error for a file that could not be written, with the cure where the system's reason tells it.

    A PassingError where the reason may pass by itself.
    """
    cures = [cure for code, cure in _CURES.items() if os.strerror(code) in reason]
    cure = cures[0] if cures else "see that its disk is well and has room"
    what = f"cannot be written: {reason}; {cure}, then run the same command again: what was rendered is kept"
    kind = PassingError if any(os.strerror(code) in reason for code in PASSING) else RenderError
    return kind(Problem(what, file=str(target)))


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A temporary name beside the target, absolute, with its extension; on leaving it becomes the target.

    The file is synced before and its folder after the rename. Whatever is raised inside, the temporary
    file is removed and the target stays what it was. Raises RenderError where the disk refuses.
    """
    target = target.absolute()
    temporary = target.with_name(f"{temp_name()}-{target.name[-40:]}")
    with refusals(target):
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with suppress(OSError):  # some network disks have no locks; then nobody ever sweeps this file
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        with refusals(target):
            os.fsync(descriptor)
            temporary.replace(target)
            sync(target.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes of this machine left in a folder.

    Another machine's files stay, and so do a living process's: its lock shows it even from a container that
    cannot see its process id.
    """
    with suppress(OSError):
        for path in folder.iterdir():
            if is_temp_of_this_host(path.name) and not _is_running(path.name.split("-")[2]):
                _remove_unlocked(path)


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)  # signal 0 asks, it does not kill
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(descriptor)


@contextmanager
def refusals(target: Path) -> Iterator[None]:
    """What the system refuses, as a RenderError about this file."""
    try:
        yield
    except OSError as error:
        raise unwritable(target, error.strerror or str(error)) from error
