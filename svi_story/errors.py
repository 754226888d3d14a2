"""Errors for users: the place, the problem, the value, the remedy, and the exit code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


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
"""Terminal control characters, line breaks, changes of text direction, and unencodable characters."""
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def on_one_line(text: str) -> str:
    """Text with control characters, line breaks and other invisible characters escaped."""
    return _UNSEEN.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    char = found.group()
    return _SHORT.get(char) or (f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}")


@dataclass(frozen=True)
class Problem:
    """One thing to fix, as `board.yaml:14: clips[3].frames (clip "roof"): 80 is not 4k+1; use 81 (or 77)`."""

    what: str
    """What is wrong, the actual value, and the remedy."""
    file: str = ""
    """The file as the user named it."""
    line: int = 0
    """1-based line in the file; 0 when there is none."""
    path: str = ""
    """The place inside the file, as `clips[3].frames`."""
    clip: str = ""
    """The id of the clip at that place; empty where there is none."""

    def __str__(self) -> str:
        """One line, whatever characters file names and values contain."""
        place = f"{self.file}:{self.line}" if self.file and self.line else self.file
        path = f'{self.path} (clip "{self.clip}")' if self.clip else self.path
        return on_one_line(": ".join(part for part in (place, path, self.what) if part))


class StoryError(Exception):
    """An error with a remedy. Never shown as a traceback."""

    exit_code = ExitCode.FAILED

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(p if isinstance(p, Problem) else Problem(p) for p in problems)
        super().__init__(*map(str, self.problems))

    def __str__(self) -> str:
        """A line for each problem."""
        return "\n".join(map(str, self.problems))


class InputError(StoryError):
    """An error in the input, found before anything was rendered or written."""

    exit_code = ExitCode.NOT_STARTED


class RenderError(StoryError):
    """A board could not be finished. Rendered segments are kept."""


class TransientError(RenderError):
    """A temporary condition, such as a full disk or a worker that died: worth another try."""


T = TypeVar("T")


def collect_problems(calls: Iterable[Callable[[], T]]) -> list[T]:
    """What each call returns. Raises one InputError with the problems of every call that failed."""
    results: list[T] = []
    problems: list[Problem] = []
    for call in calls:
        try:
            results.append(call())
        except InputError as error:
            problems += (problem for problem in error.problems if problem not in problems)
    if problems:
        raise InputError(*problems)
    return results


def shorten_problems(problems: list[Problem], most: int = 8) -> list[Problem]:
    """The first problems of a kind, and how many more there are."""
    if len(problems) <= most:
        return problems
    rest = Problem(f"and {len(problems) - most} more like that", file=problems[0].file)
    return [*problems[:most], rest]
