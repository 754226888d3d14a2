"""Write the documents that are made from the code: `docs/cli.md` and `docs/storyboard.schema.json`."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from svi_story.cli.app import app
from svi_story.storyboard.schema import json_schema

COMMANDS = (
    (), ("new",), ("import",), ("validate",), ("plan",), ("render",), ("status",),
    ("cache",), ("cache", "ls"), ("cache", "verify"), ("cache", "gc"),
    ("models",), ("models", "list"), ("models", "check"), ("models", "download"), ("doctor",), ("schema",),
)  # fmt: skip


def cli_reference() -> str:
    """Every command's help, as one Markdown page."""
    parts = ["# Commands\n\nMade from the commands' own `--help` by `make docs`.\n"]
    for words in COMMANDS:
        environment = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
        shown = CliRunner().invoke(app, [*words, "--help"], env=environment, prog_name="svi-story").stdout
        text = "\n".join(line.rstrip() for line in shown.strip().splitlines())
        parts.append(f"## `{' '.join(('svi-story', *words))}`\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def schema() -> str:
    """The storyboard's JSON Schema."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "cli.md").write_text(cli_reference(), "utf-8")
    (here / "storyboard.schema.json").write_text(schema(), "utf-8")
