"""The Hugging Face hub, seen through huggingface_hub; every way to fail as an error with its cure.

Nothing else in svi-story talks to a hub: the engine reads local files only.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from svi_story import __version__
from svi_story.engines.svi.digests import Expected
from svi_story.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

    from svi_story.engines.svi.catalog import Source
    from svi_story.errors import StoryError

LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token with read access"
AGAIN = "run the same command again: it goes on where it was"


@dataclass(frozen=True)
class Offer:
    """A repository as the hub describes it now."""

    repo: str
    commit: str
    licence: str
    """Empty where the hub tells none."""
    files: dict[str, Expected]


class Hub:
    """The hub that HF_ENDPOINT names, else huggingface.co."""

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint

    def offer(self, source: Source) -> Offer:
        """What a repository holds. Raises InputError."""
        api = self._api()
        with explained(source.repo, InputError):
            info = api.model_info(source.repo, files_metadata=True)
        if info.sha is None or any(file.size is None for file in info.siblings or ()):
            raise InputError(Problem("the hub tells no sizes; is HF_ENDPOINT a hub?", file=source.repo))
        files = {file.rfilename: _expected(file) for file in info.siblings or ()}
        return Offer(source.repo, info.sha, _licence(info), files)

    def check_access(self, offer: Offer, name: str) -> None:
        """Raises InputError when a file of a repository may not be read (it is listed all the same)."""
        api = self._api()
        with explained(offer.repo, InputError):
            api.get_hf_file_metadata(url=self._url(api, offer, name))

    def read(self, offer: Offer, name: str, file: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        """Append to `file` what it lacks of a file of the hub, calling `on_bytes` with what was added.

        Raises OSError when the disk fails, and what huggingface_hub raises when the hub does.
        """
        from huggingface_hub import logging
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # not in its __all__

        logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it tries again by itself, and need not tell
        http_get(
            self._url(self._api(), offer, name),
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(library_name="svi-story", library_version=__version__),
            expected_size=offer.files[name].bytes,
            tqdm_class=_bar(on_bytes),  # type: ignore[arg-type]  # whatever makes something with `update`
        )

    def _api(self) -> HfApi:
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            cure = "install it with: pip install 'svi-story[svi]'"
            raise InputError(f"downloading needs huggingface_hub, which is not installed; {cure}") from error
        return HfApi(endpoint=self._endpoint, library_name="svi-story", library_version=__version__)

    def _url(self, api: HfApi, offer: Offer, name: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(offer.repo, name, revision=offer.commit, endpoint=api.endpoint)


def _expected(file: RepoSibling) -> Expected:
    size = file.size or 0
    return Expected(size, sha256=file.lfs.sha256) if file.lfs else Expected(size, git=file.blob_id or "")


def _licence(info: ModelInfo) -> str:
    licence = getattr(info.card_data, "license", None)
    return ", ".join(licence) if isinstance(licence, list) else str(licence or "")


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
    """Turn what fails at the hub, on the way to it or on the disk into an error with its cure."""
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
        cure = "no space is left; free some, or name another folder with --models" if full else str(error)
        raise kind(Problem(f"{cure}; then {AGAIN}", file=place)) from error


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
        return f"the hub has no such repository, or shows it to its members only: see {page}, or {LOGIN}"
    status = error.response.status_code
    meanings = {
        401: f"the hub does not take your token: {LOGIN} (or unset HF_TOKEN: this repository may need none)",
        403: f"your token may not read this: see {page}, then {LOGIN}",
        404: f"the hub has no such repository; see {page}",
        429: f"the hub asks for a pause (too many requests); wait a few minutes, then {AGAIN}",
    }
    return meanings.get(status, f"the hub answers {status}; wait a little, then {AGAIN}")
