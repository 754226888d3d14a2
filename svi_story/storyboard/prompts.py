"""Upstream's prompt files, `prompts = ["...", ...]`, read word by word: nothing in them is ever run.

Python's own tokenizer and parser are kept away from strangers' files: some versions of them take gigabytes
for a long line, or end the process at deep nesting. Only single string literals are given to `ast`.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from svi_story.errors import InputError, Problem
from svi_story.events import Warned
from svi_story.fields import blank, joined_surrogates, shown, unfit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.events import Reporter

MAX_TOKENS = 100_000

_CURE = 'write prompts = ["...", "..."]'
_CLOSES = {"[": "]", "(": ")"}
_MOST_WARNINGS = 20
# Possessive (*+): no text makes these patterns go back over what they have read.
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
    """A word, a sign or a text in quotes."""

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
    """The text of a prompt file, and what was found wrong with it."""

    text: str
    file: str
    report: Reporter
    problems: list[Problem] = field(default_factory=list)
    warnings: int = 0

    def prompts(self) -> tuple[str, ...]:
        """The prompts, in order. Raises InputError with what is wrong."""
        lists = [found for statement in self._statements() if (found := self._listed(statement))]
        if not lists:
            raise InputError(Problem(f"holds no list of prompts; {_CURE}", file=self.file))
        if len(lists) > 1:
            what = f"a second list of prompts, after the one in line {lists[0][0].first}; keep one"
            self._stop(lists[1][0], what)
        texts = [self._prompt(item) for item in self._items(lists[0])]
        if not texts:
            self._stop(lists[0][0], f"the list of prompts is empty; {_CURE}")
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
                self._stop(token, f"holds more than {MAX_TOKENS:,} words and signs; split it")
            if string in ("'", '"'):
                self._stop(token, f"a quote that is never closed; {_CURE}")
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
            self._stop(statement[0], f"is not a list of prompts, and code is never run; {_CURE}")
        return []

    def _items(self, tokens: list[Token]) -> Iterator[list[Token]]:
        """The texts of every entry of a list."""
        close = _CLOSES.get(tokens[0].string)
        if close is None:
            self._stop(tokens[0], f"{_code(tokens[0])} is not a list; {_CURE}")
        index = 1
        while index < len(tokens) and tokens[index].string != close:
            index, item = self._item(tokens, index)
            yield item
            if index < len(tokens) and tokens[index].string == ",":
                index += 1
            elif index < len(tokens) and tokens[index].string != close:
                what = f"{_code(tokens[index])} stands where a comma or the end must be; {_CURE}"
                self._stop(tokens[index], what)
        if index == len(tokens):
            self._stop(tokens[0], f"the list that starts here is never closed; {_CURE}")
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
            self._stop(tokens[start], f"{_code(tokens[start])} is not text in quotes; {_CURE}")
        if not bracketed:
            self._warn_of_missing_comma(item)
            return end, item
        if end == len(tokens) or tokens[end].string != ")":
            self._stop(tokens[start], "a list inside of the list; write every prompt as one text")
        return end + 1, item

    def _warn_of_missing_comma(self, item: list[Token]) -> None:
        for before, after in pairwise(item):
            if after.first > before.last:
                self._warn(before, "no comma after this text, so the next text continues it")

    def _prompt(self, item: list[Token]) -> str:
        text = joined_surrogates("".join(self._literal(token) for token in item))
        reason = f"prompt {shown(text)} is blank; describe what is seen" if blank(text) else unfit(text)
        if reason:
            self.problems.append(Problem(reason, file=self.file, line=item[0].first))
        return text

    def _literal(self, token: Token) -> str:
        if set(token.prefix.lower()) - set("ru"):
            what = f"{token.prefix} before a quote makes it more than text; remove the {token.prefix}"
            self._stop(token, what)
        try:
            warnings.filterwarnings("ignore", module="<unknown>")  # "\d" is read as Python reads it
            return str(ast.literal_eval(token.string))
        except (SyntaxError, ValueError):
            self._stop(
                token, "an escape with a backslash that Python does not know; write \\\\ for a backslash"
            )

    def _warn(self, token: Token, what: str) -> None:
        self.warnings += 1
        if self.warnings <= _MOST_WARNINGS:
            self.report(Warned(f"{self.file}:{token.last}: {what}"))

    def _stop(self, token: Token, what: str) -> NoReturn:
        raise InputError(Problem(what, file=self.file, line=token.first))


def _code(token: Token) -> str:
    """A piece of a prompt file for a message."""
    return f"`{shown(token.string)[1:-1]}`"
