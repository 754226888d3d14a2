"""Text that YAML reads differently than it looks: comments, escapes, and characters that look like others.

A file may be valid and still mean something else, so these checks look at how values are written.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u206f\u3164\ufeff\uffa0"
)
_BLANK = f"\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000{_INVISIBLE}"
_COLONS = "\u02d0\u2236\ua789\ufe13\ufe55\uff1a"
_DASHES = "*+\u00b7\u2010-\u2015\u2022\u2043\u2212\ufe58\ufe63\uff0d"
_START = r"[ \t]*(?:- +)*"
_INDENTED = re.compile(rf"[ \t]*(?:- *)*(?P<char>[{_BLANK}])")
_FIELD_LIKE = tuple(
    (re.compile(pattern), what)
    for pattern, what in (
        (
            rf"[ \t]*(?P<char>[{_DASHES}])[ \t{_BLANK}]*(?P<name>\w+)[ \t]*[:{_COLONS}]",
            "{char} does not start an entry of a list; write `- {name}: `",
        ),
        (
            rf"{_START}[\"']?(?P<name>\w+)[\"']?[ \t{_BLANK}]*(?P<char>[{_COLONS}])",
            "{char} is not a colon for YAML; write `{name}: `",
        ),
        (
            rf"{_START}(?P<name>\w+):(?P<char>[{_BLANK}])",
            "{char} after the colon is not a space for YAML; write `{name}: `",
        ),
        (
            rf"{_START}(?P<name>[\w{_BLANK}]*(?P<char>[{_BLANK}\uff21-\uff5a])[\w{_BLANK}]*)[ \t]*:",
            "the name contains {char}; write `{name}: `",
        ),
        (rf"{_START}(?P<name>\w+):(?P<char>[^\s/])", "a space is missing after the colon; write `{name}: `"),
    )
)
_BLANKS = re.compile(f"[{_BLANK}]")
_ESCAPE = re.compile(r"\\([^\\\"/\s])")
_RARE_ESCAPE = re.compile(r"\\([abefv0NLP_])")
_COMMENT = re.compile(r"[ \t]+#")
_TIGHT_COMMENT = re.compile(r"[ \t]+#[^\s#]")

MAX_REST = 60
_LONGEST_LINE = 1000
"""Characters of a line that are looked at."""
_LONGEST_PATH = 200


class ScalarSource(NamedTuple):
    """How a value is written in the file."""

    source: str
    """With its quotes."""
    rest: str
    """What follows on its last line: at most MAX_REST characters."""
    first: int
    """1-based line."""
    last: int

    @property
    def is_plain(self) -> bool:
        """Whether it has no quotes and is no block of text."""
        return not self.source.startswith(('"', "'", "|", ">"))


def name_of(char: str) -> str:
    """The name of a character that cannot be recognised by its look, as `a no-break space (U+00A0)`."""
    name = unicodedata.name(char, "invisible character").lower()
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name} (U+{ord(char):04X})"


def without_lookalikes(text: str) -> str:
    """Text without invisible characters, and with the usual forms of all others: `１２` becomes `12`."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _BLANKS.sub(" ", re.sub(f"[{_INVISIBLE}]", "", text)))
    return text.strip()


def lookalike_in(text: str) -> str:
    """The name of the first character that is invisible or resembles a common one; empty for none."""
    for char in text[:_LONGEST_LINE]:
        if _BLANKS.match(char) or char not in (without_lookalikes(char), *" \t\n"):
            return name_of(char)
    return ""


def misread_lines(
    text: str, values: Iterable[ScalarSource], fields: Collection[str]
) -> Iterator[tuple[int, str, bool]]:
    """Lines that look like a field or an item but are not: the line, why, and whether it is part of a text.

    Lines of quoted texts and of blocks may contain anything.
    """
    plain, other = set[int](), set[int]()
    for value in values:
        (plain if value.is_plain else other).update(range(value.first + 1, value.last + 1))
    for number, line in enumerate(text.split("\n"), 1):
        if number not in other:
            what = _misread(line[:_LONGEST_LINE], fields, indented=number not in plain)
            if what:
                yield number, what, number in plain


def _misread(line: str, fields: Collection[str], *, indented: bool) -> str:
    if indented and (found := _INDENTED.match(line)):
        return (
            f"{name_of(found['char'])} in the indentation is not a space for YAML; indent with plain spaces"
        )
    for pattern, what in _FIELD_LIKE:
        found = pattern.match(line)
        if found and (name := without_lookalikes(found["name"])) in fields:
            return what.format(char=name_of(found["char"]), name=name)
    return ""


def cut_off(value: ScalarSource, *, failed: bool = False) -> str:
    """A message if a comment cuts off an unquoted text; empty if it is probably meant as a comment.

    A comment is meant where a space follows the `#`, unless the value is invalid (`failed`).
    """
    if not value.is_plain or not (_COMMENT if failed else _TIGHT_COMMENT).match(value.rest):
        return ""
    if not value.source:
        return 'nothing is written here, because everything after " #" is a comment; put the text in quotes'
    rest = value.rest.strip()
    shown = rest if len(rest) <= 30 else f"{rest[:29]}…"
    return f'the text ends before "{shown}", because " #" starts a comment; put all of it in quotes'


def escapes(value: ScalarSource, *, is_path: bool) -> str:
    """A message if a backslash in double quotes is read as an escape; empty if that is probably meant."""
    pattern = _ESCAPE if is_path else _RARE_ESCAPE
    found = pattern.search(value.source) if value.source.startswith('"') else None
    if found is None:
        return ""
    what = f"in double quotes \\{found[1]} is an escape, not a backslash"
    if is_path and len(value.source) > _LONGEST_PATH:
        return f"{what}; write forward slashes"
    if is_path:
        slashed = value.source.replace("\\\\", "\\").replace("\\", "/")
        return f"{what}; write {slashed}, with forward slashes"
    return f"{what}; write \\\\{found[1]}, or use single quotes"
