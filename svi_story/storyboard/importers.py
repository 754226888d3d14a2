"""Imports prompt files: one prompt per line, lists, tables (Markdown, CSV), JSON, upstream's Python list.

They are tokenized here and never executed. Python's own tokenizer and parser are not given untrusted files:
some versions need gigabytes for a long line, or crash at deep nesting. Only single string literals are passed
to `ast`.
"""

from __future__ import annotations

import ast
import csv
import json
import re
import warnings
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from svi_story.errors import InputError, Problem
from svi_story.events import Warned
from svi_story.fields import LONGEST_TEXT, blank, format_path, format_value, joined_surrogates, text_problem
from svi_story.storyboard.files import decode, read_bytes
from svi_story.storyboard.schema import Clip
from svi_story.storyboard.validation import validate
from svi_story.storyboard.yaml12 import scalar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from svi_story.events import Reporter


MAX_TOKENS = 100_000
MAX_PROMPTS = 10_000

_HINT = 'write prompts = ["...", "..."]'
_HINT_LINES = f"write one prompt per line, or {_HINT.removeprefix('write ')}"
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
  | (?P<typographic> [“”„«][^“”„«»\n]*+[“”»] | ‘(?:[^‘’\n]|’(?=\w))*+’ )
  | (?P<name> \w++ )
  | (?P<sign> . )
    """,
    re.VERBOSE | re.DOTALL,
)


_LIST = re.compile(
    r"""
    [\[(]\s*+(?:\#[^\n]*+\n\s*+)*+ (?:\(\s*+)? (?:[A-Za-z]{0,2}['"“”„«‘] | [\])])
  | [A-Za-z]{0,2}(?:\"""|''')
    """,
    re.VERBOSE,
)
"""How a list of texts starts, or the comment before one."""
_COMMENTS = re.compile(r"(?:\s*+(?:\#[^\n]*+)?\n)*+\s*+")
_ASSIGNMENT = re.compile(r"^[ \t]*+prompts[ \t]*+(?::[^\n=]*+)?\+?=", re.MULTILINE)
_CODE = re.compile(
    r"""import\s+[\w.]+ | from\s+[\w.]+\s+import\b.* | (?:def|class)\s+\w+.*: | (?:if|for|while|with)\b.*:
  | [\w.]+(?:\[[^\]]*\])?\s*[-+*/|]?=[^=].* | (?:print|exec|eval)\(.*\) | \w+(?:\.\w+)+\(.*\) | .*__\w+__.*
  | [bfrBFR]{1,2}["'].*["']""",
    re.VERBOSE,
)
_MARK = re.compile(
    r"""(?: [-*+•‣◦▪·–—]\s+(?:\[[ xX]\]\s+)? | \(?\d{1,4}[.):]\)?\s+ | \#\d{1,4}[.):]\s+
  | \d{1,4}(?: [.)](?=[^\W\d]) | [．、）：]\s* | \t ) | [一二三四五六七八九十]{1,3}[、．.]\s*
  | (?:\*\*)?(?:prompt|scene|shot|clip)\s+\d{1,4}\s*[:.)–—-](?:\*\*)?\s+ )""",
    re.VERBOSE | re.IGNORECASE,
)
"""The number or bullet of a list entry."""
_LABEL = re.compile(
    r"(?:\*\*)?(?:prompt|scene|shot|clip)\s+\d{1,4}\s*(?:[:.)–—-](?:\*\*)?|\*\*\s*[:.–—-])\s+", re.IGNORECASE
)
"""What numbers an entry behind its mark, as in `- **Scene 1:** A cat sleeps.`"""
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3}|`)(?=\S)([^*`]*+(?<=\S))\1(?![\w*])")
"""Bold, italic and code in Markdown."""
_RULE = re.compile(r"[-*_=]{3,}|```.*|~~~.*")
_QUOTES = ('""', "''", "“”", "„“", "„”", "””", "«»", "‘’", "「」", "『』")
_JSON_LISTS = ("prompts", "clips", "scenes", "shots")
_JSON_TEXTS = ("prompt", "text", "description")

_FIELDS = frozenset(Clip.model_fields) - {"prompt", "reference", "loras", "voice", "sounds"}
"""Fields of a clip that tables and JSON may have too: all but files, which are relative to the board."""
_WORDS = ("id", "negative_prompt", "caption")
"""Those that are text in a table, whatever it looks like."""


class ImportedClip(NamedTuple):
    """A prompt, and other fields of its clip as a board has them."""

    prompt: str
    fields: Mapping[str, object] = MappingProxyType({})


Found = list[tuple[int | str, ImportedClip]]
"""Clips, each after its place: a line, or a place in JSON."""


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

    def clips(self) -> tuple[ImportedClip, ...]:
        """The clips, in order. Raises InputError with what is wrong."""
        start = self.text[_COMMENTS.match(self.text).end() :][:1]  # type: ignore[union-attr]  # it always matches
        found = self._in_json() if start in ("{", "[") else self._in_table()
        if found is None:
            found = self._in_list() if self._is_list() else self._in_lines()
        if len(found) > MAX_PROMPTS:
            what = f"has more than {MAX_PROMPTS:,} prompts; split it"
            raise InputError(Problem(what, file=self.file))
        for place, clip in found:
            self._check(place, clip.prompt)
        if not self.problems and any(clip.fields for _, clip in found):
            self._check_fields(found)
        if self.problems:
            raise InputError(*self.problems)
        return tuple(clip for _, clip in found)

    def _check_fields(self, found: Found) -> None:
        """As on a board."""
        clips = [{"prompt": clip.prompt, **clip.fields} for _, clip in found]
        checked = validate({"version": 1, "reference": "-", "clips": clips})
        for loc, what in (*checked.errors, *((each.loc, each.text()) for each in checked.conflicts)):
            place = found[loc[1]][0] if len(loc) > 1 and isinstance(loc[1], int) else 0
            path = format_path(loc[2:])
            line, path = (place, path) if isinstance(place, int) else (0, f"{place}.{path}")
            self.problems.append(Problem(what, file=self.file, line=line, path=path))

    def _check(self, place: int | str, text: str) -> None:
        reason = text_problem(text)
        if blank(text):
            reason = f"prompt {format_value(text)} is blank; describe what is seen"
        elif len(text) > LONGEST_TEXT:
            reason = f"a prompt has {len(text)} characters, more than {LONGEST_TEXT}; {_HINT_LINES}"
        if reason:
            line, path = (place, "") if isinstance(place, int) else (0, place)
            self.problems.append(Problem(reason, file=self.file, line=line, path=path))

    def _is_list(self) -> bool:
        start = _COMMENTS.match(self.text)
        assert start is not None
        return bool(_LIST.match(self.text, start.end()) or _ASSIGNMENT.search(self.text))

    # one prompt per line

    def _in_lines(self) -> Found:
        """Every line, without its number. In a list, lines without one continue an entry, or are ignored."""
        lines = [(number, line) for number, line in enumerate(self.text.split("\n"), 1)]
        is_list = any(_MARK.match(f"{line.strip()} ") for _, line in lines)
        found: list[tuple[int, str]] = []
        indent, open_entry = 0, False
        for number, line in lines:
            text = line.strip()
            mark = _MARK.match(f"{text} ")
            depth = len(line) - len(line.lstrip())
            if not text or _RULE.fullmatch(text) or (text[0] == "#" and not mark):
                open_entry = False
            elif is_list and open_entry and (not mark or depth > indent + 1):
                found[-1] = (found[-1][0], f"{found[-1][1]} {text}")
            elif is_list and not mark:
                self._warn(number, f"is not part of the list, and is ignored: {format_value(text)}")
            elif not mark and _CODE.fullmatch(text):
                what = f"is not a list of prompts, and code is never executed; {_HINT}"
                raise InputError(Problem(what, file=self.file, line=number))
            else:
                rest = text[mark.end() if mark else 0 :]
                label = _LABEL.match(rest)
                found.append((number, rest[label.end() if label else 0 :]))
                indent, open_entry = depth, True
        if not found:
            raise InputError(Problem(f"has no prompts; {_HINT_LINES}", file=self.file))
        return [(place, ImportedClip(_unquoted(_without_emphasis(text)))) for place, text in found]

    # CSV, TSV and tables in Markdown

    def _in_table(self) -> Found | None:
        """The column with the prompts, and those that are fields of clips; None for what is no table."""
        lines = [line.strip() for line in self.text.split("\n")]
        told = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
        if PurePath(self.file).suffix.lower() in (".csv", ".tsv"):
            rows = self._csv()
        elif told and all(line.startswith("|") for _, line in told):
            rows = [(number, _cells(line)) for number, line in told]
            rows = [row for row in rows if not all(re.fullmatch(":?-+:?", cell) for cell in row[1])]
        else:
            return None
        if not rows:
            raise InputError(Problem(f"has no prompts; {_HINT_LINES}", file=self.file))
        line, head = rows[0]
        names = [name.strip().lower().replace(" ", "_") for name in head]
        column = next((names.index(name) for name in (*_JSON_TEXTS, *_JSON_LISTS) if name in names), -1)
        if column < 0 and any(len(cells) > 1 for _, cells in rows):
            listed = ", ".join(map(format_value, head[:8]))
            what = f"no column is called prompt; call the one with the prompts so, in this line: {listed}"
            raise InputError(Problem(what, self.file, line))
        fields = {name: place for place, name in enumerate(names) if name in _FIELDS and place != column >= 0}
        others = [name for place, name in enumerate(head) if place not in (column, *fields.values())]
        self._report_ignored(others if column >= 0 else (), line)
        found: Found = []
        for number, cells in rows[column >= 0 :]:
            if any(map(str.strip, cells[len(head) :])):
                what = f"has {len(cells)} cells, and the first line {len(head)}"
                what += "; put a text with separators in quotes, or write \\| for | in Markdown"
                self.problems.append(Problem(what, self.file, number))
                continue
            written = {
                name: cells[at].strip() for name, at in fields.items() if "".join(cells[at:][:1]).strip()
            }
            values = {name: text if name in _WORDS else scalar(text) for name, text in written.items()}
            text = "".join(cells[max(column, 0) :][:1]).strip()
            found.append((number, ImportedClip(_without_emphasis(text), values)))
        return found

    def _report_ignored(self, names: Iterable[str], line: int = 0) -> None:
        if ignored := ", ".join(map(format_value, [*names][:8])):
            self._warn(line, f"not imported, and ignored: {ignored}")

    def _csv(self) -> list[tuple[int, list[str]]]:
        """The rows of a CSV or TSV file that are not empty, each with its line. Raises InputError."""
        head = self.text.lstrip("\n").partition("\n")[0]
        sign = max(",;\t", key=head.count)  # Excel's depends on the country
        lines, rows, number = self.text.splitlines(keepends=True), [], 1
        reader = csv.reader(lines, delimiter=sign, strict=True)  # else a lost quote swallows what follows
        try:
            for cells in reader:
                rows.append((number, cells))
                number = reader.line_num + 1
        except csv.Error as error:
            what = f"is not CSV ({error}); close every quote, and double those within quotes"
            raise InputError(Problem(what, self.file, number)) from error
        return [(number, cells) for number, cells in rows if any(map(str.strip, cells))]

    # JSON

    def _in_json(self) -> Found | None:
        """The prompts of a JSON file; None for a list that is to be read in another way."""
        is_list = self.text.lstrip().startswith("[")
        try:
            data = json.loads(self.text)
        except (ValueError, RecursionError) as error:
            if is_list:
                return None
            data = self._json_lines(error)
        if is_list and not any(isinstance(each, dict) for each in data):
            fit = data and all(isinstance(each, str) and not text_problem(each) for each in data)
            return [(0, ImportedClip(each)) for each in data] if fit and not any(map(blank, data)) else None
        ignored: dict[str, None] = {}
        name = ""
        if isinstance(data, dict) and not any(isinstance(data.get(key), str) for key in _JSON_TEXTS):
            lists = [key for key, value in data.items() if isinstance(value, list)]
            name = next((key for key in (*_JSON_LISTS, *lists[:1]) if key in lists), "")
            if not name:
                raise InputError(
                    Problem('has no list of prompts; write {"prompts": ["...", "..."]}', file=self.file)
                )
            ignored.update(dict.fromkeys(key for key in data if key != name))
            data = data[name]
        elif isinstance(data, dict):
            data = [data]
        found: Found = []
        for number, each in enumerate(data):
            place = f"{name}[{number}]"
            key = next((key for key in _JSON_TEXTS if isinstance(each, dict) and key in each), "")
            text = each.get(key) if isinstance(each, dict) else each
            if isinstance(text, str):
                others = {name: value for name, value in each.items() if name != key} if key else {}
                fields = {
                    name: others[name] for name in others if name in _FIELDS and others[name] is not None
                }
                found.append((place, ImportedClip(joined_surrogates(text), fields)))
                ignored.update(dict.fromkeys(name for name in others if name not in _FIELDS))
            else:
                got = format_value(text if key else each)
                what = f'{got} is not a prompt; write "...", or {{"prompt": "..."}}'
                self.problems.append(Problem(what, file=self.file, path=place))
        if not found and not self.problems:
            raise InputError(Problem(f"the list of prompts is empty; {_HINT_LINES}", file=self.file))
        self._report_ignored(ignored)
        return found

    def _json_lines(self, error: Exception) -> list[object]:
        """One JSON object per line. Raises InputError with the error of the whole file."""
        try:
            return [json.loads(line) for line in self.text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            reason = getattr(error, "msg", "too deep, or a too long number")
            problem = Problem(f"is not JSON ({reason}); correct it", self.file, getattr(error, "lineno", 0))
            raise InputError(problem) from error

    # a list of texts in Python

    def _in_list(self) -> Found:
        lists = [tokens for statement in self._statements() if (tokens := self._listed(statement))]
        if not lists:
            raise InputError(Problem(f"has no list of prompts; {_HINT}", file=self.file))
        if len(lists) > 1:
            what = f"a second list of prompts, after the one on line {lists[0][0].first}; keep one"
            self._stop(lists[1][0], what)
        found: Found = [
            (item[0].first, ImportedClip(joined_surrogates("".join(map(self._literal, item)))))
            for item in self._items(lists[0])
        ]
        if not found:
            self._stop(lists[0][0], f"the list of prompts is empty; {_HINT}")
        return found

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
            token = Token(
                "text" if kind == "typographic" else kind, string, match["prefix"] or "", first, line
            )
            if count > MAX_TOKENS:
                self._stop(token, f"has more than {MAX_TOKENS:,} words and signs; split it")
            if string in ("'", '"', "“", "„", "«", "‘"):
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
            self._warn(statement[0].last, f"only `prompts` is read; `{words[0]}` is ignored")
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
            for before, after in pairwise(item):
                if after.first > before.last:
                    self._warn(before.last, "no comma after this text, so the next text continues it")
            return end, item
        if end == len(tokens) or tokens[end].string != ")":
            self._stop(tokens[start], "a list inside the list; write every prompt as one text")
        return end + 1, item

    def _literal(self, token: Token) -> str:
        if set(token.prefix.lower()) - set("ru"):
            what = f"{token.prefix} before a quote makes it more than a plain text; remove the {token.prefix}"
            self._stop(token, what)
        if token.string[0] in "“”„«‘":
            return token.string[1:-1]
        try:
            warnings.filterwarnings("ignore", module="<unknown>")  # "\d" is read as Python reads it
            return str(ast.literal_eval(token.string))
        except (SyntaxError, ValueError):
            self._stop(
                token, "an escape with a backslash that Python does not have; write \\\\ for a backslash"
            )

    def _warn(self, line: int, what: str) -> None:
        self.warnings += 1
        if self.warnings <= _MOST_WARNINGS:
            self.report(Warned(str(Problem(what, file=self.file, line=line))))

    def _stop(self, token: Token, what: str) -> NoReturn:
        raise InputError(Problem(what, file=self.file, line=token.first))


def _code(token: Token) -> str:
    """A piece of a prompt file for a message."""
    return f"`{format_value(token.string)[1:-1]}`"


def _cells(line: str) -> list[str]:
    r"""The cells of a line of a Markdown table, which starts with `|`; `\|` is a part of a cell."""
    cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)]
    return cells[1 : -1 if len(cells) > 2 and not cells[-1] else None]


def _without_emphasis(text: str) -> str:
    """Text without Markdown's asterisks around words, which would be read as part of the prompt."""
    return _EMPHASIS.sub(r"\2", text)


def _unquoted(text: str) -> str:
    """Text without the quotes around all of it."""
    text = text.strip()
    inside = text.rstrip(",")
    if len(inside) > 2 and f"{inside[0]}{inside[-1]}" in _QUOTES and inside[0] not in inside[1:-1]:
        return inside[1:-1].strip()
    return text


def read_clips(path: Path, report: Reporter = lambda _event: None) -> tuple[ImportedClip, ...]:
    """The clips of a file: a prompt per line, a list, a table, JSON, or upstream's prompt.txt.

    That is `prompts = [...]` or a bare list of texts in Python, which is never executed.

    Raises InputError with every problem, by line. Ignored lines and commas that are probably missing are
    reported as Warned.
    """
    return PromptFile(decode(read_bytes(path), str(path)), str(path), report).clips()


def title_for(prompts: Path) -> str:
    """A film's title: the prompt file's name, or its folder's when the file is only called prompt(s)."""
    if prompts.stem.lower() not in ("prompt", "prompts"):
        return prompts.stem
    return prompts.parent.resolve().name or prompts.stem
