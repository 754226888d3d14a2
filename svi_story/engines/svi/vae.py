"""Pixels to normalised latents and back. Float32 and untiled unless asked otherwise.

Normalised: (mean of the posterior - latents_mean) / latents_std, per channel; the statistics are Wan 2.1's.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusers import AutoencoderKLWan
    from torch import Tensor


def encode(vae: AutoencoderKLWan, video_BCFHW: Tensor) -> Tensor:
    """Pixels [1, 3, 4k+1, height, width] in [-1, 1] -> normalised latents [1, 16, k+1, height/8, width/8]."""
    import torch

    with torch.no_grad(), _without_cache(vae):
        posterior = vae.encode(video_BCFHW.to(vae.device, vae.dtype), return_dict=False)[0]
        mean_C, std_C = _statistics(vae)
        latents: Tensor = (posterior.mode() - mean_C) / std_C
        return latents


def decode(vae: AutoencoderKLWan, latents_BCTHW: Tensor) -> Tensor:
    """Normalised latents [1, 16, k+1, rows, columns] -> pixels [1, 3, 4k+1, 8 rows, 8 columns] in [-1, 1]."""
    import torch

    with torch.no_grad(), _without_cache(vae):
        mean_C, std_C = _statistics(vae)
        latents_BCTHW = latents_BCTHW.to(vae.device, vae.dtype) * std_C + mean_C
        video_BCFHW: Tensor = vae.decode(latents_BCTHW, return_dict=False)[0]
        return video_BCFHW


def to_frames(video_BCFHW: Tensor) -> Tensor:
    """Pixels [1, 3, frames, height, width] in [-1, 1] -> uint8 RGB [frames, height, width, 3].

    Quantised by truncation, as upstream does: rounding would drift, for 2.0 feeds the last frame back.
    """
    import torch

    frames_FHWC = ((video_BCFHW[0] + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return frames_FHWC.permute(1, 2, 3, 0)


@contextmanager
def _without_cache(vae: AutoencoderKLWan) -> Iterator[None]:
    """Let no call leave its feature cache behind: after an error, gigabytes would stay on the device."""
    try:
        yield
    finally:
        vae.clear_cache()


def _statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel, [1, C, 1, 1, 1]."""
    import torch

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=vae.device, dtype=vae.dtype).view(1, -1, 1, 1, 1)

    return column(vae.config.latents_mean), column(vae.config.latents_std)
