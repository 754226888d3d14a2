"""Weights from the hub: only what is not there, all checked before anything starts, resumed in mid-file.

huggingface_hub's own download to a folder throws away what an interrupted file had (it may be 10 GB) and,
when killed, leaves it lying about under a random name. So files are read through its `http_get`, which
resumes, into a file beside the target that is named by its content.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from stat import S_ISREG
from typing import TYPE_CHECKING

from svi_story.cache.outputs import is_plain, state_of
from svi_story.engines.svi.catalog import UNKNOWN
from svi_story.engines.svi.digests import Records, ignore_progress, name_of
from svi_story.engines.svi.hub import AGAIN, explained
from svi_story.errors import InputError, Problem, RenderError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from svi_story.cache.outputs import State
    from svi_story.engines.svi.catalog import Part, Source
    from svi_story.engines.svi.digests import Expected, Progress
    from svi_story.engines.svi.hub import Hub, Offer

SPARE = 2**28
"""Bytes that stay free on the disk besides what is downloaded."""
LOCK = ".svi-story-downloads.lock"


@dataclass(frozen=True)
class Item:
    """One file of the hub and its place here."""

    source: Source
    offer: Offer
    name: str
    """In the repository."""
    target: Path
    there: bool
    """Whether it is there already, and whole."""
    replaces: str = ""
    """How the older download that it replaces differs; empty where there is none."""
    state: State | None = None
    """What lay in its place before anything was downloaded."""

    @property
    def expected(self) -> Expected:
        """Its size and hash."""
        return self.offer.files[self.name]

    @property
    def work(self) -> Path:
        """The file it grows in."""
        return self.target.with_name(f".{self.target.name}.{self.expected.short}.part")

    @property
    def to_read(self) -> int:
        """The bytes that are still to be downloaded."""
        if self.there:
            return 0
        have = self.work.stat().st_size if self.work.is_file() else 0
        return self.expected.bytes - have if have <= self.expected.bytes else self.expected.bytes

    @property
    def licence(self) -> str:
        """What the hub says, else what is known."""
        return self.offer.licence or self.source.licence or UNKNOWN


def prepare(
    root: Path, parts: Sequence[Part], hub: Hub, progress: Progress = ignore_progress
) -> tuple[Item, ...]:
    """Every file of these parts, and whether it is there. Asks the hub, downloads nothing.

    Files that were not downloaded from here are hashed once. Raises InputError with everything that stands in
    the way: no connection, no access, files that the hub has not, other files in the places of those it has.
    """
    records = Records.load(root)
    items: list[Item] = []
    problems: list[Problem] = []
    offers: dict[str, Offer] = {}
    for part in parts:
        try:
            repo = part.source.repo
            offers[repo] = offer = offers.get(repo) or hub.offer(part.source)
            found = _names(part, offer)
        except InputError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        for name in found:
            try:
                items.append(_item(root, part, offer, name, records, progress))
            except InputError as error:
                problems += [problem for problem in error.problems if problem not in problems]
    try:
        _check_access(items, hub)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(*problems)
    return tuple(items)


def _names(part: Part, offer: Offer) -> list[str]:
    """The repository's files that belong to a part. Raises InputError when it lacks a needed one."""
    names = sorted(name for name in offer.files if part.takes(name))
    missing = [
        Problem(f"the hub has no {pattern}; see https://huggingface.co/{offer.repo}", file=offer.repo)
        for pattern in part.unmet(names)
    ]
    if missing:
        raise InputError(*missing)
    return names


def _item(root: Path, part: Part, offer: Offer, name: str, records: Records, progress: Progress) -> Item:
    target = root / part.source.folder / name
    expected = offer.files[name]
    item = Item(part.source, offer, name, target, there=False, state=state_of(target))
    if item.state is None:
        return item
    try:
        if records.is_known(target, expected):
            return replace(item, there=True)
        differs = expected.differs(target, progress)
        if differs and not _is_older(target, records):
            what = f"{differs}, and svi-story did not download it so; move it away or delete it, then {AGAIN}"
            raise InputError(Problem(what, file=str(target)))
    except OSError as error:
        raise InputError(Problem(f"cannot be read: {error.strerror}", file=str(target))) from error
    if not differs:
        records.add(target, (expected, offer.repo, offer.commit), downloaded=False)
    return replace(item, there=not differs, replaces=differs)


def _is_older(target: Path, records: Records) -> bool:
    """Whether a file is what svi-story downloaded before, from another state of the repository. OSError."""
    record = records.of(target)
    if record is None or not record.downloaded or not is_plain(target):
        return False
    return records.is_known(target, record.expected) or not record.expected.differs(target)


def _check_access(items: Iterable[Item], hub: Hub) -> None:
    """Ask for one file of each repository that is needed: a gated one would fail only after hours else."""
    first = {item.offer.repo: item for item in items if not item.there}
    problems: list[Problem] = []
    for item in first.values():
        try:
            hub.check_access(item.offer, item.name)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)


def free_space(root: Path) -> int:
    """Free bytes where a folder is, or will be."""
    there = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(there).free


def check_space(root: Path, items: Iterable[Item]) -> None:
    """Raises InputError unless all that is missing has room."""
    wanted, free = sum(item.to_read for item in items), free_space(root)
    if wanted and wanted + SPARE > free:
        what = f"the download needs {_gigabytes(wanted)}, and {_gigabytes(free)} are free"
        raise InputError(Problem(f"{what}; free some, or name another folder with --models", file=str(root)))


def fetch(root: Path, items: Iterable[Item], hub: Hub, progress: Progress = ignore_progress) -> None:
    """Download what is missing, each file whole and checked before it has its name.

    Raises InputError when another download is under way, RenderError when something fails on the way; what
    was downloaded is kept, unless it turned out to be wrong.
    """
    with _alone(root):
        records = Records.load(root)
        for item in items:
            if not item.there:
                with explained(item.offer.repo, RenderError, item.name):
                    _fetch(item, hub, progress)
                    offered = (item.expected, item.offer.repo, item.offer.commit)
                    records.add(item.target, offered, downloaded=True)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            Problem("another download is writing here; wait for it to end", file=str(root))
        ) from error
    except OSError as error:
        raise InputError(Problem(f"cannot be written: {error.strerror}", file=str(root))) from error
    try:
        yield
    finally:
        lock.release()


def _fetch(item: Item, hub: Hub, progress: Progress) -> None:
    item.target.parent.mkdir(parents=True, exist_ok=True)
    _tidy(item)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(item.work, flags, 0o666), "ab") as file:
        done = file.tell()

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            if done < item.expected.bytes:
                progress(name_of(item.target), done, item.expected.bytes)

        on_bytes(0)
        try:
            hub.read(item.offer, item.name, file, on_bytes)
        except OSError as error:
            if type(error) is OSError and error.errno is None:  # how http_get says that the size is wrong
                _refuse(item, f"has {done} bytes instead of {item.expected.bytes}", error)
            raise
        file.flush()
        os.fsync(file.fileno())
    differs = item.expected.differs(item.work)
    if differs:
        _refuse(item, differs)
    if state_of(item.target) != item.state:
        what = f"was put there meanwhile, and is kept; what was downloaded is {item.work.name}"
        raise RenderError(Problem(f"{what}; move one of them away, then {AGAIN}", file=str(item.target)))
    item.work.replace(item.target)
    progress(name_of(item.target), item.expected.bytes, item.expected.bytes)


def _tidy(item: Item) -> None:
    """Remove what was begun of other versions of a file, and what grew too long to be this one."""
    hashes = "[0-9a-f]" * len(item.expected.short)
    for other in sorted(item.target.parent.glob(f".{escape(item.target.name)}.{hashes}.part")):
        status = other.lstat()  # appending to a pipe would wait for ever, and to a link change another file
        if other != item.work or not S_ISREG(status.st_mode) or status.st_size > item.expected.bytes:
            other.unlink()


def _refuse(item: Item, differs: str, cause: Exception | None = None) -> None:
    item.work.unlink(missing_ok=True)
    what = f"what the hub sent {differs}; it was removed. Run the same command again"
    raise RenderError(Problem(what, file=str(item.target))) from cause


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
