"""When each expert runs and how far each step goes: flow matching with shifted sigmas, Euler.

s_i = 1 - i/n;  sigma = shift * s / (1 + (shift - 1) * s);  timestep = 1000 sigma;  x += v * (sigma' - sigma).
Source: DiffSynth-Studio's FlowMatchScheduler as the SVI authors' scripts call it (float32 throughout).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.engines.base import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from svi_story.engines.svi.layout import Expert
    from svi_story.enginespec.sampling import Sampler
    from svi_story.plan.model import Size

TIMESTEPS = 1000
STRIDE = (4, 8, 8)
"""Frames, rows and columns of pixels that one latent stands for (the first latent for one frame only)."""


@dataclass(frozen=True)
class Step:
    """One step of the sampler."""

    index: int
    expert: Expert
    timestep: float
    """Not rounded."""
    delta: float
    """sigma' - sigma, negative."""
    guidance: float


def sigmas(steps: int, shift: float) -> Tensor:
    """sigma_S, float32, from 1 downwards; the 0 that follows the last is left out."""
    import torch

    s_S = torch.linspace(1, 0, steps + 1)[:-1]
    return shift * s_S / (1 + (shift - 1) * s_S)


def make_steps(sampler: Sampler) -> tuple[Step, ...]:
    """All steps of a segment. Timesteps of boundary * 1000 and more belong to the high-noise expert."""
    import torch

    sigma_S = sigmas(sampler.steps, sampler.shift)
    delta_S = torch.cat([sigma_S[1:], sigma_S.new_zeros(1)]) - sigma_S
    timestep_S = sigma_S * TIMESTEPS
    return tuple(
        _step(sampler, index, timestep, delta)
        for index, (timestep, delta) in enumerate(zip(timestep_S.tolist(), delta_S.tolist(), strict=True))
    )


def phases_of(sampler: Sampler, high: int, outfits: Mapping[Expert, str]) -> tuple[Phase, ...]:
    """The VAE's encoding, then each expert's run of steps, of which `high` are the high-noise expert's."""
    low = sampler.steps - high
    runs = (
        Phase("vae", 0, 0, 0),
        Phase("high", 1, high, high * _passes(sampler.guidance.high), outfits["high"]),
        Phase("low", 2, sampler.steps, low * _passes(sampler.guidance.low), outfits["low"]),
    )
    return tuple(phase for phase in runs if phase.passes or phase.model == "vae")


def reckon_high(sampler: Sampler) -> int:
    """How many steps are the high-noise expert's, without torch.

    Where a timestep meets the boundary exactly, torch's last bit may decide for one step more or less.
    """
    import numpy as np

    s_S = np.linspace(1, 0, sampler.steps + 1, dtype=np.float32)[:-1]
    sigma_S = np.float32(sampler.shift) * s_S / (1 + np.float32(sampler.shift - 1) * s_S)
    return int((sigma_S * np.float32(TIMESTEPS) >= np.float32(sampler.boundary * TIMESTEPS)).sum())


def _passes(guidance: float) -> int:
    return 1 if guidance == 1 else 2


def _step(sampler: Sampler, index: int, timestep: float, delta: float) -> Step:
    high = timestep >= sampler.boundary * TIMESTEPS
    guidance = sampler.guidance.high if high else sampler.guidance.low
    return Step(index, "high" if high else "low", timestep, delta, guidance)


def latent_count(frames: int) -> int:
    """Latents along time for 4k+1 frames: k+1."""
    return (frames - 1) // STRIDE[0] + 1


def latent_shape(frames: int, size: Size, channels: int) -> tuple[int, int, int, int, int]:
    """[1, channels, latents, rows, columns] of a segment's latents."""
    return 1, channels, latent_count(frames), size.height // STRIDE[1], size.width // STRIDE[2]


def make_noise(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The initial noise x_BCTHW on the CPU: drawn as float32 there whatever the machine, then rounded."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
