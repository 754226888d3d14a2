"""Base models, types of the values in a storyboard, and how messages quote them."""

from __future__ import annotations

import difflib
import json
import math
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Part(BaseModel):
    """A mapping with known fields only, of the declared types; frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class JsonModel(BaseModel):
    """JSON that svi-story prints or writes; frozen. Fields that another version has besides are ignored."""

    model_config = ConfigDict(frozen=True)


Loc = tuple[str | int, ...]
"""A place inside a board: `("clips", 3, "frames")`."""

_MOST_CHARACTERS = 60
_LONGEST_TYPO = 64
_SURROGATE = re.compile("[\ud800-\udfff]")
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_FORBIDDEN_IN_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SIMPLE_KEY = re.compile(r"[\w<>-]{1,64}")


def format_value(value: object) -> str:
    """A value for a message: short, on one line, and without terminal control characters."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 10**24:
        return f"a number of {int(abs(value).bit_length() * 0.30103) + 1} digits"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        short = value if len(value) <= _MOST_CHARACTERS else value[: _MOST_CHARACTERS - 1] + "…"
        return _escaped(json.dumps(short, ensure_ascii=False))
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return _escaped(str(value))[:_MOST_CHARACTERS]


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def format_path(loc: Loc) -> str:
    """A place as text: `clips[3].frames`."""
    parts: list[str] = []
    for step in loc:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        else:
            name = step if _SIMPLE_KEY.fullmatch(step) else format_value(step)
            parts.append(f".{name}" if parts else name)
    return "".join(parts)


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice that a mistyped word probably means; empty when none is close."""
    if len(word) > _LONGEST_TYPO:
        return ""
    found = difflib.get_close_matches(word.lower(), list(choices), cutoff=0.66)
    return min(found, key=lambda choice: choice[:1] != word[:1].lower(), default="")


def joined_surrogates(text: str) -> str:
    """Text with each pair of surrogates (JSON's `\\ud83d\\ude00`) replaced by its character."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def text_problem(text: str, *, one_line: bool = False) -> str:
    """Why text cannot be used: it contains a control character or half a surrogate pair. Else empty."""
    match = (_FORBIDDEN_IN_LINE if one_line else _FORBIDDEN).search(text)
    if match is None:
        return ""
    code = ord(match.group())
    kind = "a line break" if match.group() in "\n\r\u2028\u2029" else "a control character"
    if _SURROGATE.match(match.group()):
        kind = "an unpaired surrogate"
    return f"contains {kind} (U+{code:04X}); remove it"


def blank(text: str) -> bool:
    """Whether it has no visible character."""
    return not any(c.isprintable() and not c.isspace() for c in text)


FPS_RANGE = (1, 240)
_FPS_PARTS = 1_000_000
LONGEST = Fraction(3600)

_BROADCAST = tuple(Fraction(1000 * whole, 1001) for whole in (24, 30, 48, 60, 120, 240))
_ROUNDED = Fraction(1, 100)
"""A decimal this close to a broadcast rate is that rate, rounded: 23.976, 23.98 and 23.97 are 24000/1001."""

_FPS = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
_DURATION = re.compile(r"(-?[0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|s|m|h)")
_UNITS = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600)}


def wrong(what: str) -> PydanticCustomError:
    """An error whose message reaches the author unchanged."""
    return PydanticCustomError("wrong", "{what}", {"what": what})


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and not a bool."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]  # narrowed by type()


def exactly(value: float) -> Fraction:
    """The number that was written: 0.1 is a tenth, not the nearest binary fraction."""
    return Fraction(repr(value))


def frame_rate(value: object) -> Fraction:
    """15, 12.5, "24000/1001" or a Fraction, between 1 and 240."""
    rate = _written_rate(value)
    low, high = FPS_RANGE
    if not low <= rate <= high:
        raise wrong(
            f"{format_value(value)} is not from {low} to {high} frames per second; use a rate in between"
        )
    if max(rate.numerator, rate.denominator) > _FPS_PARTS:
        plain = rate.limit_denominator(1001)
        raise wrong(f"{format_value(value)} is finer than a video file can store; use {plain}")
    return rate


def _written_rate(value: object) -> Fraction:
    if isinstance(value, Fraction):
        return value
    if isinstance(value, int | float) and is_number(value):
        return _checked_rate(value)
    match = _FPS.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[2]) == 0:
        raise wrong(f"{format_value(value)} is not a frame rate; write 15, or a fraction, as 24000/1001")
    return Fraction(int(match[1]), int(match[2]))


def _checked_rate(value: float) -> Fraction:
    rate = exactly(value)
    meant = next((known for known in _BROADCAST if abs(rate - known) < _ROUNDED), None)
    if meant:
        raise wrong(f"{format_value(value)} is a rounded frame rate, and the film would drift; use {meant}")
    return rate


def duration(value: object) -> Fraction:
    """Seconds from 2.5, "2.5s", "400ms", "2m", "1h" or a Fraction: more than 0, at most an hour."""
    seconds = _written_duration(value)
    if seconds <= 0:
        raise wrong(f"{format_value(value)} is not more than 0; write seconds, as 5s or 0.5s")
    if seconds > LONGEST:
        raise wrong(f"{format_value(value)} is longer than an hour; write 1h or less")
    return seconds


def clip_duration(value: object) -> Fraction | Literal["voice"]:
    """As a duration, or `voice`."""
    return "voice" if value == "voice" else duration(value)


def delay(value: object) -> Fraction:
    """Seconds as in a duration, or 0."""
    seconds = _written_duration(value)
    if seconds < 0:
        raise wrong(f"{format_value(value)} is less than 0; write seconds, as 0.5s, or 0")
    return Fraction(0) if seconds == 0 else duration(value)


def _written_duration(value: object) -> Fraction:
    if isinstance(value, Fraction):
        return value
    if isinstance(value, int | float) and is_number(value):
        return exactly(value)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise wrong(f"{format_value(value)} is not a duration; write seconds, as 5s or 2.5s")
    return Fraction(match[1]) * _UNITS[match[2]]


LONGEST_TEXT = 10_000
"""Characters. The text encoder reads 512 tokens; a board from a third party must not fill the memory."""


def _text(value: str) -> str:
    if len(value) > LONGEST_TEXT:
        raise wrong(f"has {len(value)} characters, more than {LONGEST_TEXT}; the model reads about 2,000")
    found = text_problem(value)
    if found:
        raise wrong(found)
    return value


def short_text(most: int) -> Callable[[str], str]:
    """A validator for text on the picture: not blank, and at most `most` characters."""

    def check(value: str) -> str:
        if blank(value):
            raise wrong(f"{format_value(value)} is blank; write something, or remove the line")
        if len(value) > most:
            raise wrong(f"has {len(value)} characters, more than {most}; shorten it")
        return value

    return check


def _prompt(value: str) -> str:
    if blank(value):
        raise wrong(f"{format_value(value)} is blank; describe what is seen")
    return _text(value)


def _one_line(value: str) -> str:
    if blank(value):
        raise wrong(f"{format_value(value)} is blank; write something, or remove the line")
    found = text_problem(value, one_line=True)
    if found:
        raise wrong(found)
    return value


def _either(*kinds: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": list(kinds)})


FrameRate = Annotated[
    Fraction,
    PlainValidator(frame_rate),
    _either(
        {"type": "number", "minimum": FPS_RANGE[0], "maximum": FPS_RANGE[1]},
        {"type": "string", "pattern": f"^{_FPS.pattern}$"},
    ),
]
Duration = Annotated[
    Fraction,
    PlainValidator(duration),
    _either(
        {"type": "number", "exclusiveMinimum": 0, "maximum": int(LONGEST)},
        {"type": "string", "pattern": f"^{_DURATION.pattern.replace('-?', '')}$"},
    ),
]
Delay = Annotated[
    Fraction,
    PlainValidator(delay),
    _either(
        {"type": "number", "minimum": 0, "maximum": int(LONGEST)},
        {"type": "string", "pattern": f"^{_DURATION.pattern.replace('-?', '')}$"},
    ),
]
ClipDuration = Annotated[
    Fraction | Literal["voice"],
    PlainValidator(clip_duration),
    _either(
        {"type": "number", "exclusiveMinimum": 0, "maximum": int(LONGEST)},
        {"type": "string", "pattern": f"^({_DURATION.pattern.replace('-?', '')}|voice)$"},
    ),
]
PassFrames = Annotated[int, Field(ge=5, le=1025)]
Text = Annotated[str, AfterValidator(_text)]
Prompt = Annotated[str, AfterValidator(_prompt), WithJsonSchema({"type": "string", "pattern": r"\S"})]
Line = Annotated[str, AfterValidator(_one_line), WithJsonSchema({"type": "string", "pattern": r"^.*\S.*$"})]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
