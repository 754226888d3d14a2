"""Content addresses. Same key, same machine, same versions: same frames."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svi_story.plan.model import FilmPlan, Segment

KEY_VERSION = 1

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


class Identity(Protocol):
    """What an engine tells the plan about itself, without loading anything."""

    @property
    def name(self) -> str:
        """The engine's name in a board."""
        ...

    @property
    def revision(self) -> int:
        """Raised whenever the same inputs make other frames than before."""
        ...

    def inputs(self, segment: Segment) -> Mapping[str, Json]:
        """The inputs that this engine's frames of the segment depend on, and no others."""
        ...


@dataclass(frozen=True)
class Task:
    """A segment with its content address."""

    segment: Segment
    key: str
    """64 hex digits."""
    parent: str | None
    """The key of the segment it continues from; None where a chain starts."""
    inputs: Mapping[str, Json]
    """All that went into the key."""


def canonical(value: object) -> bytes:
    """The one spelling of a JSON value: sorted keys, no white space, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def key_of(inputs: Mapping[str, Json]) -> str:
    """The sha256 (hex) of canonical inputs."""
    return hashlib.sha256(canonical(inputs)).hexdigest()


def tasks_of(plan: FilmPlan, identity: Identity) -> tuple[tuple[Task, ...], ...]:
    """Every segment of a film with its key, clip by clip; a segment's key holds its parent's."""
    clips = []
    last: Task | None = None
    for shot in plan.shots:
        if shot.starts_chain:
            last = None
        tasks = []
        for segment in shot.segments:
            last = _task(segment, last.key if last else None, identity)
            tasks.append(last)
        clips.append(tuple(tasks))
    return tuple(clips)


def _task(segment: Segment, parent: str | None, identity: Identity) -> Task:
    inputs: dict[str, Json] = {
        "key_version": KEY_VERSION,
        "engine": identity.name,
        "revision": identity.revision,
        "inputs": dict(identity.inputs(segment)),
        "parent": parent,
    }
    return Task(segment, key_of(inputs), parent, inputs)
