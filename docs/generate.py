"""Write what comes from the code: `cli.md`, `storyboard.schema.json`, tables in `memory.md`, `json.md`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from typer.testing import CliRunner

from svi_story.cli.app import app
from svi_story.engines.svi.memory import MODES, needs_of
from svi_story.engines.svi.weights.architecture import A14B
from svi_story.plan.model import Size
from svi_story.render.record import Record
from svi_story.render.summary import PlanSummary, StatesSummary
from svi_story.review.summary import ReviewSummary
from svi_story.storyboard.schema import json_schema
from svi_story.units import gib

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = (
    (), ("new",), ("import",), ("validate",), ("plan",), ("preview",), ("render",), ("status",),
    ("export",), ("review",),
    ("cache",), ("cache", "ls"), ("cache", "verify"), ("cache", "gc"),
    ("models",), ("models", "list"), ("models", "check"), ("models", "download"), ("doctor",), ("schema",),
)  # fmt: skip

SEVERAL = """\
No board stops another. An invalid board, a path that is not there, a folder that cannot be read and boards
that would write the same film are told on standard error, and the command goes on with the others. It ends
with 1 then, and with 2 where no board was left."""


FILES = """## Your files are safe

No command replaces a file that it reads, or that svi-story did not write. Before anything starts, every
path that a command will write is looked at; what stands in the way is told for all boards at once, as
*FILE: BOARD would write its film here, but this was not written by svi-story; move it away, or choose
another folder with -o*. Such a board is refused (exit code 2 where it is the only one); other boards are
rendered.

- **A file is svi-story's** when the cache lists it with the content that was written (`ledger/` in the
  cache), or when it says so itself: a film by its XMP or by the record beside it; a record, contact sheet,
  review, timeline, bundle or clip's file by its form. So files of an older svi-story are replaced as
  before. Captions that an older svi-story exported say nothing of themselves: move them away to export
  others.
- **Changed since it was written:** captions, records, contact sheets, films so far and clips' files for
  editors are kept, with a warning, and the film is made. A changed film is refused, and so is what an
  export or a review would write: move it away, or choose another place.
- **A film of another board:** where two boards of one name would write one film, the second is refused
  while the first board exists. A board may be moved, and a project copied.
- **Symbolic links** are yours. A film that is up to date may be one; a link is never replaced.
- **`new` and `import`** write new files only. **`models download`** replaces only what it downloaded itself
  and nobody changed since.
- A file that somebody puts in place while a film is rendered is kept too: the board fails, and the same
  command puts the film together in seconds once the file is moved away.
"""


def cli_reference() -> str:
    """Every command's help, as one Markdown page."""
    parts = [f"# Commands\n\nMade from the commands' own `--help` by `make docs`.\n\n{SEVERAL}\n", FILES]
    for words in COMMANDS:
        environment = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
        shown = CliRunner().invoke(app, [*words, "--help"], env=environment, prog_name="svi-story").stdout
        text = "\n".join(line.rstrip() for line in shown.strip().splitlines())
        parts.append(f"## `{' '.join(('svi-story', *words))}`\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def schema() -> str:
    """The storyboard's JSON Schema."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


TABLE = re.compile(r"(?<=<!-- made by `make docs` -->\n).*?(?=<!-- end -->)", re.DOTALL)


def memory_table() -> str:
    """What each memory mode needs for the published models in bfloat16, 81 frames, as a Markdown table."""
    titles = ("", "mode", "sampling", "decoding", "text", "GPU, at most", "RAM, at least", "RAM, better")
    rows = ["|".join(("", *(f" {title} " if title else " " for title in titles), "")), f"|{'---|' * 8}"]
    for name, size in (("480p", Size(832, 480)), ("720p", Size(1280, 720))):
        needs = needs_of(A14B, 2, size, 81)
        for mode in MODES:
            need = needs[mode]
            phases = (need.sampling.total, need.decoding.total, need.text.total)
            cells = [f"{name} ({size})", f"`{mode}`", *map(gib, phases), f"**{gib(need.gpu)}**"]
            rows.append(f"| {' | '.join([*cells, gib(need.ram), gib(need.ram_kept)])} |")
    return "\n".join(rows) + "\n"


def memory_page(page: str) -> str:
    """docs/memory.md with its table made anew."""
    return TABLE.sub(lambda _: memory_table(), page)


MODELS: tuple[type[BaseModel], ...] = (PlanSummary, StatesSummary, ReviewSummary, Record)
"""What is printed or written as JSON."""


def json_page(page: str) -> str:
    """docs/json.md with the tables of its models made anew."""
    for model in MODELS:
        block = re.compile(rf"(?<=<!-- {model.__name__} -->\n).*?(?=<!-- end -->)", re.DOTALL)
        found = block.search(page)
        assert found, model
        tables = "\n".join(model_tables(model))
        page = page[: found.start()] + tables + page[found.end() :]
    return page


def model_tables(model: type[BaseModel], path: str = "", known: set[Any] | None = None) -> Iterator[str]:
    """The fields of a model, and of the models in them, each once, as Markdown tables."""
    known = set() if known is None else known
    known.add(model)
    assert model.__doc__, model
    about = " ".join(model.__doc__.split())
    yield f"`{path}`: {about[0].lower()}{about[1:]}\n" if path else f"{about}\n"
    yield "| field | type | what |\n|---|---|---|"
    for name, field in model.model_fields.items():
        yield f"| `{name}` | {type_name(field.annotation)} | {field.description or ''} |"
    yield ""
    for name, field in model.model_fields.items():
        for part in (each for each in models_in(field.annotation) if each not in known):
            origin = get_origin(field.annotation)
            place = f"{name}[]" if origin is tuple else f"{name}.*" if origin is dict else name
            yield from model_tables(part, f"{path}.{place}".lstrip("."), known)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


SIMPLE: dict[Any, str] = {
    Any: "any",
    str: "text",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


def type_name(annotation: Any) -> str:
    """A type in JSON's words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(type_name, parts)))
    if origin is tuple:
        return f"array of {type_name(parts[0])}"
    return SIMPLE.get(annotation, "object")


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "cli.md").write_text(cli_reference(), "utf-8")
    (here / "storyboard.schema.json").write_text(schema(), "utf-8")
    memory = here / "memory.md"
    memory.write_text(memory_page(memory.read_text("utf-8")), "utf-8")
    json_md = here / "json.md"
    json_md.write_text(json_page(json_md.read_text("utf-8")), "utf-8")
