"""Upstream's prompt files, `prompts = ["...", ...]`, read as tokens: nothing in them is ever run."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from dataclasses import dataclass, field
from itertools import pairwise
from tokenize import TokenInfo
from typing import TYPE_CHECKING, NoReturn

from svi_story.errors import InputError, Problem
from svi_story.events import Warned
from svi_story.storyboard.text import blank, joined_surrogates, shown, unfit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.events import Reporter

MAX_TOKENS = 100_000

_CURE = 'write prompts = ["...", "..."]'
_SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
_CLOSES = {"[": "]", "(": ")"}
_QUOTE = re.compile("([A-Za-z]*)['\"]")
_MOST_WARNINGS = 20


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
            first, second = lists[0][0], lists[1][0]
            self._stop(second, f"a second list of prompts, after the one in line {first.start[0]}; keep one")
        texts = [self._prompt(item) for item in self._items(lists[0])]
        if not texts:
            self._stop(lists[0][0], f"the list of prompts is empty; {_CURE}")
        if self.problems:
            raise InputError(*self.problems)
        return tuple(texts)

    def _statements(self) -> Iterator[list[TokenInfo]]:
        """The tokens of every statement, without comments and line breaks inside it."""
        statement: list[TokenInfo] = []
        for token in self._tokens():
            if token.type == tokenize.ERRORTOKEN and token.string in "'\"":
                self._stop(token, f"a quote that is not closed in its line; {_CURE}")
            if token.type not in (*_SILENT, tokenize.NEWLINE):
                statement.append(token)
            elif token.type == tokenize.NEWLINE and statement:
                yield statement
                statement = []
        if statement:
            yield statement

    def _tokens(self) -> Iterator[TokenInfo]:
        try:
            for count, token in enumerate(tokenize.generate_tokens(io.StringIO(self.text).readline)):
                if count > MAX_TOKENS:
                    self._stop(token, f"holds more than {MAX_TOKENS:,} words and signs; split it")
                yield token
        except tokenize.TokenError as error:
            line = error.args[1][0] if len(error.args) > 1 else 0
            what = f"a bracket or a quote has no partner; {_CURE}"
            raise InputError(Problem(what, file=self.file, line=line)) from error
        except SyntaxError as error:
            what = f"is not a list of prompts ({error.msg}); {_CURE}"
            raise InputError(Problem(what, file=self.file, line=error.lineno or 0)) from error

    def _listed(self, statement: list[TokenInfo]) -> list[TokenInfo]:
        """The tokens of a list of prompts; none for a comment in quotes and for other settings."""
        words = [token.string for token in statement]
        if words[:1] in (["["], ["("]):
            return statement
        if statement[0].type == tokenize.NAME and words[1:2] in (["="], [":"]) and "=" in words:
            if words[0] == "prompts":
                return statement[words.index("=") + 1 :] or statement
            self._warn(statement[0], f"only `prompts` is read; `{words[0]}` is ignored")
            return []
        if any(token.type != tokenize.STRING for token in statement):
            self._stop(statement[0], f"is not a list of prompts, and code is never run; {_CURE}")
        return []

    def _items(self, tokens: list[TokenInfo]) -> Iterator[list[TokenInfo]]:
        """The string tokens of every entry of a list."""
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
                self._stop(tokens[index], f"{_code(tokens[index])} stands where a comma or the end must be")
        for extra in tokens[index + 1 :]:
            self._stop(extra, f"{_code(extra)} after the list; remove it")

    def _item(self, tokens: list[TokenInfo], start: int) -> tuple[int, list[TokenInfo]]:
        """The next entry from `start`, and the index after it."""
        bracketed = tokens[start].string == "("
        first = start + bracketed
        end = first
        while end < len(tokens) and tokens[end].type == tokenize.STRING:
            end += 1
        item = tokens[first:end]
        if not item:
            self._refuse_prefix(tokens[start])
            self._stop(tokens[start], f"{_code(tokens[start])} is not text in quotes; {_CURE}")
        if not bracketed:
            self._warn_of_missing_comma(item)
            return end, item
        if end == len(tokens) or tokens[end].string != ")":
            self._stop(tokens[start], "a list inside of the list; write every prompt as one text")
        return end + 1, item

    def _warn_of_missing_comma(self, item: list[TokenInfo]) -> None:
        for before, after in pairwise(item):
            if after.start[0] > before.end[0]:
                self._warn(before, "no comma after this text, so the next line continues it")

    def _prompt(self, item: list[TokenInfo]) -> str:
        text = joined_surrogates("".join(self._literal(token) for token in item))
        reason = f"prompt {shown(text)} is blank; describe what is seen" if blank(text) else unfit(text)
        if reason:
            self.problems.append(Problem(reason, file=self.file, line=item[0].start[0]))
        return text

    def _literal(self, token: TokenInfo) -> str:
        self._refuse_prefix(token)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "\d" is read as Python reads it
                return str(ast.literal_eval(token.string))
        except (SyntaxError, ValueError):
            self._stop(
                token, "an escape with a backslash that Python does not know; write \\\\ for a backslash"
            )

    def _refuse_prefix(self, token: TokenInfo) -> None:
        match = _QUOTE.match(token.string)
        if match and set(match[1].lower()) - set("ru"):
            self._stop(token, f"{match[1]} before a quote makes it more than text; remove the {match[1]}")

    def _warn(self, token: TokenInfo, what: str) -> None:
        self.warnings += 1
        if self.warnings <= _MOST_WARNINGS:
            self.report(Warned(f"{self.file}:{token.start[0]}: {what}"))

    def _stop(self, token: TokenInfo, what: str) -> NoReturn:
        raise InputError(Problem(what, file=self.file, line=token.start[0]))


def _code(token: TokenInfo) -> str:
    """A piece of a prompt file for a message."""
    return f"`{shown(token.string)[1:-1]}`"
