"""Arguments and options that several commands share, each declared once."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from svi_story.commands import Given, repeating

if TYPE_CHECKING:
    from svi_story.api import Options
    from svi_story.settings import Settings

Paths = Annotated[list[Path], typer.Argument(metavar="PATH", help="Boards, bundles, or folders of boards.")]
Board = Annotated[Path, typer.Argument(metavar="BOARD", help="A board, or a bundle.")]
Projects = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="PATH",
        help="Boards, or folders of projects. Default: the working directory.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Where films go. Default: renders/ in the board's project."
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache", metavar="DIR", help="Where segments are kept. Default: renders/.cache in the project."
    ),
]
Engine = Annotated[
    str, typer.Option("--engine", metavar="NAME", help="The engine, svi or animatic, instead of the board's.")
]
Models = Annotated[
    list[Path] | None,
    typer.Option(
        "--models",
        metavar="DIR",
        help="Where the weights are; repeatable. Default: models/ in the project.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", metavar="NAME", help="Data type of the experts: bfloat16 (default) or float32."),
]
Weights = Annotated[
    str,
    typer.Option(
        "--weights",
        metavar="NAME",
        help="How the experts are held: bf16 (default), or int8, which needs half the memory.",
    ),
]
Memory = Annotated[
    str,
    typer.Option(
        "--memory",
        metavar="MODE",
        help="Where the experts are kept: auto (default), resident, offload, stream.",
    ),
]
Vae = Annotated[
    str,
    typer.Option(
        "--vae",
        metavar="HOW",
        help="whole (default), strips (less memory, equal but for rounding), or tiles (least, may show).",
    ),
]
Attention = Annotated[
    str,
    typer.Option("--attention", metavar="NAME", help="The attention kernel; auto (default) takes the best."),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the experts with torch.compile: faster steps, after a start that takes longer.",
        show_default=False,
    ),
]
RayAddress = Annotated[
    str,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Render on all GPUs of this machine, or of a Ray cluster: auto, or HOST:PORT.",
        show_default=False,
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        metavar="N",
        min=0,
        help="Number of workers for --ray. Default: one per GPU.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

MOST_TAKES = 99
DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class BoardOptions:
    """The options of every command that takes boards. A field that is added here is one of all of them."""

    output: Output = None
    cache: Cache = None
    engine: Engine = ""
    models: Models = None
    dtype: Dtype = ""
    weights: Weights = ""
    vae: Vae = ""
    memory: Memory = ""
    attention: Attention = ""
    compile: Compile = None

    def given(self) -> Options:
        """Those that were given, as the Python interface takes them. Raises a usage error."""
        from svi_story.api import ENGINE_OPTIONS

        for name, values in ENGINE_OPTIONS.items():
            if value := getattr(self, name):
                one_of(value, values, f"--{name}")
        options: Any = given_settings(
            **{field.name: getattr(self, field.name) for field in fields(self)},
        )
        return options  # type: ignore[no-any-return]  # fields of this class have those of Options as names


def given_settings(**options: object) -> dict[str, object]:
    """Those of the options that were given, as fields of `Settings`. Raises a usage error."""
    from svi_story.enginespec import KERNELS, PRECISIONS, engine_names
    from svi_story.settings import MEMORY_MODES

    names = {"engine": engine_names(), "memory": MEMORY_MODES, "attention": KERNELS, "weights": PRECISIONS}
    for name, known in names.items():
        if value := options.get(name):
            one_of(str(value), known, f"--{name}")
    return {name: value for name, value in options.items() if value or value is False}


def settings_here(**options: object) -> Settings:
    """The settings of a command that takes no board: those of the project of the working directory."""
    from svi_story.cli.console import warn
    from svi_story.settings import load_settings, project_root

    return load_settings(project_root(Path.cwd(), warn), given_settings(**options))


def caches_of(paths: Sequence[Path] | None, cache: Path | None) -> list[Path]:
    """The caches of a command that takes `Projects`: those that the boards are rendered with, each once.

    Raises InputError for a path that does not exist.
    """
    from svi_story.bundle.format import is_bundle
    from svi_story.errors import InputError, Problem
    from svi_story.render.jobs import Place, find_places
    from svi_story.settings import load_settings, project_root

    if cache or not paths:
        return [settings_here(cache=cache).cache]
    absent = [
        Problem("does not exist; check the path", file=str(path)) for path in paths if not path.exists()
    ]
    if absent:
        raise InputError(*absent)
    found = [place.cache for place in find_places(paths) if isinstance(place, Place)]
    folders = [path if path.is_dir() else path.parent for path in paths if not is_bundle(path)]
    own = [load_settings(project_root(folder)).cache for folder in folders]
    return list(dict.fromkeys((*found, *own)))


_PARAMETERS = {
    field.name: inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default,
        annotation=get_type_hints(BoardOptions, include_extras=True)[field.name],
    )
    for field in fields(BoardOptions)
}
"""The fields of BoardOptions as Typer takes them."""


def with_board_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with every field of BoardOptions as an option, in the place of its parameter `options`."""

    @wraps(command)
    def run(**values: Any) -> None:
        options = BoardOptions(**{name: values.pop(name) for name in _PARAMETERS})
        command(options=options, **values)

    own = inspect.signature(command, eval_str=True).parameters.values()
    expanded: list[inspect.Parameter] = []
    for parameter in own:
        if parameter.annotation is BoardOptions:
            expanded += _PARAMETERS.values()
        else:
            expanded.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    run.__signature__ = inspect.Signature(expanded)  # type: ignore[attr-defined]  # inspect.signature reads it
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in expanded}
    return run


def one_of(name: str, names: Sequence[str], option: str) -> str:
    """The name, if it is one of these. Raises a usage error."""
    if name not in names:
        from svi_story.fields import nearest

        meant = nearest(name, names)
        guess = f"; did you mean {meant!r}?" if meant else ""
        raise typer.BadParameter(f"{name!r} is none of {', '.join(names)}{guess}", param_hint=option)
    return name


class Command(TyperCommand):
    """A command whose options are repeated by what it suggests."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        with repeating(_given(ctx)):
            return super().invoke(ctx)


MOST_PATHS = 3
"""Paths that a suggested command repeats; of more boards, the folders."""


def _given(ctx: Any) -> dict[str, Given]:
    """What was given on the command line, by the commands that have such an argument or option too.

    Flags are left out: `--json` and the like are about the one command alone.
    """
    paths: list[Path] = []
    options: dict[tuple[object, ...], list[tuple[str, ...]]] = {}
    for parameter in ctx.command.params:
        if ctx.get_parameter_source(parameter.name).name != "COMMANDLINE":
            continue
        value = ctx.params[parameter.name]
        values = value if isinstance(value, list | tuple) else [value]
        if parameter.name in ("paths", "projects", "board"):
            paths = [*values]
        elif not getattr(parameter, "is_flag", True):
            name = min(parameter.opts, key=len)
            options[_kind(parameter)] = [(name, str(each)) for each in values]
    if len(paths) > MOST_PATHS:
        folders = (path if os.path.isdir(path) else path.parent for path in paths)  # noqa: PTH112 - it may raise
        paths = [*dict.fromkeys(folders)]
    given: dict[str, Given] = {}
    for name, command in _commands(ctx.find_root().command):
        repeated = (option for each in command.params for option in options.get(_kind(each), ()))
        takes_paths = any(each.name in ("paths", "projects") for each in command.params)
        given[name] = Given(tuple(map(str, paths)) if takes_paths else (), tuple(repeated))
    return given


def _kind(parameter: Any) -> tuple[object, ...]:
    """What is the same where two commands have the same parameter."""
    return (*parameter.opts, parameter.metavar)


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command below a group with its full name, as `cache gc`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


ADDRESS = re.compile(r"local|auto|ray://.*|[^/]*:\d+")


class WithAddress(Command):
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
