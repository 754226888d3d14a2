"""Atomic writes, bounded reads of regular files, locks, and errors with a remedy."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from filelock import FileLock, Timeout

from svi_story.commands import suggest
from svi_story.errors import Problem, RenderError, TransientError
from svi_story.portable import (
    IS_POSIX,
    NO_FOLLOW,
    READ_FLAGS,
    WRITE_FLAGS,
    is_running,
    try_lock,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader


TEMP = ".tmp-"
CHANGED = "changed while it was read"
CHUNK = 2**20
"""Bytes read at a time."""

CLEAN_UP = "free some space (`{gc}` lists what is old), then run the same command again"
PERMISSIONS = (
    "make it writable for you, or choose another cache with --cache, then run the same command again"
)
IN_THE_WAY = "move away what is there under that name, then run the same command again"
REMEDIES = {
    errno.ENOSPC: CLEAN_UP,
    errno.EDQUOT: CLEAN_UP,
    errno.EFBIG: "this file system does not allow files of that size: choose another cache with --cache",
    errno.EROFS: "choose another cache with --cache (or SVI_STORY_CACHE), then run the same command again",
    errno.EACCES: PERMISSIONS,
    errno.EPERM: PERMISSIONS,
    errno.EEXIST: IN_THE_WAY,
    errno.ENOTEMPTY: IN_THE_WAY,
    errno.ENOTDIR: IN_THE_WAY,
    errno.EISDIR: IN_THE_WAY,
    errno.ELOOP: IN_THE_WAY,
}
"""For files of the cache."""
OUTPUT_REMEDIES = {
    errno.ENOSPC: "free some space on that disk (`{gc}` lists what is old)",
    errno.EDQUOT: "free some of your quota on that disk (`{gc}` lists what is old)",
    errno.EACCES: "choose a place you may write to",
    errno.EPERM: "choose a place you may write to",
    errno.EROFS: "choose a place that is not read-only",
    errno.ENOENT: "create that folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "move away the folder that is there under that name",
    errno.ENOTDIR: "move away what is there instead of a folder",
}
"""For files that a user asked for."""
TRANSIENT = (
    *(errno.ENOSPC, errno.EDQUOT),  # another program or user may free space
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT),  # a network disk
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EBUSY),  # other programs may end
)
"""Errors that may disappear by themselves."""
DAMAGED = (
    *(errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)),  # a disk that lost a block; UnfitError
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),  # the file was replaced by something else
)
"""Errors that mean that the content is not what was written; others say nothing about the content."""


class CorruptError(RenderError):
    """A file's content is not what was written. The store treats it as missing, with a warning."""


class UnfitError(OSError):
    """A path cannot be read as a file: `strerror` says why, as `is a folder`."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EBADMSG, reason, str(path))


@contextmanager
def disk(path: Path, doing: str = "") -> Iterator[None]:
    """Turn any OSError inside into a RenderError about `path`, with a remedy.

    Raises as `disk_error`; without `doing` as `unwritable`, for a file that a user asked for.
    """
    try:
        yield
    except OSError as error:
        raise (
            disk_error(error, path, doing) if doing else unwritable(path, error.strerror or str(error))
        ) from error


def disk_error(error: OSError, path: Path, doing: str) -> RenderError:
    """The error for a failed access to the cache: what was being done, why it failed and a remedy.

    A TransientError where it may go away by itself.
    """
    remedy = REMEDIES.get(error.errno or 0, "check the disk, then run the same command again")
    if isinstance(error, UnfitError):
        remedy = IN_THE_WAY
    reason, remedy = error.strerror or str(error), remedy.format(gc=suggest("cache gc"))
    what = f"{doing} failed: {reason}; {remedy}: everything rendered so far is kept"
    kind = TransientError if error.errno in TRANSIENT else RenderError
    return kind(Problem(what, file=str(path)))


def unwritable(target: Path, reason: str) -> RenderError:
    """The error for a file that a user asked for and that cannot be written.

    The remedy, and whether it is a TransientError, are taken from the reason, which may quote the system's.
    """
    remedies = [remedy for code, remedy in OUTPUT_REMEDIES.items() if os.strerror(code) in reason]
    remedies.append("check that its disk works and has space")
    remedy = remedies[0].format(gc=suggest("cache gc"))
    what = (
        f"cannot be written: {reason}; {remedy}, then run the same command again: what was rendered is kept"
    )
    kind = TransientError if any(os.strerror(code) in reason for code in TRANSIENT) else RenderError
    return kind(Problem(what, file=str(target)))


def short_path(path: Path) -> Path:
    """A path for messages: relative where it is below the working directory."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def temp_name() -> str:
    """A unique name, on any host.

    Not from `tempfile`: its files and folders are private to their owner, and a cache may be shared.
    """
    return f"{TEMP}{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


def is_temp_of_this_host(name: str) -> bool:
    """Whether it is a name from `temp_name` on this host.

    A lock proves only that no process of *this* host uses a folder, as a network file system may grant the
    same lock to two hosts. So the files of other hosts are left to `cache gc`.
    """
    return re.fullmatch(rf"{re.escape(TEMP)}{re.escape(_host())}-\d+-[0-9a-f]{{8}}(-.*)?", name) is not None


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:40]


def sync(path: Path) -> None:
    """Force a file's bytes or a folder's names to disk, as far as the system can."""
    if not IS_POSIX and path.is_dir():
        return
    fd = os.open(path, os.O_RDONLY if IS_POSIX else WRITE_FLAGS)
    try:
        os.fsync(fd)
    except OSError as error:
        # some network file systems cannot sync a folder; the server does
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, durably."""
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    folder.mkdir(parents=True, exist_ok=True)
    for created in missing:
        sync(created.parent)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file. Raises FileExistsError if the target exists.

    Also if it appears meanwhile, unless the file system has no hard links.
    """
    try:
        target.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        source.rename(target)
    else:
        source.unlink()


def open_regular(path: Path, most: int | None = None) -> BufferedReader:
    """Open a regular file for reading, without ever waiting for it.

    Every file that is read is opened here: a pipe would block, and a device may have no end, or side effects.
    Links are followed. Raises UnfitError for anything but a regular file, and for more than `most` bytes;
    other OSErrors; ValueError for a name with a NUL.
    """
    _check_regular(path, path.stat(), most)
    file = os.fdopen(os.open(path, READ_FLAGS), "rb")  # even if it was swapped for a pipe meanwhile
    try:
        _check_regular(path, os.fstat(file.fileno()), most)
    except BaseException:
        file.close()
        raise
    return file


def _check_regular(path: Path, status: os.stat_result, most: int | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise UnfitError(path, "is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise UnfitError(path, "is not a regular file")
    if most is not None and status.st_size > most:
        raise UnfitError(path, f"is larger than {most:,} bytes")


def check_regular(path: Path) -> None:
    """For files that a library opens by name. Raises as `open_regular`."""
    open_regular(path).close()


def read_chunks(path: Path, most: int | None = None, chunk: int = CHUNK) -> Iterator[bytes]:
    """A regular file's bytes in chunks. Raises as `open_regular`, and UnfitError if the size changes."""
    with open_regular(path, most) as file:
        yield from chunks_of(path, file, chunk)


def chunks_of(path: Path, file: BinaryIO, chunk: int = CHUNK) -> Iterator[bytes]:
    """The bytes of an open file, in chunks, from its beginning. Raises UnfitError if its size changes."""
    rest = os.fstat(file.fileno()).st_size
    while data := file.read(min(chunk, rest + 1)):
        rest -= len(data)
        if rest < 0:
            break
        yield data
    if rest:
        raise UnfitError(path, CHANGED)


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of a regular file of at most `most` bytes. Raises as `read_chunks`."""
    with open_regular(path, most) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1)
    if len(data) != size:
        raise UnfitError(path, CHANGED)
    return data


def why_not_opened(error: OSError | ValueError, kind: str) -> str:
    """Why `open_regular` failed for a file that the user named, and the remedy; `kind` as `an image file`."""
    if isinstance(error, FileNotFoundError):
        return "does not exist; check the path and its spelling"
    if isinstance(error, UnfitError):
        return f"{error.strerror}; name {kind}"
    reason = error.strerror if isinstance(error, OSError) else error
    return f"cannot be read ({reason}); check the path and its permissions"


def sha256_file(path: Path, most: int | None = None) -> str:
    """The sha256 (hex) of a regular file's bytes. Raises as `read_chunks`."""
    digest = hashlib.sha256()
    for data in read_chunks(path, most):
        digest.update(data)
    return digest.hexdigest()


def is_writable(folder: Path) -> bool:
    """Whether files can be created in a folder, or the folder itself if it does not exist."""
    places = (folder.absolute(), *folder.absolute().parents)
    existing = next(place for place in places if os.path.exists(place))  # noqa: PTH110 - Path.exists may raise
    return os.access(existing, os.W_OK)


def regular_size(path: Path) -> int | None:
    """A regular file's size in bytes, or None for anything else."""
    status = path.stat()
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def folds_case(folder: Path) -> bool:
    """Whether a folder ignores the case of names, as far as its names show.

    Nothing is written. If the folder does not exist yet, its parents are examined.
    """
    for place in (folder.absolute(), *folder.absolute().parents):
        with suppress(OSError):
            names = {name for name in os.listdir(place) if name.isascii()}  # noqa: PTH208 - names alone
            for name in sorted(names):
                if name.swapcase() not in names:
                    return os.path.lexists(place / name.swapcase())
    return False


def relative_path(path: Path | str, folder: Path | str) -> str:
    """A path relative to a folder, with slashes; an absolute one if it is on another drive (Windows)."""
    try:
        return os.path.relpath(path, folder).replace(os.sep, "/")
    except ValueError:
        return Path(path).absolute().as_posix()


def measure(path: Path) -> tuple[int, float]:
    """Bytes and newest modification time of a file, or of a folder with its content; (0, 0) if missing."""
    size, newest = 0, 0.0
    content = (Path(top, name) for top, folders, files in os.walk(path) for name in (*folders, *files))
    for each in (path, *content):
        with suppress(OSError):  # deleted or published meanwhile, or not readable
            status = each.lstat()
            newest = max(newest, status.st_mtime)
            size += 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return size, newest


def remove(path: Path) -> None:
    """Delete a file, or a folder with its content. OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def atomic_file(
    target: Path, before: Callable[[Path], bool] | None = None, doing: str = ""
) -> Iterator[Path]:
    """A temporary file in the target's folder, with its extension; in the end it is synced and replaces it.

    `before` is called with it just before the rename. If it returns False, or if anything is raised in it or
    inside, the file is removed and the target stays as it was. Raises as `disk`; other errors pass.
    """
    target = target.absolute()
    temporary = target.with_name(f"{temp_name()}-{target.name[-40:]}")
    with disk(target, doing):
        descriptor = os.open(temporary, WRITE_FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
    with ExitStack() as lock:
        lock.callback(_close, descriptor)
        try:
            with suppress(OSError):  # without a lock, this file is swept only after this process
                try_lock(descriptor)
            yield temporary
            with disk(target, doing):
                os.fsync(descriptor)
                # Closing reports failed writes too (NFS, quotas). It is a copy: the other one keeps the lock.
                os.close(os.dup(descriptor))
                is_wanted = before is None or before(temporary)
                if not IS_POSIX:
                    lock.close()
                if is_wanted:
                    temporary.replace(target)
                    sync(target.parent)
                else:
                    temporary.unlink()
        except BaseException:
            lock.close()
            with suppress(OSError):
                temporary.unlink()
            raise


def _close(descriptor: int) -> None:
    with suppress(OSError):
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, doing: str = "") -> None:
    """Replace a file's content at once, durably; its folder must exist. Raises as `atomic_file`."""
    with atomic_file(path, doing=doing) as temporary, disk(path, doing):
        temporary.write_bytes(data)


def remove_stale_temps(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes of this machine left in a folder.

    Files of other machines and of running processes stay. A process in another container is recognised by its
    lock.
    """
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if not is_temp_of_this_host(path.name) or is_running(int(path.name.split("-")[2])):
                continue
            with suppress(OSError):
                if not IS_POSIX:
                    remove(path)
                    continue
                access = os.O_RDONLY if path.is_dir() else os.O_RDWR
                descriptor = os.open(path, access | READ_FLAGS | NO_FOLLOW)
                try:
                    try_lock(descriptor)
                    remove(path)
                finally:
                    os.close(descriptor)


POLL_SECONDS = 0.1
FOREVER = -1


class LockState(Enum):
    """The result of trying to take a lock."""

    HELD = "held"
    BUSY = "busy"
    UNSUPPORTED = "unsupported"
    """The file system has no locks, or refused: continue as if held, but assume nothing to be stale."""


@contextmanager
def locked(
    path: Path, on_wait: Callable[[], None], given_up: Callable[[], bool] | None = None
) -> Iterator[LockState]:
    """Hold the lock, waiting for another process as long as it takes; ^C ends the wait at once.

    In other threads, which ^C does not reach, the wait ends with CancelledError once `given_up` is true.
    Locks only save work: correctness never depends on them, because a network file system may have none.
    `on_wait` is called once if another process has the lock. Never BUSY.
    """
    lock = _lock(path)
    state = _try(lock)
    if state is LockState.BUSY:
        on_wait()
        state = _try(lock, FOREVER, given_up)
        if state is LockState.BUSY:
            raise CancelledError
    yield from _release_after(lock, state)


@contextmanager
def lock_if_free(path: Path) -> Iterator[LockState]:
    """Hold the lock, unless another process does (BUSY)."""
    lock = _lock(path)
    yield from _release_after(lock, _try(lock))


def _lock(path: Path) -> FileLock:
    # No fall-back to a marker file: one that a crashed host left would block everybody for ever.
    return FileLock(path, poll_interval=POLL_SECONDS, fallback_to_soft=False)


def _try(lock: FileLock, timeout: float = 0, given_up: Callable[[], bool] | None = None) -> LockState:
    existed = os.path.lexists(lock.lock_file)
    try:
        lock.acquire(timeout=timeout, cancel_check=given_up)
    except Timeout:
        return LockState.BUSY
    except OSError:
        if not existed:  # its file was created for nothing
            with suppress(OSError):
                os.unlink(lock.lock_file)  # noqa: PTH108 - filelock has it as text
        return LockState.UNSUPPORTED
    return LockState.HELD


def _release_after(lock: FileLock, state: LockState) -> Iterator[LockState]:
    try:
        yield state
    finally:
        with suppress(OSError):  # the lock dies with the process at the latest
            lock.release()
