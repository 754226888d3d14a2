"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from svi_story.cache.store import Store
    from svi_story.enginespec import EngineOptions
    from svi_story.events import Reporter
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.render.jobs import Choice, Job, Place

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
Ray = Annotated[
    str,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Work on all GPUs of this machine, or of the Ray cluster there: auto, or HOST:PORT.",
        show_default=False,
    ),
]
Retries = Annotated[
    int, typer.Option("--retries", min=0, max=10, metavar="N", help="How often to try what may pass again.")
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers", metavar="N", min=0, help="How many workers of --ray; one per GPU.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

FILMS = Path("renders")
CACHE = Path("renders/.cache")
MODELS = Path("models")
DTYPES = ("bfloat16", "float32")
VAES = ("whole", "tiles")
RUNGS = ("auto", "resident", "offload", "stream")


ADDRESS = re.compile(r"local|auto|ray://.*|[^/]*:\d+")


class WithAddress(TyperCommand):
    """A command whose `--ray` takes an address or stands alone: a path after it is a path."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line."""
        return super().parse_args(ctx, with_address(args))


def with_address(words: Sequence[str]) -> list[str]:
    """The command line with `--ray local` where `--ray` is followed by something else than an address."""
    full: list[str] = []
    for place, word in enumerate(words):
        full.append(word)
        if word == "--":
            return [*full, *words[place + 1 :]]
        if word == "--ray" and not ADDRESS.fullmatch("".join(words[place + 1 : place + 2])):
            full.append("local")
    return full


def one_of(name: str, names: Sequence[str], option: str) -> str:
    """The name, if it is one of these. Raises a usage error."""
    if name not in names:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(names)}", param_hint=option)
    return name


def chosen(engine: str, options: EngineOptions) -> Choice:
    """The engine the user wants, and how; dtype and vae are empty where nothing was asked for.

    Raises a usage error.
    """
    from svi_story.enginespec import KERNELS, engine_names
    from svi_story.render.jobs import Choice

    asked = {name: value for name in ("dtype", "vae") if (value := getattr(options, name))}
    options = replace(options, dtype=options.dtype or DTYPES[0], vae=options.vae or VAES[0])
    one_of(options.dtype, DTYPES, "--dtype")
    one_of(options.memory, RUNGS, "--memory")
    one_of(options.vae, VAES, "--vae")
    one_of(options.attention, KERNELS, "--attention")
    return Choice(one_of(engine, engine_names(), "--engine") if engine else None, options, asked)


def only_place(board: Path, films: Path, cache: Path) -> Place:
    """The one board that a path names; what was rejected beside it is told. Raises InputError."""
    from svi_story.cli.terminal import complain
    from svi_story.errors import InputError, Problem
    from svi_story.render.jobs import Place, find_places

    found = find_places((board,), films, cache)
    places = [each for each in found if isinstance(each, Place)]
    problems = [problem for each in found if not isinstance(each, Place) for problem in each.error.problems]
    if len(places) > 1:
        problems = [Problem(f"holds {len(places)} boards; name one of them", file=str(board))]
    if len(places) != 1:
        raise InputError(*problems)
    for problem in problems:
        complain(str(problem))
    return places[0]


def fingerprints_in(cache: Path, report: Reporter = lambda _event: None) -> Fingerprints:
    """Hashes of files, memoised in the cache's folder; finding one the first time is told.

    Raises InputError for a folder that holds other files in the cache's places.
    """
    from svi_story.cache.layout import check_root
    from svi_story.plan.fingerprints import Fingerprints

    check_root(cache)
    return Fingerprints.load(cache / "memo.json", report)


def store_of(job: Job) -> Store:
    """The store that a job's segments are kept in."""
    return store_in(job.place.cache)


def store_in(cache: Path) -> Store:
    """The store of a cache folder; what is wrong with it is told on standard error."""
    from svi_story.cache.store import Store
    from svi_story.cli.console import warn

    return Store(cache, warn)
