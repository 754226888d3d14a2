"""Stable Video Infinity 2.0 and 2.0 Pro on Wan 2.2 I2V A14B. Source of the presets: the authors' scripts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from svi_story.enginespec.base import EngineSpec, Training
from svi_story.enginespec.sampling import Distill, Guidance, Sampler, SamplingSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from svi_story.enginespec.base import OpenFile
    from svi_story.enginespec.sampling import ClipSampling

GRID = 4
"""Frames per latent: the VAE's temporal stride."""

STANDARD = (832, 480)
"""Pixels that the model was trained at."""


@dataclass(frozen=True)
class Preset:
    """One coherent set of sampler settings."""

    steps: int
    guidance: Guidance
    shift: float
    boundary: float
    size: tuple[int, int] = STANDARD
    distill: Distill | None = None


LIGHTX2V = Distill(high=0.5, low=1.0, files=None)
"""The strengths of the authors' ComfyUI graphs; more on the high-noise expert slows motion down."""

PRESETS = {
    # The authors' script: 50 Euler steps with guidance.
    "quality": Preset(steps=50, guidance=Guidance(5.0, 5.0), shift=5.0, boundary=0.875),
    # With the LightX2V distillation pair.
    "fast": Preset(steps=6, guidance=Guidance(1.5, 1.5), shift=8.0, boundary=0.9, distill=LIGHTX2V),
    # The same with fewer steps, at half the size in each direction.
    "draft": Preset(
        steps=4, guidance=Guidance(1.5, 1.5), shift=8.0, boundary=0.9, size=(416, 240), distill=LIGHTX2V
    ),
}


def overlap(settings: SamplingSettings) -> int:
    """Frames to drop at a join: the carried last one (2.0), or the motion latents' and one more (2.0-pro)."""
    return 1 if settings.variant == "2.0" else 1 + GRID * settings.motion_latents


def continued(settings: SamplingSettings) -> int:
    """Pro: a segment that is continued must hold the motion latents and one more."""
    return GRID * settings.motion_latents + 1 if settings.variant == "2.0-pro" else 0


def options(settings: SamplingSettings, clip: ClipSampling, open_file: OpenFile) -> Sampler:
    """The sampler of a clip: its own settings, else the board's, else the preset's."""
    preset = PRESETS[settings.preset]
    scale = clip.guidance or settings.guidance or preset.guidance
    distill = preset.distill
    if distill and settings.distill:
        distill = replace(distill, files=(open_file(settings.distill.high), open_file(settings.distill.low)))
    return Sampler(
        variant=settings.variant,
        steps=clip.steps or settings.steps or preset.steps,
        guidance=Guidance(scale.high, scale.low),
        shift=preset.shift if settings.shift is None else settings.shift,
        boundary=preset.boundary if settings.boundary is None else settings.boundary,
        motion_latents=settings.motion_latents,
        distill=distill,
    )


def preset_size(settings: SamplingSettings) -> tuple[int, int]:
    """The size that a preset stands for."""
    return PRESETS[settings.preset].size


def describe(sampler: Sampler) -> Mapping[str, str]:
    """What steered the sampling."""
    high, low = sampler.guidance.high, sampler.guidance.low
    shown = {
        "variant": sampler.variant,
        "steps": str(sampler.steps),
        "guidance": f"{high:g}" if high == low else f"{high:g} / {low:g}",
        "shift": f"{sampler.shift:g}",
        "boundary": f"{sampler.boundary:g}",
    }
    if sampler.variant == "2.0-pro":
        shown["motion latents"] = str(sampler.motion_latents)
    if sampler.distill is not None:
        shown["distilled"] = f"{sampler.distill.high:g} / {sampler.distill.low:g}"
    return shown


def system(sampler: Sampler, model: str) -> str:
    """The trained model, as the film's metadata names it."""
    return f"Stable Video Infinity {sampler.variant} ({model or 'Wan 2.2 I2V A14B'})"


SPEC = EngineSpec(
    name="svi",
    summary="renders with the model",
    implementation="svi_story.engines.svi",
    grid=GRID,
    settings=SamplingSettings,
    size=STANDARD,
    fps=Fraction(15),
    overlap=overlap,
    continued=continued,
    options=options,
    preset_size=preset_size,
    describe=describe,
    system=system,
    training=Training(
        frames=81,
        size=STANDARD,
        shapes=(Fraction(7, 5), Fraction(11, 5)),
        rates=(12, 20),
        steps=20,
    ),
    lints=frozenset(
        {
            *(
                "aspect",
                "cropped-reference",
                "enlarged-reference",
                "few-steps",
                "frame-rate",
                "large-picture",
                "lightx2v-high",
                "long-pass",
            ),
            *("long-prompt", "low-guidance", "short-prompt", "starts-to", "unused-distill"),
        }
    ),
    memory_modes=("resident", "offload", "stream"),
    frame_options=("dtype", "precision", "vae"),
    needs_gpu=True,
    uses_weights=True,
)
