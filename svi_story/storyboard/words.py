"""pydantic's errors in words for an author: what was got, and what to do about it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from svi_story.enginespec import sampling
from svi_story.fields import Loc, nearest, shown
from svi_story.storyboard import cutting, schema
from svi_story.storyboard.lints import LintSettings
from svi_story.storyboard.transitions import Dip, Fade
from svi_story.storyboard.yaml12 import Refused, scalar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

PARTS: Mapping[str, type[BaseModel]] = {
    "": schema.Storyboard,
    "clips": schema.Clip,
    "clips.guidance": sampling.WrittenScale,
    "clips.loras": sampling.WrittenLora,
    "clips.sounds": cutting.Sound,
    "clips.transition": Fade,
    "clips.voice": cutting.Sound,
    "cut": cutting.CutSettings,
    "cut.audio": cutting.Music,
    "cut.end_card": cutting.Card,
    "cut.title_card": cutting.Card,
    "engine": schema.EngineSettings,
    "engine.distill": sampling.DistillPair,
    "engine.guidance": sampling.WrittenScale,
    "engine.loras": sampling.WrittenLora,
    "lint": LintSettings,
}
"""The model behind every mapping of a board. A transition may be a dip too."""

HOMES = ("", "engine", "cut", "lint", "clips")
"""Where a name that stands at the wrong level may belong."""


def place_of(error: ErrorDetails) -> Loc:
    """Where an error is, without the mark that tells the kinds of a transition apart."""
    loc = error["loc"]
    return (*loc[:3], *loc[4:]) if loc[0] == "clips" and loc[2:3] == ("transition",) else loc


def names_at(parent: Loc) -> tuple[str, ...]:
    """The fields that a part of the board has."""
    return tuple(_fields(_part(parent)))


def _fields(part: str) -> Mapping[str, FieldInfo]:
    """The fields of a part of the board, by its name in `PARTS`."""
    fields = PARTS[part].model_fields if part in PARTS else {}
    return fields | Dip.model_fields if part == "clips.transition" else fields


def _part(loc: Loc) -> str:
    return ".".join(step for step in loc if isinstance(step, str))


def said(error: ErrorDetails) -> str:
    """An error in words: what was got, and what to do about it."""
    kind, value, loc = error["type"], error["input"], place_of(error)
    if kind == "extra_forbidden":
        return _unknown(loc)
    if kind == "missing":
        return f"is missing; add it, as {_example(loc, None)}"
    if isinstance(value, Refused):
        return value.what
    if kind == "wrong":
        return error["msg"]
    words = _words(kind, loc)
    limits = {
        key: f"{limit:g}" if isinstance(limit, float) else limit
        for key, limit in error.get("ctx", {}).items()
    }
    example = _example(loc, _guess(kind, value))
    return words.format(got=shown(value), example=example, choices=_choices(error), **limits)


def _words(kind: str, loc: Loc) -> str:
    if kind == "tuple_type" and loc == ("clips",):
        return "{got} is not a list; start every clip with a dash, as `- prompt: ...`"
    if kind == "model_type" and issubclass(PARTS.get(_part(loc), schema.Storyboard), cutting.OrWord):
        return "{got} is neither text nor a mapping; write it as {example}"
    return _WORDS.get(kind, "{got} cannot be used here; write it as {example}")


_WORDS = {
    "string_type": "{got} is not text; write it as {example}",
    "string_pattern_mismatch": "{got} is no id; use up to 64 of A-Z a-z 0-9 . _ -, first a letter or digit",
    "int_type": "{got} is not a whole number; write it as {example}",
    "float_type": "{got} is not a number; write it as {example}",
    "finite_number": "{got} is not a finite number; write it as {example}",
    "bool_type": "{got} is neither true nor false; write one of them",
    "greater_than": "{got} is not more than {gt}; write it as {example}",
    "greater_than_equal": "{got} is less than {ge}; use {ge} or more",
    "less_than_equal": "{got} is more than {le}; use {le} or less",
    "literal_error": "{got} is not one of {choices}",
    "model_type": "{got} is not a mapping; write it as {example}",
    "tuple_type": "{got} is not a list; write it as {example}",
}
"""pydantic's kinds of error in words for an author."""


def _guess(kind: str, value: object) -> object:
    """The value that an author meant by one of the wrong type; None when it cannot be told."""
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f'"{shown(value)}"'
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind in ("int_type", "float_type") and isinstance(value, str):
        number = scalar(value)
        return number if isinstance(number, int | float) and not isinstance(number, bool) else None
    return None


def _choices(error: ErrorDetails) -> str:
    """The words that a field takes, and the one that was probably meant."""
    choices = re.findall(r"'([^']+)'", str(error.get("ctx", {}).get("expected", "")))
    named = ", ".join(choices)
    if _part(place_of(error)) == "clips.transition":
        named += ", {fade: 0.5s}, {dip: 1s}"
    meant = nearest(error["input"], choices) if isinstance(error["input"], str) else ""
    return f'{named}; did you mean "{meant}"?' if meant else f"{named}; use one of them"


def _unknown(loc: Loc) -> str:
    """What to do about a name that a part of the board does not have."""
    name, parent = str(loc[-1]), _part(loc[:-1])
    if _part(loc) in schema.NOT_YET:
        return f"`{name}` is not supported yet; remove it"
    names = names_at(loc[:-1])
    if parent == "clips.transition" and name in names:
        return "a transition is one thing; keep the `fade` or the `dip`"
    meant = nearest(name, names)
    if meant:
        return f"is not a field of the format; did you mean `{meant}`?"
    homes = [part for part in HOMES if part != parent and name in PARTS[part].model_fields]
    if homes:
        home = {"": "at the top level", "clips": "in a clip"}.get(homes[0], f"under `{homes[0]}:`")
        return f"does not belong here; write it {home}"
    cure = "remove it" if parent == "clips.transition" else f"use one of {', '.join(names)}"
    return f"is not a field of the format; {cure}"


def _example(loc: Loc, value: object) -> str:
    """A field as it can be written, in backticks: with the value, else with an example of the format's."""
    if loc[-2:-1] == ("clips",):
        return "`- prompt: ...`"
    if isinstance(loc[-1], int):
        return f"`- {_written(_shown_by(loc[:-1])[0])}`"
    return f"`{loc[-1]}: {_written(_shown_by(loc) if value is None else value)}`"


def _shown_by(loc: Loc) -> Any:
    """A field's example in the format, else its default."""
    info = _fields(_part(loc[:-1])).get(str(loc[-1]))
    if info is None:
        return None
    return info.examples[0] if info.examples else info.default


def _written(value: object) -> str:
    """An example as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_written(each) for each in value) + "]"
    return value if isinstance(value, str) else shown(value)
