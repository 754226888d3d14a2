"""Everything that is wrong with a board's fields, found at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from svi_story.fields import Loc, nearest
from svi_story.storyboard.schema import Storyboard
from svi_story.storyboard.words import names_at, place_of, said

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from svi_story.storyboard.clashes import Clash

Data = dict[str, Any]

MOST_FAULTS = 500
"""Of more wrong fields, the first are told and the rest counted: a stranger's file costs no time."""


@dataclass(frozen=True)
class Fault:
    """Something wrong at one place."""

    loc: Loc
    what: str


@dataclass(frozen=True)
class Checked:
    """A board's fields, looked at one by one and together."""

    story: Storyboard | None
    """None when anything is wrong."""
    faults: tuple[Fault, ...]
    clashes: tuple[Clash, ...]
    sound: Data
    """The written fields that are right by themselves."""


def check(data: Data) -> Checked:
    """Find every wrong field, and every clash between those that are right by themselves."""
    try:
        return Checked(Storyboard.model_validate(data), (), (), data)
    except ValidationError as error:
        found = error.errors(include_url=False)
    if len(found) > MOST_FAULTS:
        rest = Fault(place_of(found[MOST_FAULTS]), f"and {len(found) - MOST_FAULTS} more like these")
        return Checked(None, (*map(_fault, found[:MOST_FAULTS]), rest), (), {})
    meant = {_meant(each) for each in found if each["type"] == "extra_forbidden"}
    wrong = [each for each in found if each["type"] != "clash" and not _is_mistyped(each, meant)]
    if not wrong:
        return Checked(None, (), _clashes(found), data)
    doubtful = {_field(place_of(each)) for each in wrong} | meant
    sound = _without(data, doubtful)
    return Checked(None, tuple(map(_fault, wrong)), _clashes_among(sound, doubtful), sound)


def _fault(error: ErrorDetails) -> Fault:
    return Fault(place_of(error), said(error))


def _is_mistyped(error: ErrorDetails, meant: set[Loc]) -> bool:
    """Whether a missing field is there after all, under a mistyped name."""
    return error["type"] == "missing" and place_of(error) in meant


def _clashes(found: list[ErrorDetails]) -> tuple[Clash, ...]:
    return tuple(clash for each in found for clash in each.get("ctx", {}).get("clashes", ()))


def _clashes_among(sound: Data, doubtful: set[Loc]) -> tuple[Clash, ...]:
    """The clashes of what is left when wrong fields are taken away; none that rests on a wrong field."""
    stand_ins: Data = {"version": 1, "reference": "-", "clips": [{}]} | sound
    stand_ins["clips"] = [{"prompt": "-"} | clip for clip in stand_ins["clips"]]
    try:
        Storyboard.model_validate(stand_ins)
    except ValidationError as error:
        clashes = _clashes(error.errors(include_url=False))
        return tuple(c for c in clashes if not any(_rests_on(need, doubtful) for need in c.needs))
    return ()


def _rests_on(need: Loc, doubtful: set[Loc]) -> bool:
    return any(need[:length] in doubtful for length in range(1, len(need) + 1))


def _field(loc: Loc) -> Loc:
    """The field of a board, a part or a clip that a place belongs to."""
    return loc[:3] if loc[0] == "clips" else loc[:2]


def _meant(unknown: ErrorDetails) -> Loc:
    """The field that a mistyped name was probably meant for; that name itself when there is none."""
    loc = place_of(unknown)
    return (*loc[:-1], nearest(str(loc[-1]), names_at(loc[:-1])) or loc[-1])


def _without(data: Data, doubtful: set[Loc]) -> Data:
    """A copy of the fields that are right by themselves. A clip that is no mapping becomes an empty one."""
    kept: Data = {
        key: _kept(value, (key,), doubtful) for key, value in data.items() if (key,) not in doubtful
    }
    clips = kept.get("clips")
    if clips is not None:
        places = [("clips", index) for index in range(len(clips))]
        kept["clips"] = [
            {} if place in doubtful else _kept(clip, place, doubtful)
            for clip, place in zip(clips, places, strict=True)
        ]
    return kept


def _kept(value: Any, place: Loc, doubtful: set[Loc]) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: each for key, each in value.items() if (*place, key) not in doubtful}
