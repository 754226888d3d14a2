"""Arguments and options that several commands share, each declared once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from svi_story.portable import command_line

if TYPE_CHECKING:
    from svi_story.render.jobs import Choice

Paths = Annotated[
    list[Path], typer.Argument(metavar="PATH...", help="Boards, bundles, or folders that hold boards.")
]
Board = Annotated[Path, typer.Argument(metavar="BOARD", help="A board, or a bundle.")]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="Where films go.", show_default=True)
]
Cache = Annotated[
    Path,
    typer.Option("--cache", metavar="DIR", envvar="SVI_STORY_CACHE", help="Where segments are kept."),
]
Engine = Annotated[
    str, typer.Option("--engine", metavar="NAME", help="svi or animatic, whatever the board names.")
]
Models = Annotated[
    Path,
    typer.Option("--models", metavar="DIR", envvar="SVI_STORY_MODELS", help="Where the weights are."),
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
        "--memory", metavar="MODE", help="Where the experts are: auto, resident, offload or stream."
    ),
]
Vae = Annotated[
    str, typer.Option("--vae", metavar="HOW", help="whole (default), or tiles: less memory, other numbers.")
]
Attention = Annotated[
    str, typer.Option("--attention", metavar="NAME", help="The attention kernel; auto takes the best.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

OUTPUT = Path("renders")
CACHE = Path("renders/.cache")
MODELS = Path("models")
DTYPES = ("bfloat16", "float32")
VAES = ("whole", "tiles")
MEMORY_MODES = ("auto", "resident", "offload", "stream")


@dataclass(frozen=True)
class BoardOptions:
    """The options of every command that takes boards. A field that is added here is one of all of them."""

    output: Output = OUTPUT
    cache: Cache = CACHE
    engine: Engine = ""
    models: Models = MODELS
    dtype: Dtype = ""
    vae: Vae = ""
    memory: Memory = "auto"
    attention: Attention = "auto"

    def choice(self) -> Choice:
        """The engine that the user asks for, and how it works. Raises a usage error."""
        from svi_story.enginespec import KERNELS, EngineOptions, engine_names
        from svi_story.render.jobs import Choice

        asked = {name: value for name in ("dtype", "vae") if (value := getattr(self, name))}
        options = EngineOptions(
            models=self.models,
            dtype=one_of(self.dtype or DTYPES[0], DTYPES, "--dtype"),
            memory=one_of(self.memory, MEMORY_MODES, "--memory"),
            vae=one_of(self.vae or VAES[0], VAES, "--vae"),
            attention=one_of(self.attention, KERNELS, "--attention"),
        )
        return Choice(
            one_of(self.engine, engine_names(), "--engine") if self.engine else None, options, asked
        )

    def render_command(self, board: Path) -> str:
        """The command that renders a board with the same options; defaults are left out."""
        words = ["svi-story", "render", str(board)]
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words += ["-o" if field.name == "output" else f"--{field.name}", str(value)]
        return command_line(words)


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
        raise typer.BadParameter(f"{name!r} is none of {', '.join(names)}", param_hint=option)
    return name


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
