"""Everything the program needs to know about an engine without starting it.

A new engine is a module with a `SPEC`, a package that implements it, and its line in `_BUILT_IN`.
"""

from __future__ import annotations

from svi_story.enginespec import animatic, svi
from svi_story.enginespec.base import KERNELS, PRECISIONS, EngineOptions, EngineSpec, Training

__all__ = [
    "DEFAULT",
    "KERNELS",
    "PRECISIONS",
    "EngineOptions",
    "EngineSpec",
    "Training",
    "engine_names",
    "register",
    "spec_of",
    "specs",
]

_BUILT_IN = (svi.SPEC, animatic.SPEC)

_SPECS: dict[str, EngineSpec] = {}

DEFAULT = svi.SPEC.name
"""The engine of a board that names none."""


def register(spec: EngineSpec) -> None:
    """Make an engine known. Must come before the storyboard schema is imported, which lists its fields.

    Raises ValueError for a name that is taken.
    """
    if spec.name in _SPECS:
        raise ValueError(f"there is an engine named {spec.name} already")
    _SPECS[spec.name] = spec


def specs() -> tuple[EngineSpec, ...]:
    """All engines."""
    return tuple(_SPECS.values())


def engine_names() -> tuple[str, ...]:
    """The names of all engines."""
    return tuple(_SPECS)


def spec_of(name: str) -> EngineSpec:
    """The engine of that name. Raises KeyError."""
    return _SPECS[name]


for _spec in _BUILT_IN:
    register(_spec)
