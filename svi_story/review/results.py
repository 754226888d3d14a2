"""The results of a review, of a board's finished clips or of any film file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from svi_story.review.thresholds import LEAST_JUDGED, TABLE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction

    from svi_story.cache.entry import Entry
    from svi_story.media.video import VideoInfo
    from svi_story.plan.model import FilmPlan, Shot
    from svi_story.review.analysis import Run, Seam
    from svi_story.review.degradation import Degradation, What
    from svi_story.review.graphics import Picture
    from svi_story.review.measures import Floats
    from svi_story.review.steps import Retiming
    from svi_story.review.thresholds import Threshold

MAX_SECONDS = 366 * 24 * 3600
"""Sampling times above a year are ignored: they are forged."""

JoinKind = Literal["continue", "cut", "fade", "dip"]


@dataclass(frozen=True)
class Finding:
    """One warning."""

    kind: str
    clip: int
    """0-based number of the clip."""
    segment: int
    frame: int
    """Where it starts, in frames of the film at the board's rate."""
    within: int
    """The same, counted within the clip."""
    frames: int
    value: float
    remedies: tuple[str, ...]
    what: What | None = None
    """In what way the film degrades; None for other kinds."""
    since: float | None = None
    """Seconds of the film from which on it degrades; None for other kinds."""

    @property
    def threshold(self) -> Threshold:
        """The threshold that the value exceeds."""
        return TABLE[self.what or self.kind]


@dataclass(frozen=True)
class JoinReview:
    """Where a segment follows another."""

    clip: int
    segment: int
    frame: int
    """The first frame after it, in the film."""
    kind: JoinKind
    """continue, cut, fade or dip; continue also between the segments of a clip."""
    seam: Seam | None
    """None where it cannot be measured, and where a new chain starts."""


@dataclass(frozen=True)
class TakeReview:
    """One of several takes of a clip, measured as if the film used it, but for its joins."""

    number: int
    picked: bool
    clip: ClipReview
    findings: tuple[Finding, ...]
    loop: Picture | None
    """What is finished of it, as a small animation; None where nothing is, or there are too many takes."""


@dataclass(frozen=True)
class ClipReview:
    """One clip of a board, or one part of a film file."""

    number: int
    """0-based."""
    id: str
    start: int
    """Its first frame in the film, at the board's rate, title card included."""
    frames: int
    starts_chain: bool
    pictures: tuple[Picture, ...]
    """First, middle and last finished frame."""
    strip: tuple[Picture, ...]
    """A few small ones, evenly spaced, for the page's contact sheet."""
    shot: Shot | None = None
    """None for a film file, as are the following."""
    entries: tuple[Entry | None, ...] = ()
    """One for each segment."""
    run: Run | None = None
    """The run that contains its frames; None where none is finished."""
    in_run: slice = field(default_factory=lambda: slice(0, 0))
    """Its frames in the run."""
    takes: tuple[TakeReview, ...] = ()
    """By number, the one that the film uses among them; none where there is one only."""

    @property
    def missing(self) -> int:
        """Segments that are not finished."""
        return sum(entry is None for entry in self.entries)

    @property
    def seconds_spent(self) -> tuple[float, float] | None:
        """Seconds of sampling and of decoding of the finished segments; None where they were not recorded.

        Entries may be untrusted, so implausible numbers are ignored.
        """
        pairs = []
        for entry in self.entries:
            notes = entry.manifest.get("notes") if entry else None
            if isinstance(notes, dict):
                sampling = _seconds(notes.get("sampling_seconds"))
                decoding = _seconds(notes.get("decoding_seconds"))
                if sampling is not None and decoding is not None:
                    pairs.append((sampling, decoding))
        return (sum(a for a, _ in pairs), sum(b for _, b in pairs)) if pairs else None


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SECONDS:
        return float(value)
    return None


@dataclass(frozen=True)
class RunReview:
    """Consecutive finished clips of one chain, or a whole film file. All times are seconds of the film."""

    clips: tuple[int, ...]
    """Their 0-based numbers."""
    start: float
    stop: float
    degradation: Degradation
    first: Picture | None
    """A frame of its beginning, and one of its worst window; None where nothing degrades."""
    worst: Picture | None


class Facts(NamedTuple):
    """What only a review of a film file knows."""

    info: VideoInfo
    retiming: Retiming | None
    is_variable: bool
    """Whether the time between frames varies."""
    damage: str
    """What could not be read; empty where all could."""
    sampled: Mapping[str, Floats]
    """Measures of the whole film by name, each evenly spaced."""


@dataclass(frozen=True)
class FilmReview:
    """All results for a film."""

    title: str
    name: str
    """The file name of the board or of the film."""
    fps: Fraction
    width: int
    height: int
    frames: int
    """Of the film at the board's rate, cards included."""
    clips: tuple[ClipReview, ...]
    joins: tuple[JoinReview, ...]
    findings: tuple[Finding, ...]
    runs: tuple[RunReview, ...]
    plan: FilmPlan | None = None
    """None for a film file."""
    facts: Facts | None = field(default=None, compare=False)
    """None for a board."""

    @property
    def verdict(self) -> Literal["degraded", "not degraded", "cannot tell"]:
        """Whether any run degrades, or could not be judged."""
        if any(run.degradation.found for run in self.runs):
            return "degraded"
        return "not degraded" if self.judged_share >= LEAST_JUDGED else "cannot tell"

    @property
    def judged_share(self) -> float:
        """Share of the windows of all runs that could be judged."""
        judged = [each for run in self.runs for each in run.degradation.late_windows]
        return sum(each.judged for each in judged) / len(judged) if judged else 0.0

    @property
    def seconds(self) -> float:
        """The length of the film."""
        return self.frames / float(self.fps)

    @property
    def uniform_anchors(self) -> list[str]:
        """Ids of the clips whose anchor shows one colour only: nothing can be compared with it."""
        return [clip.id for clip in self.clips if clip.run and clip.run.anchor.is_uniform]
