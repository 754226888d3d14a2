"""Parses YAML with the scalars of YAML 1.2's core schema into plain values and the line of each."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    Event,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from yaml.nodes import Node, ScalarNode

from svi_story.errors import InputError, Problem
from svi_story.fields import Loc, format_path, format_value, joined_surrogates
from svi_story.storyboard.pitfalls import MAX_REST, ScalarSource, cut_off, lookalike_in, misread_lines

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_MESSAGES = (
    (r"found character '\\t'", "a tab where YAML requires spaces; indent with spaces"),
    (r"found character '(.)' that cannot start", "text cannot start with {0}; put it in quotes"),
    (
        r"mapping values are not allowed here",
        '": " is not allowed here; put the text in quotes, or fix the indentation',
    ),
    (r"could not find expected ':'", "is not `name: value`; add the colon, or fix quotes and indentation"),
    (r"found unexpected end of stream", "the quote that opens here is never closed; close it"),
    (
        r"found unexpected document separator",
        "the quote that opens here is not closed before the ---; close it",
    ),
    (
        r"found unknown escape character '(.+)'",
        "\\{0} in double quotes is not an escape; write / in a path, and \\\\ for a backslash",
    ),
    (
        r"expected escape sequence of (\d) hex",
        "an escape in double quotes needs {0} hex digits; write / in a path, and \\\\ for a backslash",
    ),
    (r"expected ',' or '(.)'", "a comma is missing, or the list that opens here is not closed with {0}"),
    (r"expected alphabetic or numeric character", "text cannot start with * or &; put it in quotes"),
    (r"sequence entries are not allowed here", "text cannot start with a dash and a space; put it in quotes"),
    (r"mapping keys are not allowed here", "text cannot start with a question mark; put it in quotes"),
    (r"expected a comment or a line break", "text after | or > starts on the next line; write it there"),
    (r"expected '<document start>'", "does not belong to what comes before; fix the indentation"),
    (r"expected <block end>", "does not fit what comes before; fix quotes and indentation"),
)
_STARTS_WITH_BRACE = re.compile(r"[^#'\"]*[:-] +\{[^}]*\} *[^ #,\]}]")
_STARTS_WITH_BRACKET = re.compile(r"[^#'\"]*[:-] +\[[^\]]*\] *[^ #,\]}]")
_GOES_ON_AFTER_QUOTE = re.compile(r"""[^#'"]*[:-] +(?:"(?:[^"\\]|\\.)*+"|'(?:[^']|'')*+') *[^ #,\]}:]""")
_LONGEST_LINE = 1000
"""Characters of a line that are looked at."""
_AT_START = ("found unexpected", "could not find expected", "expected ','")


def _message_of(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    """The 1-based line of a YAML error, and what to do about it."""
    problem = str(error.problem or "")
    at_start = problem.startswith(_AT_START) and error.context_mark is not None
    mark = error.context_mark if at_start else error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 0
    for pattern, message in _MESSAGES:
        match = re.search(pattern, problem)
        if match:
            return line, message.format(*match.groups())
    return line, f"is not YAML ({problem}); fix quotes and indentation"


MAX_DEPTH = 50
MAX_ALIASED = 10_000
MAX_VALUES = 100_000
MAX_PROBLEMS = 500
_MAX_DIGITS = 100

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = {"0o": (re.compile("0o[0-7]+"), 8), "0x": (re.compile("0x[0-9a-fA-F]+"), 16)}
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"([-+]?)\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_NUMBER_STARTS = frozenset("+-.0123456789")


@dataclass(frozen=True)
class Refused:
    """Stands in for something that was written and is not a valid value."""

    what: str


NOTHING = Refused("nothing is written here; give a value, or remove the line")


@dataclass(frozen=True)
class Document:
    """One YAML document."""

    data: object
    """dict, list, str, int, float, bool or Refused. Aliases share their value: do not change it."""
    lines: dict[Loc, int]
    """1-based line of every place that is written out."""
    problems: tuple[Problem, ...]
    """Problems that did not stop the parser."""
    written: Mapping[Loc, ScalarSource]
    """How every scalar is written."""


def parse(text: str, file: str, fields: Collection[str] = ()) -> Document:
    """Read one document. `text` has `\\n` line breaks; `file` names it in messages.

    `fields` are names that its mappings may have: they help to explain errors.

    Raises InputError for invalid YAML, for tags, and beyond MAX_DEPTH, MAX_ALIASED and MAX_VALUES.
    """
    events = _Events(text)
    builder = _Builder(events, file)
    try:
        data = builder.document()
    except yaml.MarkedYAMLError as error:
        found = _causes(text, builder.written.values(), fields, error)
        raise InputError(*(Problem(what, file=file, line=line) for line, what in found)) from error
    except (ValueError, OverflowError) as error:  # PyYAML on "\UFFFFFFFF" and on %YAML with a long number
        what = "an escape or a number that YAML does not have; write it plainly, and a backslash as \\\\"
        raise InputError(Problem(what, file=file, line=events.line + 1)) from error
    return Document(data, builder.lines, tuple(builder.problems), builder.written)


def _causes(
    text: str, values: Collection[ScalarSource], fields: Collection[str], error: yaml.MarkedYAMLError
) -> list[tuple[int, str]]:
    """Why the parser stopped: because of lookalikes or a comment before that place, or as it says."""
    line, what = _message_of(error)
    misread = [(at, why) for at, why, _ in misread_lines(text, values, fields) if at <= line]
    if misread:
        return misread
    before = max((value.last for value in values if value.last <= line), default=0)
    comments = (cut_off(value, failed=True) for value in values if value.source and value.last == before)
    comment = next(filter(None, comments), "")
    if comment:
        return [(before, comment)]
    stopped = text.split("\n")[line - 1] if line else ""
    stopped = stopped[:_LONGEST_LINE]
    if what.startswith("does not fit") and _GOES_ON_AFTER_QUOTE.match(stopped):
        what = "the text goes on after its closing quote; put all of it in quotes, with a ' in it written ''"
    elif what.startswith("does not fit") and _STARTS_WITH_BRACKET.match(stopped):
        what = "text that starts with [ needs quotes"
    elif "expected" in str(error.problem) and _STARTS_WITH_BRACE.match(stopped):
        what = 'text that starts with { needs quotes, as `prompt: "{name} is ..."`'
    elif "never closed" in what and '\\"' in stopped:
        what += '; \\" is a quote within the text: write / in a path'
    elif lookalike := lookalike_in(stopped):
        what += f"; the line contains {lookalike}"
    return [(line, what)]


def scalar(text: str) -> object:
    """The value of an unquoted scalar: null is NOTHING, and an unusably long number is Refused."""
    if text in _NULL:
        return NOTHING
    if text in _BOOL:
        return _BOOL[text]
    return _number(text) if text[0] in _NUMBER_STARTS else text


def _number(text: str) -> object:
    pattern, base = _BASED.get(text[:2], (_INT, 10))
    is_int, is_float = pattern.fullmatch(text), _FLOAT.fullmatch(text)
    if (is_int or is_float) and len(text) > _MAX_DIGITS:
        return Refused(f"a number of {len(text)} characters; write a shorter one")
    if is_int:
        return int(text, base)
    if is_float:
        value = float(text)
        return (
            value if math.isfinite(value) else Refused(f"{text} is too large a number; write a smaller one")
        )
    infinite = _INFINITE.fullmatch(text)
    return float(f"{infinite[1]}inf" if infinite[1] is not None else "nan") if infinite else text


class _Events(yaml.SafeLoader):
    """SafeLoader's events; faster, because the text's only line breaks are `\\n`."""

    buffer: str
    pointer: int
    index: int
    line: int
    column: int

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.buffer += "\0" * 4  # the scanner looks up to four characters ahead

    def take(self) -> Event:
        event: Event = self.get_event()  # type: ignore[no-untyped-call]  # the stubs leave the parser untyped
        return event

    def peek(self, index: int = 0) -> str:
        return self.buffer[self.pointer + index]

    def prefix(self, length: int = 1) -> str:
        return self.buffer[self.pointer : self.pointer + length]

    def forward(self, length: int = 1) -> None:
        start, end = self.pointer, self.pointer + length
        self.pointer = self.index = end
        newline = self.buffer.rfind("\n", start, end)
        if newline < 0:
            self.column += length
        else:
            self.line += self.buffer.count("\n", start, end)
            self.column = end - newline - 1


class _Nodes(_Events):
    """Composes nodes; an alias is one of its own, so that it has its own place."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, AliasEvent):
            self.take()
            return ScalarNode("alias", event.anchor, event.start_mark, event.end_mark, "*")  # type: ignore[arg-type]
        event.anchor = None  # the library refuses an anchor that is written twice
        return super().compose_node(parent, index)


def nodes(text: str) -> Node:
    """The root of a document that `parse` accepts, as nodes with marks; an alias is a scalar of style `*`.

    `text` has `\\n` line breaks. The end mark of a collection without brackets is where the next value is.
    """
    root = _Nodes(text).get_single_node()
    assert isinstance(root, Node)
    return root


@dataclass
class _Builder:
    """Turns events into values and counts them."""

    events: _Events
    file: str
    lines: dict[Loc, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    written: dict[Loc, ScalarSource] = field(default_factory=dict)
    anchors: dict[str, tuple[object, int]] = field(default_factory=dict)
    """Name: the value, and how many values it holds. The size is 0 while it is being read."""
    values: int = 0
    aliased: int = 0

    def document(self) -> object:
        self.events.take()  # the stream's start
        if self.events.check_event(StreamEndEvent):
            raise InputError(Problem("is empty; `svi-story new NAME` starts a board", file=self.file))
        self.events.take()  # the document's start
        first = self.events.take()
        self.lines[()] = _line(first)
        data = self.value(first, (), 0)
        self.events.take()  # the document's end
        if not self.events.check_event(StreamEndEvent):
            self.stop(self.events.take(), "a second document starts here; put it into its own file")
        return data

    def value(self, event: Event, loc: Loc, depth: int) -> object:
        self.count(event)
        if isinstance(event, AliasEvent):
            return self.alias(event)
        assert isinstance(event, NodeEvent)
        if depth > MAX_DEPTH:
            self.stop(event, f"is nested more than {MAX_DEPTH} levels deep; write it flat")
        self.refuse_tag(event)
        if event.anchor is None:
            return self.content(event, loc, depth)
        before = self.values
        self.anchors[event.anchor] = (NOTHING, 0)
        data = self.content(event, loc, depth)
        self.anchors[event.anchor] = (data, self.values - before + 1)
        return data

    def content(self, event: Event, loc: Loc, depth: int) -> object:
        if isinstance(event, ScalarEvent):
            self.written[loc] = _source_of(event, self.events.buffer)
            return scalar(event.value) if event.implicit[0] else joined_surrogates(event.value)
        if isinstance(event, SequenceStartEvent):
            return self.sequence(loc, depth)
        return self.mapping(loc, depth)

    def sequence(self, loc: Loc, depth: int) -> list[object]:
        items: list[object] = []
        while not self.events.check_event(CollectionEndEvent):
            event = self.events.take()
            place = (*loc, len(items))
            self.lines[place] = _line(event)
            items.append(self.value(event, place, depth + 1))
        self.events.take()
        return items

    def mapping(self, loc: Loc, depth: int) -> dict[str, object]:
        found: dict[str, object] = {}
        while not self.events.check_event(CollectionEndEvent):
            event = self.events.take()
            if not isinstance(event, ScalarEvent):
                self.stop(event, "a name must be plain text; write `name: value`")
            self.refuse_tag(event)
            name, line = joined_surrogates(event.value), _line(event)
            place = (*loc, name)
            data = self.value(self.events.take(), place, depth + 1)
            if name == "<<":
                self.report(place, line, "YAML 1.2 has no merge keys; write the fields out")
            elif name in found:
                first = self.lines[place]
                self.report(place, line, f"is written twice, first on line {first}; keep one")
            else:
                found[name] = data
                self.lines[place] = line
        self.events.take()
        return found

    def alias(self, event: AliasEvent) -> object:
        if event.anchor not in self.anchors:
            self.stop(event, f"*{event.anchor} is not defined; write &{event.anchor} before its first use")
        data, size = self.anchors[event.anchor]
        if not size:
            self.stop(event, f"*{event.anchor} is used inside its own definition; write that part out")
        self.values += size - 1
        self.aliased += size
        if self.aliased > MAX_ALIASED:
            self.stop(event, f"aliases stand for more than {MAX_ALIASED:,} values; write fewer")
        return data

    def refuse_tag(self, event: Event) -> None:
        tag = getattr(event, "tag", None)
        if tag is not None:
            written = format_value(str(tag).replace("tag:yaml.org,2002:", "!!"))
            what = f"tags such as {written} are not supported; remove it, or put text with a ! in quotes"
            self.stop(event, what)

    def count(self, event: Event) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            self.stop(event, f"has more than {MAX_VALUES:,} values; split the board")

    def report(self, loc: Loc, line: int, what: str) -> None:
        self.problems.append(Problem(what, file=self.file, line=line, path=format_path(loc)))
        if len(self.problems) == MAX_PROBLEMS:
            raise InputError(*self.problems, Problem("and more like these", file=self.file))

    def stop(self, event: Event, what: str) -> NoReturn:
        raise InputError(Problem(what, file=self.file, line=_line(event)))


def _line(event: Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _source_of(event: ScalarEvent, text: str) -> ScalarSource:
    start, end = event.start_mark, event.end_mark
    if start is None or end is None:
        return ScalarSource("", "", 0, 0)
    rest = text[end.index : end.index + MAX_REST].partition("\n")[0].rstrip("\0")
    in_block = end.column == 0 and end.index > start.index  # it ends where the next line starts
    return ScalarSource(text[start.index : end.index], rest, start.line + 1, end.line + (not in_block))
