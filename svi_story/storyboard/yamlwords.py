"""What a YAML reader's complaints mean, in words for people."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import yaml

_CURES = (
    (r"found character '\\t'", "a tab stands where YAML wants spaces; indent with spaces"),
    (r"found character '(.)' that cannot start", "text cannot start with {0}; put it in quotes"),
    (
        r"mapping values are not allowed here",
        'a ": " where none can be; put the text in quotes, or mend the indentation',
    ),
    (r"could not find expected ':'", "is no `name: value`; add the colon, or mend quotes and indentation"),
    (r"found unexpected end of stream", "the quote that opens here is never closed; close it"),
    (
        r"found unexpected document separator",
        "the quote that opens here is not closed before the ---; close it",
    ),
    (
        r"found unknown escape character '(.+)'",
        "\\{0} is no escape in double quotes; write \\\\{0}, or use single quotes",
    ),
    (
        r"expected escape sequence of (\d) hex",
        "an escape in double quotes lacks some of its {0} hex digits; complete it",
    ),
    (r"expected ',' or '(.)'", "a comma is missing, or the list that opens here is not closed with {0}"),
    (r"expected '<document start>'", "does not belong to what comes before; mend the indentation"),
    (r"expected <block end>", "does not fit what comes before; mend quotes and indentation"),
)
_AT_ITS_START = ("found unexpected", "could not find expected", "expected ','")


def said(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    """The 1-based line of a YAML error, and what to do about it."""
    problem = str(error.problem or "")
    at_start = problem.startswith(_AT_ITS_START) and error.context_mark is not None
    mark = error.context_mark if at_start else error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 0
    for pattern, cure in _CURES:
        match = re.search(pattern, problem)
        if match:
            return line, cure.format(*match.groups())
    return line, f"is not YAML ({problem}); mend quotes and indentation"
