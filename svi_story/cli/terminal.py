"""Output for people: messages and tables, with control characters escaped, also where output is closed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story import __version__
from svi_story.errors import ExitCode, on_one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Interrupted(KeyboardInterrupt):
    """Stopped by the user; the text is the command that resumes."""


class Stopped(Interrupted):
    """Stopped by a request of the user, from the page or with `stop`."""


LEAST_ROOM = 12
"""Width, in characters, that the last column of a table keeps as long as others can be narrower."""
SHORTEST_COLUMN = 4


def complain(*lines: str) -> None:
    """Print a message on standard error. Each argument is a line: line breaks in it are escaped."""
    sys.stderr.write("".join(f"{on_one_line(line)}\n" for line in lines))


def answer(*lines: str) -> None:
    """Print text on standard output. Each argument is a line: line breaks in it are escaped."""
    sys.stdout.write("".join(f"{on_one_line(line)}\n" for line in lines))


def answer_json(value: object) -> None:
    """Print one JSON value on a line of its own (ASCII, for terminals and pipes of any encoding)."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
    sys.stdout.flush()


LEFT = (errno.EPIPE, errno.EBADF)
"""Errors of a standard output whose reader has left, or that was closed from the start."""


def give_up_output(error: OSError) -> int:
    """Report what could not be written, by default standard output; returns the exit code."""
    if error.errno != errno.EPIPE or error.filename:
        complain(
            f"{error.filename or 'standard output'}: {error.strerror or error}; solve this and run it again"
        )
    if not error.filename:
        drop_output()
    return ExitCode.FAILED


def drop_output() -> None:
    """Discard what is still buffered for standard output: at exit, the interpreter would fail to write it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def log_bug(trace: str) -> Path | str:
    """Write a bug's traceback to a file of its own; returns its path, or why it cannot be written."""
    try:
        return _write_log(trace)
    except OSError as error:
        return f"none could be written ({error.strerror}): {' '.join(trace.split())[-1000:]}"


def _write_log(trace: str) -> Path:
    with tempfile.NamedTemporaryFile(
        "w", prefix="svi-story-", suffix=".log", encoding="utf-8", errors="backslashreplace", delete=False
    ) as log:
        log.write(f"svi-story {__version__}\n{' '.join(sys.argv)}\n\n{trace}")
    return Path(log.name)


def shorten(text: str, width: int) -> str:
    """The beginning of a text on one line, at most `width` characters."""
    line = on_one_line(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], optional: Sequence[str] = ()) -> list[str]:
    """Lines of columns that fit a terminal, or the width in COLUMNS; complete where there is neither.

    Where there is not enough room, `optional` columns are left out, the first one first; then the widest
    columns are shortened.
    """
    from rich.cells import cell_len

    lines = [tuple(titles), *(tuple(on_one_line(cell) for cell in row) for row in rows)]
    most = shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else 0

    def widths() -> list[int]:
        return [max(map(cell_len, column)) for column in zip(*lines, strict=True)]

    def excess(found: Sequence[int], last: int = 0) -> int:
        """By how much a table is too wide; the last column counts with at most `last`."""
        return sum(found[:-1]) + min(found[-1], last or found[-1]) + 2 * (len(found) - 1) - most

    for name in optional:
        if most and excess(widths(), LEAST_ROOM) > 0:
            place = lines[0].index(name)
            lines = [(*line[:place], *line[place + 1 :]) for line in lines]
    limits = widths()
    while most and excess(limits) > 0:
        widest = len(limits) - 1 if limits[-1] > LEAST_ROOM else limits.index(max(limits))
        if limits[widest] <= SHORTEST_COLUMN:
            break
        limits[widest] -= 1
    lines = [tuple(map(_cut, line, limits)) for line in lines] if most else lines
    padded = (
        [cell + " " * (limit - cell_len(cell)) for cell, limit in zip(line, limits, strict=True)]
        for line in lines
    )
    return ["  ".join(line).rstrip() for line in padded]


def _cut(text: str, width: int) -> str:
    """The beginning of a text on at most `width` columns of a terminal."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    while cell_len(text) >= width:
        text = text[:-1]
    return f"{text}…"


def in_bytes(count: int) -> str:
    """A size for people, as 1.5 GB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
