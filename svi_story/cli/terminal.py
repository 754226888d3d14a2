"""What a terminal gets to see: plain text, never the control characters or the markup of a stranger."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BUG = 3
"""The exit code of a mistake of ours."""


class Interrupted(KeyboardInterrupt):
    """Stopped by the user; the text is the command that goes on."""


LEAST_ROOM = 12
"""Characters of a table's last column, however narrow the terminal."""

KEPT = "\n\t"
BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def plain(text: str) -> str:
    """Text without control characters and without marks that turn the reading direction around."""
    return "".join(
        char
        for char in text
        if char in KEPT or (unicodedata.category(char) not in ("Cc", "Cs") and char not in BIDI_CONTROLS)
    )


def complain(message: str) -> None:
    """Tell a person, on standard error."""
    sys.stderr.write(plain(message) + "\n")


def answer(line: str) -> None:
    """Give data, on standard output."""
    sys.stdout.write((plain(line) if sys.stdout.isatty() else line) + "\n")


def answer_json(value: object) -> None:
    """Give one JSON value on a line of its own (ASCII, so that any terminal and pipe takes it)."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
    sys.stdout.flush()


def log_bug(trace: str) -> Path:
    """Keep a bug's traceback in a file of its own."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="svi-story-", suffix=".log", encoding="utf-8", errors="backslashreplace", delete=False
    ) as log:
        log.write(f"svi-story {__version__}\n{' '.join(sys.argv)}\n\n{trace}")
    return Path(log.name)


def shorten(text: str, width: int) -> str:
    """The beginning of a text on one line, at most `width` characters."""
    line = " ".join(plain(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of plain text, each as wide as its widest cell; the last one takes what a terminal leaves."""
    from rich.cells import cell_len

    lines = [tuple(titles), *(tuple(plain(cell) for cell in row) for row in rows)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(titles) - 1)]
    if sys.stdout.isatty():
        room = max(shutil.get_terminal_size().columns - sum(widths) - 2 * len(widths), LEAST_ROOM)
        lines = [(*line[:-1], shorten(line[-1], room)) for line in lines]
    return "\n".join(
        "  ".join(
            [*(c + " " * (w - cell_len(c)) for c, w in zip(line[:-1], widths, strict=True)), line[-1]]
        ).rstrip()
        for line in lines
    )


def in_bytes(count: int) -> str:
    """A size for people, as 1.5 GB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
