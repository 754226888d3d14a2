"""Boards from what others wrote: upstream's prompt files."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from svi_story.errors import InputError, Problem
from svi_story.fields import blank, shown, unfit
from svi_story.storyboard.files import FORBIDDEN, decode, read_bytes, write_new
from svi_story.storyboard.prompts import PromptFile
from svi_story.storyboard.schema import MODELINE
from svi_story.storyboard.templates import SUFFIXES
from svi_story.storyboard.yaml12 import scalar

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from svi_story.events import Event, Reporter

# Text that means itself without quotes: it starts with a letter, and neither ": " nor " #" is in it.
_PLAIN = re.compile(r"[^\W\d_](?:[^\s:#]|:(?=[^\s])|(?<=[^\s])#| (?=[^\s#]))*")


def _nobody(event: Event) -> None:
    """A reporter that nobody listens to."""


def read_prompts(path: Path, report: Reporter = _nobody) -> tuple[str, ...]:
    """The prompts of upstream's prompt.txt: `prompts = [...]` or a bare list of texts, never executed.

    Raises InputError with what is wrong, by line. A comma that is probably missing, and settings other than
    `prompts`, are reported as Warned.
    """
    return PromptFile(decode(read_bytes(path), str(path)), str(path), report).prompts()


def board_from_prompts(prompts: Iterable[str], reference: str, title: str) -> str:
    """A board, as YAML, with one clip per prompt. A title that cannot be written is left to the file's name.

    Raises InputError for a reference that no board can name.
    """
    reason = unfit(reference, one_line=True) or ("is blank; name the image" if blank(reference) else "")
    if reason:
        raise InputError(Problem(f"the reference {shown(reference)} {reason}"))
    titled = not blank(title) and not unfit(title, one_line=True)
    return "\n".join(
        [
            MODELINE,
            "version: 1",
            *([f"title: {_written(title)}"] if titled else []),
            f"reference: {_written(reference)}",
            "clips:",
            *(f"  - prompt: {_written(prompt)}" for prompt in prompts),
            "",
        ]
    )


def write_board(path: Path, text: str) -> None:
    """Write a new board whole, or not at all.

    Raises InputError when its name does not end as a board's, when it exists, and when it cannot be written.
    """
    if path.suffix not in SUFFIXES:
        what = f"is not a board's name; end it in .yaml, as {path.stem or 'board'}.yaml"
        raise InputError(Problem(what, file=str(path)))
    write_new(path, text.encode())


def title_for(prompts: Path) -> str:
    """What a prompt file's name says of the film: its folder's name when it is only called prompt(s)."""
    if prompts.stem.lower() not in ("prompt", "prompts"):
        return prompts.stem
    return prompts.parent.resolve().name or prompts.stem


def _written(text: str) -> str:
    """Text as a YAML scalar that reads back exactly: plain where it can be, else in double quotes."""
    if _PLAIN.fullmatch(text) and scalar(text) is text and not FORBIDDEN.search(text):
        return text
    return FORBIDDEN.sub(_escape, json.dumps(text, ensure_ascii=False))


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"
