"""Write what is made from the code: `cli.md`, `storyboard.schema.json` and the table in `memory.md`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from typer.testing import CliRunner

from svi_story.cli.app import app
from svi_story.engines.svi.memory import RUNGS, needs_of
from svi_story.engines.svi.parts import a14b
from svi_story.plan.model import Size
from svi_story.storyboard.schema import json_schema
from svi_story.units import gib

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


def cli_reference() -> str:
    """Every command's help, as one Markdown page."""
    parts = [f"# Commands\n\nMade from the commands' own `--help` by `make docs`.\n\n{SEVERAL}\n"]
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
    """What each memory rung needs for the published models in bfloat16, 81 frames, as a Markdown table."""
    titles = ("", "rung", "sampling", "decoding", "text", "GPU, at most", "RAM, at least", "RAM, better")
    rows = ["|".join(("", *(f" {title} " if title else " " for title in titles), "")), f"|{'---|' * 8}"]
    for name, size in (("480p", Size(832, 480)), ("720p", Size(1280, 720))):
        needs = needs_of(a14b(), 2, size, 81)
        for rung in RUNGS:
            need = needs[rung]
            phases = (need.sampling.total, need.decoding.total, need.text.total)
            cells = [f"{name} ({size})", f"`{rung}`", *map(gib, phases), f"**{gib(need.gpu)}**"]
            rows.append(f"| {' | '.join([*cells, gib(need.ram), gib(need.ram_kept)])} |")
    return "\n".join(rows) + "\n"


def memory_page(page: str) -> str:
    """docs/memory.md with its table made anew."""
    return TABLE.sub(lambda _: memory_table(), page)


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "cli.md").write_text(cli_reference(), "utf-8")
    (here / "storyboard.schema.json").write_text(schema(), "utf-8")
    memory = here / "memory.md"
    memory.write_text(memory_page(memory.read_text("utf-8")), "utf-8")
