"""Weights from the hub: only what is not there, all checked before anything starts, resumed in mid-file.

huggingface_hub's own download to a folder throws away what an interrupted file had (it may be 10 GB) and,
when killed, leaves it lying about under a random name. So files are read through its `http_get`, which
resumes, into a file beside the target that is named by its content.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from stat import S_ISREG
from typing import TYPE_CHECKING, BinaryIO

from svi_story import __version__
from svi_story.cache.outputs import is_plain, state_of
from svi_story.engines.svi.weights.catalogue import UNKNOWN
from svi_story.engines.svi.weights.hashes import DownloadRecords, Expected, ignore_progress, name_of
from svi_story.errors import InputError, Problem, RenderError
from svi_story.portable import NO_FOLLOW, WRITE_FLAGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from huggingface_hub import HfApi

    from svi_story.cache.outputs import State
    from svi_story.engines.svi.weights.catalogue import Repository, WeightPart
    from svi_story.engines.svi.weights.hashes import Progress
    from svi_story.errors import StoryError


LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token with read access"
AGAIN = "run the same command again: it resumes where it stopped"


@dataclass(frozen=True)
class HubListing:
    """A repository as the hub describes it now."""

    repo: str
    commit: str
    licence: str
    """Empty where the hub states none."""
    files: dict[str, Expected]


class Hub:
    """The hub that HF_ENDPOINT names, else huggingface.co."""

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint

    def offer(self, source: Repository) -> HubListing:
        """What a repository holds. Raises InputError."""
        api = self._api()
        with explained(source.repo, InputError):
            info = api.model_info(source.repo, files_metadata=True)
        if info.sha is None or any(file.size is None for file in info.siblings or ()):
            raise InputError(Problem("the hub states no sizes; is HF_ENDPOINT a hub?", file=source.repo))
        files: dict[str, Expected] = {}
        for file in info.siblings or ():
            size = file.size or 0
            files[file.rfilename] = (
                Expected(size, sha256=file.lfs.sha256) if file.lfs else Expected(size, git=file.blob_id or "")
            )
        licence = getattr(info.card_data, "license", None)
        licence = ", ".join(licence) if isinstance(licence, list) else str(licence or "")
        return HubListing(source.repo, info.sha, licence, files)

    def check_access(self, offer: HubListing, name: str) -> None:
        """Raises InputError when a file of a repository may not be read (it is listed all the same)."""
        api = self._api()
        with explained(offer.repo, InputError):
            api.get_hf_file_metadata(url=self._url(api, offer, name))

    def read(self, offer: HubListing, name: str, file: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        """Append to `file` what is missing of a file of the hub, calling `on_bytes` with what was added.

        Raises OSError when the disk fails, and what huggingface_hub raises when the hub does.
        """
        from huggingface_hub import logging
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # not in its __all__

        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it tries again by itself
        http_get(
            self._url(self._api(), offer, name),
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(library_name="svi-story", library_version=__version__),
            expected_size=offer.files[name].bytes,
            tqdm_class=_bar(on_bytes),  # type: ignore[arg-type]  # anything with `update`
        )

    def _api(self) -> HfApi:
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            remedy = "install it with: pip install 'svi-story[svi]'"
            raise InputError(
                f"downloading needs huggingface_hub, which is not installed; {remedy}"
            ) from error
        return HfApi(endpoint=self._endpoint, library_name="svi-story", library_version=__version__)

    def _url(self, api: HfApi, offer: HubListing, name: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(offer.repo, name, revision=offer.commit, endpoint=api.endpoint)


def _bar(on_bytes: Callable[[int], None]) -> Callable[..., object]:
    """What huggingface_hub takes for a progress bar."""

    class Bar:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self) -> Bar:
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            pass

        def update(self, count: float) -> None:
            on_bytes(int(count))

    return Bar


@contextmanager
def explained(repo: str, kind: type[StoryError], name: str = "") -> Iterator[None]:
    """Turn what fails at the hub, on the way to it or on the disk into an error with its remedy."""
    from huggingface_hub import errors as hub

    place = f"{repo}/{name}" if name else repo
    try:
        yield
    except hub.HfHubHTTPError as error:
        raise kind(Problem(_refusal(error, repo), file=place)) from error
    except hub.OfflineModeIsEnabled as error:
        raise kind(Problem("HF_HUB_OFFLINE forbids the hub; unset it to download", file=place)) from error
    except hub.HTTPError as error:  # type: ignore[attr-defined]  # of the client that the hub's library uses
        what = f"the hub cannot be reached ({error or type(error).__name__})"
        raise kind(
            Problem(f"{what}; check the connection, the proxy and HF_ENDPOINT, then {AGAIN}", file=place)
        ) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "no space is left; free some, or name another folder with --models" if full else str(error)
        raise kind(Problem(f"{what}; then {AGAIN}", file=place)) from error


def _refusal(error: Exception, repo: str) -> str:
    """What the hub's answer means, and what to do about it."""
    from huggingface_hub import errors as hub

    assert isinstance(error, hub.HfHubHTTPError)
    page = f"https://huggingface.co/{repo}"
    if isinstance(error, hub.GatedRepoError):
        return f"is gated: ask for access at {page}, then {LOGIN}"
    if isinstance(error, hub.EntryNotFoundError):
        return f"the hub has no such file any more; see {page}"
    if isinstance(error, hub.RepositoryNotFoundError):
        return f"the hub has no such repository, or is private: see {page}, or {LOGIN}"
    status = error.response.status_code
    meanings = {
        401: f"the hub does not take your token: {LOGIN} (or unset HF_TOKEN: this repository may need none)",
        403: f"your token may not read this: see {page}, then {LOGIN}",
        404: f"the hub has no such repository; see {page}",
        429: f"the hub asks for a pause (too many requests); wait a few minutes, then {AGAIN}",
    }
    return meanings.get(status, f"the hub answers {status}; wait a little, then {AGAIN}")


SPARE = 2**28
"""Bytes that stay free on the disk besides what is downloaded."""
LOCK = ".svi-story-downloads.lock"


@dataclass(frozen=True)
class DownloadItem:
    """One file of the hub and its place here."""

    source: Repository
    offer: HubListing
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
        """As the hub states it, else as far as it is known."""
        return self.offer.licence or self.source.licence or UNKNOWN


def prepare(
    root: Path, parts: Sequence[WeightPart], hub: Hub, progress: Progress = ignore_progress
) -> tuple[DownloadItem, ...]:
    """Every file of these parts, and whether it is there. Asks the hub, downloads nothing.

    Files that were not downloaded from here are hashed once. Raises InputError with everything that stands in
    the way: no connection, no access, files that the hub has not, other files in the places of those it has.
    """
    records = DownloadRecords.load(root)
    items: list[DownloadItem] = []
    problems: list[Problem] = []
    offers: dict[str, HubListing] = {}
    for part in parts:
        try:
            repo = part.source.repo
            offers[repo] = offer = offers.get(repo) or hub.offer(part.source)
            found = sorted(name for name in offer.files if part.takes(name))
            if unmet := part.unmet(found):
                what = f"the hub has no {{}}; see https://huggingface.co/{repo}"
                raise InputError(*(Problem(what.format(pattern), file=repo) for pattern in unmet))
        except InputError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        for name in found:
            try:
                items.append(_item(root, part, offer, name, records, progress))
            except InputError as error:
                problems += [problem for problem in error.problems if problem not in problems]
    first = {item.offer.repo: item for item in items if not item.there}
    for item in first.values():  # one file of each repository: a gated one would fail only after hours else
        try:
            hub.check_access(item.offer, item.name)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    return tuple(items)


def _item(
    root: Path, part: WeightPart, offer: HubListing, name: str, records: DownloadRecords, progress: Progress
) -> DownloadItem:
    target = root / part.source.folder / name
    expected = offer.files[name]
    item = DownloadItem(part.source, offer, name, target, there=False, state=state_of(target))
    if item.state is None:
        return item
    try:
        if records.is_known(target, expected):
            return replace(item, there=True)
        differs = expected.differs(target, progress)
        if differs:
            record = records.of(target)
            may_replace = (  # what svi-story downloaded before, from another state of the repository
                record is not None
                and record.downloaded
                and is_plain(target)
                and (records.is_known(target, record.expected) or not record.expected.differs(target))
            )
            if not may_replace:
                what = f"{differs}, and svi-story did not download it so; move it away or delete it"
                raise InputError(Problem(f"{what}, then {AGAIN}", file=str(target)))
    except OSError as error:
        raise InputError(Problem(f"cannot be read: {error.strerror}", file=str(target))) from error
    if not differs:
        records.add(target, (expected, offer.repo, offer.commit), downloaded=False)
    return replace(item, there=not differs, replaces=differs)


def free_space(root: Path) -> int:
    """Free bytes where a folder is, or will be."""
    there = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(there).free


def check_space(root: Path, items: Iterable[DownloadItem]) -> None:
    """Raises InputError when the missing files do not fit on the disk."""
    wanted, free = sum(item.to_read for item in items), free_space(root)
    if wanted and wanted + SPARE > free:
        what = f"the download needs {_gigabytes(wanted)}, and {_gigabytes(free)} are free"
        raise InputError(Problem(f"{what}; free some, or name another folder with --models", file=str(root)))


def fetch(root: Path, items: Iterable[DownloadItem], hub: Hub, progress: Progress = ignore_progress) -> None:
    """Download what is missing, each file whole and checked before it has its name.

    Raises InputError when another download is under way, RenderError when something fails on the way; what
    was downloaded is kept, unless it turned out to be wrong.
    """
    with _alone(root):
        records = DownloadRecords.load(root)
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


def _fetch(item: DownloadItem, hub: Hub, progress: Progress) -> None:
    item.target.parent.mkdir(parents=True, exist_ok=True)
    hashes = "[0-9a-f]" * len(item.expected.short)
    for other in sorted(item.target.parent.glob(f".{escape(item.target.name)}.{hashes}.part")):
        status = other.lstat()  # appending to a pipe would wait for ever, and to a link change another file
        if other != item.work or not S_ISREG(status.st_mode) or status.st_size > item.expected.bytes:
            other.unlink()  # begun from another version, or too long to be this one
    flags = WRITE_FLAGS | os.O_CREAT | os.O_APPEND | NO_FOLLOW
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


def _refuse(item: DownloadItem, differs: str, cause: Exception | None = None) -> None:
    item.work.unlink(missing_ok=True)
    what = f"what the hub sent {differs}; it was removed. Run the same command again"
    raise RenderError(Problem(what, file=str(item.target))) from cause


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
