"""Imports upstream's prompt files, `prompts = ["...", ...]`. They are tokenized here and never executed.

Python's own tokenizer and parser are not given untrusted files: some versions need gigabytes for a long
line, or crash at deep nesting. Only single string literals are passed to `ast`.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from svi_story.errors import InputError, Problem
from svi_story.events import Warned
from svi_story.fields import blank, format_value, joined_surrogates, text_problem
from svi_story.storyboard.files import FORBIDDEN, decode, read_bytes, write_new
from svi_story.storyboard.schema import MODELINE
from svi_story.storyboard.templates import SUFFIXES
from svi_story.storyboard.yaml12 import scalar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from svi_story.events import Reporter


MAX_TOKENS = 100_000

_HINT = 'write prompts = ["...", "..."]'
_CLOSES = {"[": "]", "(": ")"}
_MOST_WARNINGS = 20
# Possessive (*+): no text makes these patterns backtrack.
_TOKEN = re.compile(
    r"""
    (?P<gap> [ \t]++ | \\\n | \#[^\n]*+ )
  | (?P<end> \n )
  | (?P<text> (?P<prefix>[A-Za-z]{0,2})
        (?: '''[^'\\]*+(?:(?:\\.|'(?!''))[^'\\]*+)*+''' | \"\"\"[^"\\]*+(?:(?:\\.|"(?!""))[^"\\]*+)*+\"\"\"
          | '[^'\\\n]*+(?:\\.[^'\\\n]*+)*+'             | "[^"\\\n]*+(?:\\.[^"\\\n]*+)*+" ) )
  | (?P<name> \w++ )
  | (?P<sign> . )
    """,
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """A word, a sign or a quoted text."""

    kind: str
    string: str
    prefix: str
    """The letters before a text's quote."""
    first: int
    """1-based line it starts in."""
    last: int
    """1-based line it ends in."""


@dataclass
class PromptFile:
    """The text of a prompt file, and the problems found in it."""

    text: str
    file: str
    report: Reporter
    problems: list[Problem] = field(default_factory=list)
    warnings: int = 0

    def prompts(self) -> tuple[str, ...]:
        """The prompts, in order. Raises InputError with what is wrong."""
        lists = [found for statement in self._statements() if (found := self._listed(statement))]
        if not lists:
            raise InputError(Problem(f"has no list of prompts; {_HINT}", file=self.file))
        if len(lists) > 1:
            what = f"a second list of prompts, after the one on line {lists[0][0].first}; keep one"
            self._stop(lists[1][0], what)
        texts = [self._prompt(item) for item in self._items(lists[0])]
        if not texts:
            self._stop(lists[0][0], f"the list of prompts is empty; {_HINT}")
        if self.problems:
            raise InputError(*self.problems)
        return tuple(texts)

    def _statements(self) -> Iterator[list[Token]]:
        """The tokens of every statement: it ends with its line, unless a bracket is open."""
        statement: list[Token] = []
        depth = 0
        for token in self._tokens():
            if token.kind != "end":
                statement.append(token)
                depth += (token.string in ("[", "(", "{")) - (token.string in ("]", ")", "}"))
            elif statement and depth <= 0:
                yield statement
                statement, depth = [], 0
        if statement:
            yield statement

    def _tokens(self) -> Iterator[Token]:
        line = 1
        for count, match in enumerate(_TOKEN.finditer(self.text)):
            kind, string = str(match.lastgroup), match.group()
            first, line = line, line + string.count("\n")
            token = Token(kind, string, match["prefix"] or "", first, line)
            if count > MAX_TOKENS:
                self._stop(token, f"has more than {MAX_TOKENS:,} words and signs; split it")
            if string in ("'", '"'):
                self._stop(token, f"a quote that is never closed; {_HINT}")
            if kind != "gap":
                yield token

    def _listed(self, statement: list[Token]) -> list[Token]:
        """The tokens of a list of prompts; none for a comment in quotes and for other settings."""
        words = [token.string for token in statement]
        if words[0] in _CLOSES:
            return statement
        if statement[0].kind == "name" and words[1:2] in (["="], [":"]) and "=" in words:
            if words[0] == "prompts":
                return statement[words.index("=") + 1 :] or statement
            self._warn(statement[0], f"only `prompts` is read; `{words[0]}` is ignored")
            return []
        if any(token.kind != "text" for token in statement):
            self._stop(statement[0], f"is not a list of prompts, and code is never executed; {_HINT}")
        return []

    def _items(self, tokens: list[Token]) -> Iterator[list[Token]]:
        """The texts of every entry of a list."""
        close = _CLOSES.get(tokens[0].string)
        if close is None:
            self._stop(tokens[0], f"{_code(tokens[0])} is not a list; {_HINT}")
        index = 1
        while index < len(tokens) and tokens[index].string != close:
            index, item = self._item(tokens, index)
            yield item
            if index < len(tokens) and tokens[index].string == ",":
                index += 1
            elif index < len(tokens) and tokens[index].string != close:
                what = f"{_code(tokens[index])} in place of a comma or the end of the list; {_HINT}"
                self._stop(tokens[index], what)
        if index == len(tokens):
            self._stop(tokens[0], f"the list that starts here is never closed; {_HINT}")
        for extra in tokens[index + 1 :]:
            self._stop(extra, f"{_code(extra)} after the list; remove it")

    def _item(self, tokens: list[Token], start: int) -> tuple[int, list[Token]]:
        """The next entry from `start`, and the index after it."""
        bracketed = tokens[start].string == "("
        first = end = start + bracketed
        while end < len(tokens) and tokens[end].kind == "text":
            end += 1
        item = tokens[first:end]
        if not item:
            self._stop(tokens[start], f"{_code(tokens[start])} is not text in quotes; {_HINT}")
        if not bracketed:
            self._warn_of_missing_comma(item)
            return end, item
        if end == len(tokens) or tokens[end].string != ")":
            self._stop(tokens[start], "a list inside the list; write every prompt as one text")
        return end + 1, item

    def _warn_of_missing_comma(self, item: list[Token]) -> None:
        for before, after in pairwise(item):
            if after.first > before.last:
                self._warn(before, "no comma after this text, so the next text continues it")

    def _prompt(self, item: list[Token]) -> str:
        text = joined_surrogates("".join(self._literal(token) for token in item))
        reason = (
            f"prompt {format_value(text)} is blank; describe what is seen"
            if blank(text)
            else text_problem(text)
        )
        if reason:
            self.problems.append(Problem(reason, file=self.file, line=item[0].first))
        return text

    def _literal(self, token: Token) -> str:
        if set(token.prefix.lower()) - set("ru"):
            what = f"{token.prefix} before a quote makes it more than a plain text; remove the {token.prefix}"
            self._stop(token, what)
        try:
            warnings.filterwarnings("ignore", module="<unknown>")  # "\d" is read as Python reads it
            return str(ast.literal_eval(token.string))
        except (SyntaxError, ValueError):
            self._stop(
                token, "an escape with a backslash that Python does not have; write \\\\ for a backslash"
            )

    def _warn(self, token: Token, what: str) -> None:
        self.warnings += 1
        if self.warnings <= _MOST_WARNINGS:
            self.report(Warned(f"{self.file}:{token.last}: {what}"))

    def _stop(self, token: Token, what: str) -> NoReturn:
        raise InputError(Problem(what, file=self.file, line=token.first))


def _code(token: Token) -> str:
    """A piece of a prompt file for a message."""
    return f"`{format_value(token.string)[1:-1]}`"


# Text that means itself without quotes: it starts with a letter, and neither ": " nor " #" is in it.
_PLAIN = re.compile(r"[^\W\d_](?:[^\s:#]|:(?=[^\s])|(?<=[^\s])#| (?=[^\s#]))*")


def read_prompts(path: Path, report: Reporter = lambda _event: None) -> tuple[str, ...]:
    """The prompts of upstream's prompt.txt: `prompts = [...]` or a bare list of texts, never executed.

    Raises InputError with what is wrong, by line. A comma that is probably missing, and settings other than
    `prompts`, are reported as Warned.
    """
    return PromptFile(decode(read_bytes(path), str(path)), str(path), report).prompts()


def board_from_prompts(prompts: Iterable[str], reference: str, title: str) -> str:
    """A board, as YAML, with one clip per prompt. A title that cannot be written is left out.

    Raises InputError for a reference that cannot be written in a board.
    """
    reason = text_problem(reference, one_line=True) or (
        "is blank; name the image" if blank(reference) else ""
    )
    if reason:
        raise InputError(Problem(f"the reference {format_value(reference)} {reason}"))
    titled = not blank(title) and not text_problem(title, one_line=True)
    return "\n".join(
        [
            MODELINE,
            "version: 1",
            *([f"title: {_as_scalar(title)}"] if titled else []),
            f"reference: {_as_scalar(reference)}",
            "clips:",
            *(f"  - prompt: {_as_scalar(prompt)}" for prompt in prompts),
            "",
        ]
    )


def write_board(path: Path, text: str) -> None:
    """Write a new board completely or not at all.

    Raises InputError for a name without a board's suffix, and when the file exists or cannot be written.
    """
    if path.suffix not in SUFFIXES:
        what = f"is not a name for a board; end it in .yaml, as {path.stem or 'board'}.yaml"
        raise InputError(Problem(what, file=str(path)))
    write_new(path, text.encode())


def title_for(prompts: Path) -> str:
    """A film's title: the prompt file's name, or its folder's when the file is only called prompt(s)."""
    if prompts.stem.lower() not in ("prompt", "prompts"):
        return prompts.stem
    return prompts.parent.resolve().name or prompts.stem


def _as_scalar(text: str) -> str:
    """Text as a YAML scalar that reads back exactly: plain where possible, else in double quotes."""
    if _PLAIN.fullmatch(text) and scalar(text) is text and not FORBIDDEN.search(text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return FORBIDDEN.sub(lambda match: f"\\u{ord(match.group()):04x}", quoted)
