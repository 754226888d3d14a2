"""What a terminal gets to see: plain text, never the control characters or the markup of a stranger."""

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
    """Stopped by the user; the text is the command that goes on."""


class Stopped(Interrupted):
    """Stopped by a request of the user, from the page or with `stop`."""


LEAST_ROOM = 12
"""Characters of a table's last column, however narrow the terminal."""


def complain(*lines: str) -> None:
    """Tell a person, on standard error. Each argument is a line: line breaks in it are escaped."""
    sys.stderr.write("".join(f"{on_one_line(line)}\n" for line in lines))


def answer(*lines: str) -> None:
    """Give text, on standard output. Each argument is a line: line breaks in it are escaped."""
    sys.stdout.write("".join(f"{on_one_line(line)}\n" for line in lines))


def answer_json(value: object) -> None:
    """Give one JSON value on a line of its own (ASCII, so that any terminal and pipe takes it)."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
    sys.stdout.flush()


LEFT = (errno.EPIPE, errno.EBADF)
"""Nobody reads standard output any more, or nobody ever wanted to."""


def give_up_output(error: OSError) -> int:
    """Say what could not be written, standard output where no file is named; returns the exit code."""
    if error.errno != errno.EPIPE or error.filename:
        complain(
            f"{error.filename or 'standard output'}: {error.strerror or error}; solve this and run it again"
        )
    if not error.filename:
        drop_output()
    return ExitCode.FAILED


def drop_output() -> None:
    """Send nowhere what is still on its way to standard output: the interpreter would fail with it again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def log_bug(trace: str) -> Path | str:
    """Keep a bug's traceback in a file of its own; where there is no room for it, why not."""
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


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of columns, each as wide as its widest cell; the last one takes what a terminal leaves."""
    from rich.cells import cell_len

    lines = [tuple(titles), *(tuple(on_one_line(cell) for cell in row) for row in rows)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(titles) - 1)]
    if sys.stdout.isatty():
        room = max(shutil.get_terminal_size().columns - sum(widths) - 2 * len(widths), LEAST_ROOM)
        lines = [(*line[:-1], shorten(line[-1], room)) for line in lines]
    return [
        "  ".join(
            [*(c + " " * (w - cell_len(c)) for c, w in zip(line[:-1], widths, strict=True)), line[-1]]
        ).rstrip()
        for line in lines
    ]


def in_bytes(count: int) -> str:
    """A size for people, as 1.5 GB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
