"""Replaces `{name}` in the texts of a board by the variables of its `let`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from svi_story.fields import LONGEST_TEXT, Loc, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Replace = Callable[[Loc, str], str]

NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_BRACES = re.compile(r"\{\{|\}\}|\{(%s)\}" % NAME.pattern)  # noqa: UP031 - braces are what it is about

_TEXTS = {
    "": ("title", "style", "negative_prompt"),
    "clips": ("prompt", "negative_prompt", "caption"),
    "cut": ("title_card", "end_card"),
}
"""Fields with variables, by the part of the board; the text of a mapping is its `text`."""


def replace_variables(data: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[Loc, str]]]:
    """A board's data with its variables replaced, and what is wrong with them, with its place.

    One pass: what a variable contains is not searched again. `{{` is `{` and `}}` is `}`; any other brace
    stays as it is. Boards without `let` stay as they are.
    """
    variables = data.get("let")
    if not isinstance(variables, dict):
        return data, []
    known = {name: text for name, text in variables.items() if isinstance(text, str)}
    problems: list[tuple[Loc, str]] = []

    def replace(loc: Loc, text: str) -> str:
        result, found = _replaced(text, known)
        problems.extend((loc, what) for what in found)
        return result

    def in_part(part: Any, fields: tuple[str, ...], at: Loc) -> Any:
        if not isinstance(part, dict):
            return part
        changed = dict(part)
        for name in fields:
            value = part.get(name)
            if isinstance(value, str):
                changed[name] = replace((*at, name), value)
            elif isinstance(value, dict) and isinstance(value.get("text"), str):
                changed[name] = {**value, "text": replace((*at, name, "text"), value["text"])}
        return changed

    board = in_part(data, _TEXTS[""], ())
    if isinstance(data.get("clips"), list):
        board["clips"] = [
            in_part(clip, _TEXTS["clips"], ("clips", index)) for index, clip in enumerate(data["clips"])
        ]
    if "cut" in data:
        board["cut"] = in_part(data["cut"], _TEXTS["cut"], ("cut",))
    return board, problems


def _replaced(text: str, known: Mapping[str, str]) -> tuple[str, list[str]]:
    """The text with its variables replaced, and what is wrong with it; too long a text stays as it is."""
    problems: list[str] = []

    def parts() -> Iterator[str]:
        end = 0
        for found in _BRACES.finditer(text):
            yield text[end : found.start()]
            end = found.end()
            name = found[1]
            if name is None:
                yield found[0][0]
            elif name in known:
                yield known[name]
            else:
                yield found[0]
                meant = nearest(name, known)
                remedy = f"did you mean `{{{meant}}}`?" if meant else f"add `{name}` under `let:`, or write"
                problems.append(f"`{{{name}}}` is not a variable of this board; {remedy}")
                if not meant:
                    problems[-1] += f" `{{{{{name}}}}}` for the word in braces"
        yield text[end:]

    result: list[str] = []
    length = 0
    for part in parts():
        length += len(part)
        if length > LONGEST_TEXT:
            what = f"has more than {LONGEST_TEXT} characters with its variables; shorten it"
            return text, [*problems, what]
        result.append(part)
    return "".join(result), list(dict.fromkeys(problems))
