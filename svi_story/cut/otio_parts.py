"""The small change of OpenTimelineIO: exact times, references that relink, texts that any editor takes."""

from __future__ import annotations

import os
from dataclasses import asdict, is_dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SPACE = "svi_story"
"""Our key in everybody's metadata."""


def at(count: int, rate: Fraction) -> Any:
    """So many frames or samples, at their rate. OTIO's rates are doubles: the nearest one to the fraction."""
    import opentimelineio as otio

    return otio.opentime.RationalTime(count, float(rate))


def span(start: int, count: int, rate: Fraction) -> Any:
    """A range that starts at one frame or sample and holds so many."""
    import opentimelineio as otio

    return otio.opentime.TimeRange(at(start, rate), at(count, rate))


def reference(path: Path, folder: Path, available: Any) -> Any:
    """A file, as seen from the folder that the timeline lies in: what moves together stays together."""
    import opentimelineio as otio

    way = os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
    return otio.schema.ExternalReference(quote(os.fsencode(way)), available)


def noted(about: Mapping[str, object]) -> dict[str, Any]:
    """Metadata of ours."""
    return {SPACE: plain(about)}


def plain(value: object) -> Any:
    """A value as OTIO's metadata hold it; fractions and paths become text."""
    if isinstance(value, dict):
        return {text(str(name)): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, str | Fraction | os.PathLike):
        return text(str(value))
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    return value


def text(value: str) -> str:
    """Text that fits OTIO's strings: UTF-8 without NUL, which would end it."""
    return value.replace("\0", "").encode("utf-8", "replace").decode()
