"""What happened, as frozen values. A reporter is a callable; nothing below the CLI prints."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """Something that happened."""


@dataclass(frozen=True)
class Warned(Event):
    """Something the user should know; the work goes on."""

    message: str


@dataclass(frozen=True)
class BoardStarted(Event):
    """A board's rendering starts."""

    board: Path
    film: Path
    clips: int
    segments: int
    to_render: int


@dataclass(frozen=True)
class SegmentReused(Event):
    """A segment was made already."""

    board: Path
    clip: str
    segment: int
    key: str


@dataclass(frozen=True)
class SegmentStarted(Event):
    """A segment's sampling starts."""

    board: Path
    clip: str
    segment: int
    key: str
    frames: int


@dataclass(frozen=True)
class StepDone(Event):
    """One sampling step is done."""

    board: Path
    clip: str
    segment: int
    step: int
    steps: int


@dataclass(frozen=True)
class SegmentDone(Event):
    """A segment is in the cache."""

    board: Path
    clip: str
    segment: int
    key: str
    seconds: float


@dataclass(frozen=True)
class ClipDone(Event):
    """All segments of a clip are in the cache."""

    board: Path
    clip: str


@dataclass(frozen=True)
class PreviewDone(Event):
    """The film of what exists so far was refreshed."""

    board: Path
    preview: Path
    frames: int


@dataclass(frozen=True)
class FilmDone(Event):
    """The film is complete, counted and in place."""

    board: Path
    film: Path
    frames: int
    seconds: float
    """Length of the film."""
    made: bool
    """False when an up-to-date film was there already."""


@dataclass(frozen=True)
class BoardFailed(Event):
    """A board could not be finished; what was rendered is kept."""

    board: Path
    message: str


Reporter = Callable[[Event], None]


def as_json(event: Event) -> dict[str, object]:
    """An event as a JSON object: `{"event": "step_done", ...}`, paths as text."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
    fields = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(event).items()}
    return {"event": name, **fields}
