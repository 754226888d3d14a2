"""Every error a user can meet: where, what, got, do this; and the exit code it ends with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ends."""

    DONE = 0
    FAILED = 1
    """Some board failed, or was invalid or not there while others were rendered."""
    NOT_STARTED = 2
    """No valid board, or a usage error: nothing was started."""
    BUG = 3
    INTERRUPTED = 130


_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
"""What steers a terminal, breaks a line, turns the reading direction around, or cannot be written."""
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def on_one_line(text: str) -> str:
    """Text whose every character can be seen: control characters, line breaks and the like are escaped."""
    return _UNSEEN.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    char = found.group()
    return _SHORT.get(char) or (f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}")


@dataclass(frozen=True)
class Problem:
    """One thing to mend, as `board.yaml:14: clips[3].frames: 80 is not 4k+1; use 81 (or 77)`."""

    what: str
    """What is wrong, the value that was got, and what to do about it."""
    file: str = ""
    """The file as the user named it."""
    line: int = 0
    """1-based line in the file; 0 when there is none."""
    path: str = ""
    """The place inside the file, as `clips[3].frames`."""

    def __str__(self) -> str:
        """One line, whatever the names of files and the words of authors hold."""
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file
        return on_one_line(": ".join(part for part in (place, self.path, self.what) if part))


class StoryError(Exception):
    """An error with a cure. Never shown as a traceback."""

    exit_code = ExitCode.FAILED

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(p if isinstance(p, Problem) else Problem(p) for p in problems)
        super().__init__(*map(str, self.problems))

    def __str__(self) -> str:
        """A line for each problem."""
        return "\n".join(map(str, self.problems))


class InputError(StoryError):
    """Found wrong before anything was started: nothing was rendered, nothing was written."""

    exit_code = ExitCode.NOT_STARTED


class RenderError(StoryError):
    """A board could not be finished. What was rendered is kept."""


class TransientError(RenderError):
    """What may pass by itself, as a full disk or a worker that died: worth trying again."""
