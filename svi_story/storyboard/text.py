"""How values are shown in messages, and what text may hold."""

from __future__ import annotations

import difflib
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Loc = tuple[str | int, ...]
"""A place inside a board: `("clips", 3, "frames")`."""

_SHOWN = 60
_LONGEST_TYPO = 64
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_UNFIT_IN_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SIMPLE_KEY = re.compile(r"[\w<>-]{1,64}")


def shown(value: object) -> str:
    """A value for a message: short, on one line, nothing in it that steers a terminal."""
    for kind, say in _SAID:
        if isinstance(value, kind):
            return say(value)
    return _escaped(str(value))[:_SHOWN]


def _shown_int(value: int) -> str:
    if abs(value) < 10**24:
        return str(value)
    return f"a number of {int(abs(value).bit_length() * 0.30103) + 1} digits"


def _shown_text(value: str) -> str:
    short = value if len(value) <= _SHOWN else value[: _SHOWN - 1] + "…"
    return _escaped(json.dumps(short, ensure_ascii=False))


_SAID: tuple[tuple[type, Callable[[Any], str]], ...] = (
    (bool, lambda value: "true" if value else "false"),
    (int, _shown_int),
    (float, repr),
    (str, _shown_text),
    (dict, lambda _: "a mapping"),
    (list, lambda _: "a list"),
)


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def spelled(loc: Loc) -> str:
    """A place as an author reads it: `clips[3].frames`."""
    parts: list[str] = []
    for step in loc:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        else:
            name = step if _SIMPLE_KEY.fullmatch(step) else shown(step)
            parts.append(f".{name}" if parts else name)
    return "".join(parts)


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice that a mistyped word probably means; empty when none is near."""
    if len(word) > _LONGEST_TYPO:
        return ""
    found = difflib.get_close_matches(word.lower(), list(choices), cutoff=0.66)
    return min(found, key=lambda choice: choice[:1] != word[:1].lower(), default="")


def joined_surrogates(text: str) -> str:
    """Text with each pair of surrogates (JSON's `\\ud83d\\ude00`) made the one character it stands for."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def unfit(text: str, *, one_line: bool = False) -> str:
    """What text may not hold: control characters and half characters. Empty when it holds none."""
    match = (_UNFIT_IN_LINE if one_line else _UNFIT).search(text)
    if match is None:
        return ""
    code = ord(match.group())
    kind = "a line break" if match.group() in "\n\r\u2028\u2029" else "a control character"
    if _SURROGATE.match(match.group()):
        kind = "half a character"
    return f"holds {kind} (U+{code:04X}); remove it"


def blank(text: str) -> bool:
    """Whether nobody could see anything in it."""
    return not any(c.isprintable() and not c.isspace() for c in text)
