"""Cache keys: content addresses of segments. Same key, same machine, same versions: same frames."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from svi_story.plan.model import FilmPlan, Segment

KEY_VERSION = 1

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


class Identity(Protocol):
    """What an engine contributes to cache keys, without loading anything."""

    @property
    def name(self) -> str:
        """The engine's name in a board."""
        ...

    @property
    def revision(self) -> int:
        """Raised whenever the same inputs give other frames than before."""
        ...

    def inputs(self, segment: Segment) -> Mapping[str, Json]:
        """The inputs that this engine's frames of the segment depend on, and no others."""
        ...


@cache
def version_of(package: str) -> str:
    """The version of an installed package, which is looked up once."""
    return version(package)


def canonical(value: object) -> bytes:
    """The canonical encoding of a JSON value: sorted keys, no white space, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "surrogatepass")


def key_of(inputs: Mapping[str, Json]) -> str:
    """The sha256 (hex) of canonical inputs."""
    return hashlib.sha256(canonical(inputs)).hexdigest()


def with_keys(plan: FilmPlan, identity_of: Callable[[str], Identity]) -> FilmPlan:
    """The plan with every segment's key, of all takes; a segment's key includes its parent's.

    `identity_of` gives an engine's identity by the engine's name. Raises InputError when an engine is missing
    something that its frames depend on.
    """

    def keyed(segments: Sequence[Segment], parent: str | None) -> tuple[Segment, ...]:
        found: list[Segment] = []
        for segment in segments:
            identity = identity_of(segment.engine)
            inputs: dict[str, Json] = {
                "key_version": KEY_VERSION,
                "engine": identity.name,
                "revision": identity.revision,
                "inputs": dict(identity.inputs(segment)),
                "parent": parent,
            }
            key = key_of(inputs)
            found.append(replace(segment, key=key, parent=parent, base_key=key, inputs=inputs))
            parent = key
        return tuple(found)

    shots = []
    parent: str | None = None
    base_parent: str | None = None
    for shot in plan.shots:
        if shot.starts_chain:
            parent = base_parent = None
        first, *_ = takes = shot.takes
        base = keyed(first.segments, base_parent)
        found = []
        for take in takes:
            segments = base
            if take is not first or parent != base_parent:
                segments = keyed(take.segments, parent)
                pairs = zip(segments, base, strict=True)
                segments = tuple(replace(segment, base_key=other.key) for segment, other in pairs)
            found.append(replace(take, segments=segments))
        shots.append(shot.with_takes(found))
        parent, base_parent = shots[-1].segments[-1].key, base[-1].key
    return replace(plan, shots=tuple(shots))
