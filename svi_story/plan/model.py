"""The resolved film as frozen values without optionals: nothing after this asks "is it set?"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fractions import Fraction
    from pathlib import Path

Variant = Literal["2.0", "2.0-pro"]
Fit = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True)
class Size:
    """A picture's size in pixels; both sides are multiples of 16."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Anchor:
    """The reference image of a chain, as the model sees it."""

    path: Path
    size: Size
    fit: Fit
    pixels: str
    """sha256 of the RGB bytes after fit (height x width x 3, uint8, row-major)."""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance scale of each expert."""

    high: float
    low: float


@dataclass(frozen=True)
class Lora:
    """A LoRA besides the variant's own pair, with its strength on each expert; 0 leaves the expert alone."""

    path: Path
    high: float
    low: float

    def strength(self, expert: Literal["high", "low"]) -> float:
        """Its strength on one expert."""
        return self.high if expert == "high" else self.low


@dataclass(frozen=True)
class Distill:
    """The distillation pair of a fast preset: how strongly, and which files."""

    high: float
    """Strength on the high-noise expert."""
    low: float
    """Strength on the low-noise expert."""
    files: tuple[Path, Path] | None
    """High and low, where the board names them; None for the models folder's own."""


@dataclass(frozen=True)
class Sampler:
    """Everything that steers the sampling of one segment, besides its texts, seed and pictures."""

    variant: Variant
    steps: int
    guidance: Guidance
    shift: float
    boundary: float
    motion_latents: int
    distill: Distill | None = None
    """None: the preset samples without distillation."""


@dataclass(frozen=True)
class Segment:
    """One pass of the model."""

    clip: str
    """The clip's id."""
    index: int
    """0-based place within the clip."""
    prompt: str
    """The joined prompt: the clip's, a space, the board's style."""
    negative_prompt: str
    seed: int
    size: Size
    fps: Fraction
    frames: int
    """What the model makes: 4k+1."""
    overlap: int
    """Leading frames that repeat the parent's last ones and never reach the film; 0 where a chain starts."""
    first_frame: int
    """Frame 0's place within the clip; negative where the overlap reaches back into the clip before."""
    anchor: Anchor
    sampler: Sampler
    loras: tuple[Lora, ...] = ()
    """The board's, then the clip's."""

    @property
    def contributes(self) -> int:
        """Frames that reach the film (before fades overlap them)."""
        return self.frames - self.overlap


@dataclass(frozen=True)
class Shot:
    """One clip of the board, resolved: the segments that make it and how it follows the one before."""

    id: str
    prompt: str
    seed: int
    asked_frames: int
    """The frames that the author's duration or frames comes to, before the model's grid."""
    segments: tuple[Segment, ...]
    starts_chain: bool
    fade: int = 0
    """Frames this clip shares with the one before; 0 unless `transition: {fade: ...}`."""

    @property
    def frames(self) -> int:
        """Frames this clip contributes (before fades overlap them)."""
        return sum(segment.contributes for segment in self.segments)


@dataclass(frozen=True)
class FilmPlan:
    """One board, resolved."""

    board: Path
    title: str
    size: Size
    fps: Fraction
    engine: str
    crf: int
    digest: str
    """sha256 of the board file's bytes."""
    shots: tuple[Shot, ...]

    @property
    def frames(self) -> int:
        """Frames of the finished film."""
        return sum(shot.frames - shot.fade for shot in self.shots)

    @property
    def seconds(self) -> float:
        """Length of the finished film in seconds."""
        return float(self.frames / self.fps)
