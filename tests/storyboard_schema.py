"""The storyboard's JSON Schema, and as much of a validator as its keywords need."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from svi_story.enginespec.sampling import GuidanceSettings
from svi_story.storyboard.cut_schema import CardSettings, CutSettings, Dip, Fade, MusicSettings, SoundSettings
from svi_story.storyboard.schema import Clip, EngineSettings, LintSettings, Storyboard, json_schema

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = (
    Storyboard,
    EngineSettings,
    Clip,
    GuidanceSettings,
    Fade,
    Dip,
    CutSettings,
    CardSettings,
    MusicSettings,
    SoundSettings,
    LintSettings,
)
SCHEMA = json_schema()
SILENT = {"$defs", "$schema", "default", "description", "examples", "title"}
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
KEYWORDS: dict[str, Callable[[Any, Any], bool]] = {
    "$ref": lambda limit, value: accepts(SCHEMA["$defs"][limit.removeprefix("#/$defs/")], value),
    "anyOf": lambda limit, value: any(accepts(kind, value) for kind in limit),
    "const": lambda limit, value: bool(value == limit),
    "enum": lambda limit, value: value in limit,
    "exclusiveMinimum": lambda limit, value: bool(value > limit),
    "items": lambda limit, value: all(accepts(limit, item) for item in value),
    "maxLength": lambda limit, value: len(value) <= limit,
    "maximum": lambda limit, value: bool(value <= limit),
    "minItems": lambda limit, value: len(value) >= limit,
    "minimum": lambda limit, value: bool(value >= limit),
    "oneOf": lambda limit, value: sum(accepts(kind, value) for kind in limit) == 1,
    "pattern": lambda limit, value: re.search(limit, value) is not None,
    "propertyNames": lambda limit, value: all(accepts(limit, key) for key in value),
    "properties": lambda limit, value: all(accepts(limit[key], value[key]) for key in value if key in limit),
    "required": lambda limit, value: set(limit) <= set(value),
}


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value fits, by the keywords that our schema uses; an unknown keyword fails the test."""
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or isinstance(value, bool) != (kind == "boolean")):
        return False
    others = schema.get("additionalProperties", True)
    if others is False and not set(value) <= set(schema["properties"]):
        return False
    if isinstance(others, dict) and not all(accepts(others, each) for each in value.values()):
        return False
    rest = schema.keys() - SILENT - {"type", "additionalProperties"}
    return all(KEYWORDS[keyword](schema[keyword], value) for keyword in rest)
