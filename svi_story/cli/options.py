"""Arguments and options that several commands share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svi_story.cache.store import Store
    from svi_story.engines import EngineOptions
    from svi_story.events import Reporter
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.render.jobs import Choice, Job

Paths = Annotated[
    list[Path], typer.Argument(metavar="PATH...", help="Boards, bundles, or folders that hold boards.")
]
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
Models = Annotated[
    Path,
    typer.Option("--models", metavar="DIR", envvar="SVI_STORY_MODELS", help="Where the weights lie."),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", metavar="NAME", help="What the experts compute in: bfloat16 (default) or float32."
    ),
]
Memory = Annotated[
    str,
    typer.Option(
        "--memory", metavar="RUNG", help="Where the experts are: auto, resident, offload or stream."
    ),
]
Vae = Annotated[
    str, typer.Option("--vae", metavar="HOW", help="whole (default), or tiles: less memory, other numbers.")
]
Attention = Annotated[
    str,
    typer.Option("--attention", metavar="NAME", help="The attention kernel; auto takes the best."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

FILMS = Path("renders")
CACHE = Path("renders/.cache")
MODELS = Path("models")
DTYPES = ("bfloat16", "float32")
VAES = ("whole", "tiles")
RUNGS = ("auto", "resident", "offload", "stream")


def one_of(name: str, names: Sequence[str], option: str) -> str:
    """The name, if it is one of these. Raises a usage error."""
    if name not in names:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(names)}", param_hint=option)
    return name


def chosen(engine: str, options: EngineOptions) -> Choice:
    """The engine the user wants, and how; dtype and vae are empty where nothing was asked for.

    Raises a usage error.
    """
    from svi_story.engines import KERNELS, NAMES
    from svi_story.render.jobs import Choice

    given = frozenset(name for name in ("dtype", "vae") if getattr(options, name))
    options = replace(options, dtype=options.dtype or DTYPES[0], vae=options.vae or VAES[0])
    one_of(options.dtype, DTYPES, "--dtype")
    one_of(options.memory, RUNGS, "--memory")
    one_of(options.vae, VAES, "--vae")
    one_of(options.attention, KERNELS, "--attention")
    return Choice(one_of(engine, NAMES, "--engine") if engine else None, options, given)


def fingerprints_in(cache: Path, report: Reporter = lambda _event: None) -> Fingerprints:
    """Hashes of files, memoised in the cache's folder; finding one the first time is told."""
    from svi_story.plan.fingerprints import Fingerprints

    return Fingerprints.load(cache / "memo.json", report)


def store_of(job: Job) -> Store:
    """The store that a job's segments are kept in."""
    return store_in(job.place.cache)


def store_in(cache: Path) -> Store:
    """The store of a cache folder; what is wrong with it is told on standard error."""
    from svi_story.cache.store import Store
    from svi_story.cli.console import warn

    return Store(cache, warn)
