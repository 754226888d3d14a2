"""Settings of a diffusion sampler: as a board writes them, and resolved for one segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema  # noqa: TC002 - pydantic reads the annotation

from svi_story.fields import Line, Part, PassFrames, format_value, is_number, wrong

if TYPE_CHECKING:
    from pathlib import Path

Variant = Literal["2.0", "2.0-pro"]

LARGEST_GUIDANCE = 100.0


class GuidanceSettings(Part):
    """How strongly the prompt steers, for each expert; one number means both."""

    high: float = Field(
        ge=0, le=LARGEST_GUIDANCE, examples=[4.0], description="Guidance of the high-noise expert."
    )
    low: float = Field(
        ge=0, le=LARGEST_GUIDANCE, examples=[3.5], description="Guidance of the low-noise expert."
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        both = handler.resolve_ref_schema(handler(core))
        return {"anyOf": [{"type": "number", "minimum": 0, "maximum": LARGEST_GUIDANCE}, both]}


def _guidance(value: object) -> object:
    if isinstance(value, dict | GuidanceSettings):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(f"{format_value(value)} is not a number; write 5.0, or {{high: 4.0, low: 3.5}}")
    if not is_number(value) or not 0 <= value <= LARGEST_GUIDANCE:
        raise wrong(f"{format_value(value)} is not between 0 and {LARGEST_GUIDANCE:g}; SVI's authors use 5.0")
    return GuidanceSettings(high=value, low=value)


def _variant(value: object) -> object:
    return "2.0" if type(value) is float and value == 2.0 else value


GuidanceField = Annotated[GuidanceSettings, BeforeValidator(_guidance)]


Steps = Annotated[int, Field(ge=1, le=1000)]


class LoraSettings(Part):
    """A LoRA besides the variant's own pair."""

    path: Line = Field(
        examples=["loras/style.safetensors"],
        description="A safetensors file, relative to the board.",
    )
    high: float = Field(1.0, ge=-10, le=10, description="Strength on the high-noise expert; 0: unused.")
    low: float = Field(1.0, ge=-10, le=10, description="Strength on the low-noise expert; 0: unused.")


LorasField = Annotated[tuple[LoraSettings, ...], Field(strict=False)]


class DistillPair(Part):
    """Two LoRA files that let the model sample in few steps."""

    high: Line = Field(description="For the high-noise expert, relative to the board's folder.")
    low: Line = Field(description="For the low-noise expert, relative to the board's folder.")


class SamplingSettings(Part):
    """Under `engine:` for a diffusion model. What is left open comes from the preset."""

    variant: Annotated[
        Variant,
        BeforeValidator(_variant),
        WithJsonSchema({"enum": ["2.0", "2.0-pro", 2.0]}),
    ] = Field("2.0", description="The variant of Stable Video Infinity.")
    preset: Literal["quality", "fast", "draft"] = Field(
        "quality", description="Fills in every sampler setting that is left open."
    )
    steps: Steps | None = Field(None, examples=[50], description="Sampling steps. Default: the preset's.")
    guidance: GuidanceField | None = Field(
        None,
        examples=[5.0, {"high": 4.0, "low": 3.5}],
        description="How strongly the prompt steers: one number, or one per expert. Default: the preset's.",
    )
    shift: float | None = Field(
        None, gt=0, le=1000, examples=[5.0], description="Shift of the noise schedule. Default: the preset's."
    )
    boundary: float | None = Field(
        None,
        ge=0,
        le=1,
        examples=[0.875],
        description="Where in the schedule (1 to 0) the low-noise expert takes over. Default: the preset's.",
    )
    motion_latents: int = Field(
        1, ge=1, le=64, description="Latents of the clip before that a 2.0-pro segment continues from."
    )
    max_frames: PassFrames = Field(
        81, description="The most frames of one model pass, 4k+1. The model was trained at 81."
    )
    loras: LorasField = Field(
        (),
        examples=[[{"path": "loras/style.safetensors", "high": 0.8, "low": 1.0}]],
        description="LoRAs for every clip, besides the variant's own pair.",
    )
    distill: DistillPair | None = Field(
        None,
        examples=[{"high": "loras/quick_high.safetensors", "low": "loras/quick_low.safetensors"}],
        description="The pair of the fast presets. Default: LightX2V, from the models folder.",
    )


class ClipSampling(Protocol):
    """What a clip may set for itself; None: as the board has it."""

    @property
    def guidance(self) -> GuidanceSettings | None:
        """As `SamplingSettings.guidance`."""
        ...

    @property
    def steps(self) -> int | None:
        """As `SamplingSettings.steps`."""
        ...


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
