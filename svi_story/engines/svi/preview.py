"""Small pictures of latents: a linear map from channels to RGB, fitted to what the VAE really does.

It is fitted to the anchor, whose picture and latent are known before the first step, and again to every
segment that is decoded. So no published factors are needed, and it is right for any VAE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from svi_story.engines.svi.sampler import STRIDE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from svi_story.engines.base import Frame

    Factors = NDArray[np.float32]
    """[channels + 1, 3]: RGB in 0 to 255 for each channel, and the constant."""

MOST_FITTED = 6
"""Latents along time that a fit uses."""


def shown_by(latent: int) -> int:
    """The frame that a latent stands for: of its four the third, of the first latent its only one."""
    return max(STRIDE[0] * latent - 1, 0)


def fit(latents_CTHW: NDArray[np.floating], frames: Sequence[Frame]) -> Factors:
    """The factors with the least squared error between projected latents and scaled-down frames."""
    count = latents_CTHW.shape[1]
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_FITTED)).round().astype(int))
    rows, columns = latents_CTHW.shape[2:]
    known = latents_CTHW[:, chosen].reshape(len(latents_CTHW), -1).T.astype(np.float64)
    wanted = np.stack([scaled_down(frames[shown_by(latent)], rows, columns) for latent in chosen])
    with_constant = np.concatenate([known, np.ones((len(known), 1))], axis=1)
    factors: NDArray[np.float64] = np.linalg.lstsq(with_constant, wanted.reshape(-1, 3), rcond=None)[0]
    return factors.astype(np.float32)


def scaled_down(frame: Frame, rows: int, columns: int) -> NDArray[np.float64]:
    """The mean of every block of pixels that one latent stands for, [rows, columns, 3]."""
    blocks = frame.reshape(rows, STRIDE[1], columns, STRIDE[2], 3)
    means: NDArray[np.float64] = blocks.mean(axis=(1, 3), dtype=np.float64)
    return means


def project(latents_BCTHW: Tensor, factors: Factors) -> list[Frame]:
    """One picture for each latent along time; computed where the latents are, and copied once."""
    import torch

    with torch.no_grad():
        weights = torch.tensor(factors).to(latents_BCTHW.device)
        rgb_THWC = torch.einsum("cthw,cr->thwr", latents_BCTHW[0].float(), weights[:-1]) + weights[-1]
        return list(rgb_THWC.round().clamp(0, 255).to(torch.uint8).cpu().numpy())
