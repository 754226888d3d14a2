"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from svi_story.cache.store import Store
    from svi_story.plan.fingerprints import Fingerprints

Paths = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Boards, or folders that hold boards.")]
Films = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Where films go.", show_default=True)
]
Cache = Annotated[
    Path,
    typer.Option("--cache", metavar="DIR", envvar="SVI_STORY_CACHE", help="Where segments are kept."),
]
Engine = Annotated[
    str,
    typer.Option("--engine", metavar="NAME", help="svi or animatic, whatever the board names."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

FILMS = Path("renders")
CACHE = Path("renders/.cache")
ENGINES = ("svi", "animatic")


def engine_named(name: str) -> str | None:
    """The engine the user wants instead of the board's; None without a wish. Raises a usage error."""
    if name and name not in ENGINES:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(ENGINES)}", param_hint="--engine")
    return name or None


def fingerprints_in(cache: Path) -> Fingerprints:
    """Hashes of files, memoised in the cache's folder."""
    from svi_story.plan.fingerprints import Fingerprints

    return Fingerprints.load(cache / "memo.json")


def store_in(cache: Path) -> Store:
    """The store of a cache folder; what is wrong with it is told on standard error."""
    from svi_story.cache.store import Store
    from svi_story.cli.console import warn

    return Store(cache, warn)
