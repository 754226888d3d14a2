"""Checks a board's data against the schema, and turns every error into a message for its author."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ValidationError

from svi_story.enginespec import sampling
from svi_story.fields import Loc, format_value, nearest
from svi_story.storyboard import cut_schema, schema
from svi_story.storyboard.terms import TRANSITIONS, other_name, other_transition
from svi_story.storyboard.yaml12 import Refused, scalar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from svi_story.storyboard.rules import Conflict

Data = dict[str, Any]

MOST_ERRORS = 500
"""Further errors are counted, not listed, so that a hostile file costs no time."""

PARTS: Mapping[str, type[BaseModel]] = {
    "": schema.Storyboard,
    "clips": schema.Clip,
    "clips.caption": cut_schema.TimedCaption,
    "clips.guidance": sampling.GuidanceSettings,
    "clips.loras": sampling.LoraSettings,
    "clips.sounds": cut_schema.SoundSettings,
    "clips.transition": cut_schema.Fade,
    "clips.voice": cut_schema.SoundSettings,
    "cut": cut_schema.CutSettings,
    "cut.audio": cut_schema.MusicSettings,
    "cut.end_card": cut_schema.CardSettings,
    "cut.title_card": cut_schema.CardSettings,
    "engine": schema.EngineSettings,
    "engine.distill": sampling.DistillPair,
    "engine.guidance": sampling.GuidanceSettings,
    "engine.loras": sampling.LoraSettings,
    "lint": schema.LintSettings,
}
"""The model behind every mapping of a board. A transition may be a dip too."""

FIELD_NAMES = frozenset(name for part in PARTS.values() for name in part.model_fields) | {"dip"}
"""The names of all fields of a board."""

HOMES = ("", "engine", "cut", "lint", "clips")
"""The parts searched for a field that was written at the wrong level."""


class FieldError(NamedTuple):
    """Something wrong at one place."""

    loc: Loc
    what: str


@dataclass(frozen=True)
class Validation:
    """The result of checking a board's fields one by one and together."""

    story: schema.Storyboard | None
    """None when anything is wrong."""
    errors: tuple[FieldError, ...]
    conflicts: tuple[Conflict, ...]
    valid: Data
    """The written fields that are right by themselves."""


def validate(data: Data) -> Validation:
    """Find every wrong field, and every conflict between those that are right by themselves."""
    try:
        return Validation(schema.Storyboard.model_validate(data), (), (), data)
    except ValidationError as error:
        found = error.errors(include_url=False)
    if len(found) > MOST_ERRORS:
        rest = FieldError(place_of(found[MOST_ERRORS]), f"and {len(found) - MOST_ERRORS} more like these")
        return Validation(None, (*map(_field_error, found[:MOST_ERRORS]), rest), (), {})
    intended: set[Loc] = set()  # the fields that mistyped names were probably meant for
    for loc in (place_of(each) for each in found if each["type"] == "extra_forbidden"):
        intended.add((*loc[:-1], nearest(str(loc[-1]), fields_at(loc[:-1])) or loc[-1]))
    # A required field under a mistyped name is reported once, not as missing too.
    wrong = [
        each
        for each in found
        if each["type"] != "conflict" and not (each["type"] == "missing" and place_of(each) in intended)
    ]
    if not wrong:
        return Validation(None, (), _conflicts_in(found), data)
    # The field of the board, of a part or of a clip that each error belongs to.
    locs = [place_of(each) for each in wrong]
    invalid = {loc[:3] if loc[0] == "clips" else loc[:2] for loc in locs} | intended
    valid = _without(data, invalid)
    return Validation(None, tuple(map(_field_error, wrong)), _conflicts_among(valid, invalid), valid)


def _field_error(error: ErrorDetails) -> FieldError:
    return FieldError(place_of(error), message_of(error))


def _conflicts_in(found: list[ErrorDetails]) -> tuple[Conflict, ...]:
    return tuple(conflict for each in found for conflict in each.get("ctx", {}).get("conflicts", ()))


def _conflicts_among(valid: Data, invalid: set[Loc]) -> tuple[Conflict, ...]:
    """The conflicts between the valid fields, without those that compare an invalid one."""
    completed: Data = {"version": 1, "reference": "-", "clips": [{}]} | valid
    completed["clips"] = [{"prompt": "-"} | clip for clip in completed["clips"]]
    try:
        schema.Storyboard.model_validate(completed)
    except ValidationError as error:
        return tuple(
            conflict
            for conflict in _conflicts_in(error.errors(include_url=False))
            if not any(
                loc[:length] in invalid for loc in conflict.compared for length in range(1, len(loc) + 1)
            )
        )
    return ()


def _without(data: Data, invalid: set[Loc]) -> Data:
    """A copy without the invalid fields. A clip that is no mapping becomes an empty one."""

    def without(value: Any, place: Loc) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: each for key, each in value.items() if (*place, key) not in invalid}

    valid: Data = {key: without(value, (key,)) for key, value in data.items() if (key,) not in invalid}
    if "clips" in valid:
        valid["clips"] = [
            {} if ("clips", index) in invalid else without(clip, ("clips", index))
            for index, clip in enumerate(valid["clips"])
        ]
    return valid


def place_of(error: ErrorDetails) -> Loc:
    """Where an error is, without the tags that pydantic adds for variants of a field and for keys."""
    loc = error["loc"]
    if loc[0] == "clips" and loc[2:3] in (("transition",), ("caption",)):
        return (*loc[:3], *loc[4:])
    return loc[:2] if loc[0] == "let" else loc


def fields_at(parent: Loc) -> tuple[str, ...]:
    """The names of the fields that a part of the board has."""
    return tuple(_fields_of(_part_name(parent)))


def _fields_of(part: str) -> Mapping[str, FieldInfo]:
    fields = PARTS[part].model_fields if part in PARTS else {}
    fields = {field.alias or name: field for name, field in fields.items()}
    return fields | cut_schema.Dip.model_fields if part == "clips.transition" else fields


def _part_name(loc: Loc) -> str:
    """The name in `PARTS`: the place without indices."""
    return ".".join(step for step in loc if isinstance(step, str))


def message_of(error: ErrorDetails) -> str:
    """A pydantic error as a message for an author: the value, and what to do about it."""
    kind, value, loc = error["type"], error["input"], place_of(error)
    if kind == "extra_forbidden":
        return _unknown_field(loc)
    if kind == "missing":
        return f"is missing; add it, as {_example(loc, None)}"
    if isinstance(value, Refused):
        return value.what
    if kind == "wrong":
        return error["msg"]
    template = _MESSAGES.get(kind, "{got} cannot be used here; write it as {example}")
    if loc[0] == "let" and kind == "string_pattern_mismatch":
        template = "{got} is not a name; use A-Z a-z 0-9 _, starting with a letter or _"
    if kind == "tuple_type" and loc == ("clips",):
        template = "{got} is not a list; start every clip with a dash, as `- prompt: ...`"
    if kind == "model_type" and issubclass(PARTS.get(_part_name(loc), BaseModel), cut_schema.ShorthandPart):
        template = "{got} is neither text nor a mapping; write it as {example}"
    if kind == "string_type" and isinstance(value, dict):
        template = "{got} is not text; write it as {example}, and put text that starts with {{ in quotes"
    limits = {
        key: f"{limit:g}" if isinstance(limit, float) else limit
        for key, limit in error.get("ctx", {}).items()
    }
    example = _example(loc, _corrected(kind, value))
    return template.format(got=format_value(value), example=example, choices=_choices(error), **limits)


_MESSAGES = {
    "string_type": "{got} is not text; write it as {example}",
    "string_pattern_mismatch": "{got} is not an id; use up to 64 of A-Z a-z 0-9 . _ -, "
    "starting with a letter or digit",
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
"""Message templates by pydantic's type of error."""


def _corrected(kind: str, value: object) -> object:
    """A value of the wrong type as one of the right type; None when it cannot be guessed."""
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f'"{format_value(value)}"'
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind in ("int_type", "float_type") and isinstance(value, str):
        number = scalar(value)
        return number if isinstance(number, int | float) and not isinstance(number, bool) else None
    return None


def _choices(error: ErrorDetails) -> str:
    """The words that a field accepts, and the one that was probably meant."""
    choices = re.findall(r"'([^']+)'", str(error.get("ctx", {}).get("expected", "")))
    listed = ", ".join(choices)
    if _part_name(place_of(error)) == "clips.transition":
        listed += ", {fade: 0.5s}, {dip: 1s}"
        if instead := other_transition(error["input"]):
            return f"{listed}; {instead}"
    meant = nearest(error["input"], choices) if isinstance(error["input"], str) else ""
    return f'{listed}; did you mean "{meant}"?' if meant else f"{listed}; use one of them"


def _unknown_field(loc: Loc) -> str:
    """What to do about a name that a part of the board does not have."""
    name, parent = str(loc[-1]), _part_name(loc[:-1])
    if _part_name(loc) in schema.NOT_YET:
        return f"`{name}` is not supported yet; remove it"
    names = fields_at(loc[:-1])
    meant = nearest(name, names)
    if parent == "clips.transition" and (name in names or not meant):
        both = "a transition has either a `fade` or a `dip`; keep one of them"
        unknown = f"is not a field of the format; {other_transition(name) or TRANSITIONS}"
        return both if name in names else unknown
    if meant and not other_name(name):
        return f"is not a field of the format; did you mean `{meant}`?"
    homes = [part for part in HOMES if part != parent and name in PARTS[part].model_fields]
    if homes:
        home = {"": "at the top level", "clips": "in a clip"}.get(homes[0], f"under `{homes[0]}:`")
        return f"does not belong here; write it {home}"
    if elsewhere := other_name(name):
        return f"is not a field of the format; {elsewhere}"
    return f"is not a field of the format; use one of {', '.join(names)}"


def _example(loc: Loc, value: object) -> str:
    """A field as it can be written, in backticks: with the value, else with the schema's example."""
    if loc[-2:-1] == ("clips",):
        return "`- prompt: ...`"
    if isinstance(loc[-1], int):
        return f"`- {_as_yaml(_schema_example(loc[:-1])[0])}`"
    name = loc[-1] if loc[-1].isprintable() else format_value(loc[-1])
    return f"`{name}: {_as_yaml(_schema_example(loc) if value is None else value)}`"


def _schema_example(loc: Loc) -> Any:
    """A field's example in the schema, else its default."""
    info = _fields_of(_part_name(loc[:-1])).get(str(loc[-1]))
    if info is None:
        return None
    return info.examples[0] if info.examples else info.default


def _as_yaml(value: object) -> str:
    """An example as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_yaml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_as_yaml(each) for each in value) + "]"
    return value if isinstance(value, str) else format_value(value)
