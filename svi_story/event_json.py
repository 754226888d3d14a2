"""Events as JSON objects, as `--json` prints and run logs keep them."""

from __future__ import annotations

import re
from dataclasses import MISSING, asdict, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from svi_story.events import EngineSettled, Event

if TYPE_CHECKING:
    from collections.abc import Mapping


def json_name(kind: str) -> str:
    """The name of an event in JSON: `StepDone` is `step_done`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()


def as_json(event: Event) -> dict[str, object]:
    """An event as a JSON object: `{"event": "step_done", ...}`, paths as text."""
    values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(event).items()}
    if isinstance(event, EngineSettled):
        values["rung"] = event.memory  # the old name of the field, for programs that read it
    return {"event": json_name(type(event).__name__), **values}


def from_json(found: Mapping[str, Any]) -> Event | None:
    """The event that `as_json` wrote; None for one of another version, or something else."""
    kind, types = _kinds().get(str(found.get("event")), (None, {}))
    if kind is None:
        return None
    optional = {each.name for each in fields(kind) if each.default is not MISSING}
    values = {
        name: _value(found.get(name), wanted)
        for name, wanted in types.items()
        if name in found or name not in optional
    }
    return None if None in values.values() else kind(**values)


@cache
def _kinds() -> dict[str, tuple[type[Event], dict[str, Any]]]:
    """Every kind of event with the types of its fields, by its name in JSON."""
    kinds: list[type[Event]] = [Event]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {json_name(kind.__name__): (kind, get_type_hints(kind)) for kind in kinds[1:]}


def _value(value: Any, wanted: Any) -> Any:
    """A field's value in the type that it has; None where it is of another one."""
    if wanted is Path:
        return Path(value) if isinstance(value, str) else None
    if wanted is float:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if wanted == tuple[str, ...]:
        is_texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
        return tuple(value) if is_texts else None
    return value if type(value) is wanted else None
