"""What the experts see besides the noise: y_BCTHW = 4 mask channels, then 16 latent channels.

The mask is one on the first frame alone, in every clip of both variants. Source: the SVI authors' scripts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.engines.base import carried_array, foreign_carry_error
from svi_story.engines.svi.sampler import latent_count

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from svi_story.engines.base import Carry, Frame
    from svi_story.plan.model import Segment

    Encode = Callable[[Tensor], Tensor]
    """Pixels [1, 3, frames, height, width] in [-1, 1] -> latents [1, 16, latents, rows, columns]."""


def to_pixels(frame: Frame) -> Tensor:
    """One picture [height, width, 3], uint8 -> video_BCFHW [1, 3, 1, height, width] in [-1, 1], float32."""
    import torch

    picture_HWC = torch.tensor(frame, dtype=torch.float32) / 127.5 - 1
    return picture_HWC.permute(2, 0, 1)[None, :, None]


def make_mask(latents_BCTHW: Tensor, channels: int = 4) -> Tensor:
    """mask_BCTHW [1, 4, latents, rows, columns]: one where the first frame is, zero elsewhere."""
    batch, _, time, rows, columns = latents_BCTHW.shape
    mask_BCTHW = latents_BCTHW.new_zeros(batch, channels, time, rows, columns)
    mask_BCTHW[:, :, 0] = 1
    return mask_BCTHW


def condition_on_frames(start_BCFHW: Tensor, anchor_BCFHW: Tensor, frames: int, encode: Encode) -> Tensor:
    """y_BCTHW of SVI 2.0: the encoded video [start, anchor, anchor, ... anchor].

    start and anchor are single pictures [1, 3, 1, height, width]; start is the previous clip's decoded, 8-bit
    last frame, or the anchor itself where a chain starts.
    """
    import torch

    video_BCFHW = torch.cat([start_BCFHW, anchor_BCFHW.expand(-1, -1, frames - 1, -1, -1)], dim=2)
    return _with_mask(encode(video_BCFHW))


def condition_on_latents(anchor_BCTHW: Tensor, motion_BCTHW: Tensor | None, time: int) -> Tensor:
    """y_BCTHW of SVI 2.0 Pro: [anchor: 1 latent, motion: the last n of the previous clip, zeros].

    All are normalised latents, and so are the zeros (they are no encoded black video). `time` is the number
    of latents in all; motion is None where a chain starts.
    """
    import torch

    given = [anchor_BCTHW] if motion_BCTHW is None else [anchor_BCTHW, motion_BCTHW]
    known_BCTHW = torch.cat(given, dim=2)
    batch, channels, have, rows, columns = known_BCTHW.shape
    zeros_BCTHW = known_BCTHW.new_zeros(batch, channels, time - have, rows, columns)
    return _with_mask(torch.cat([known_BCTHW, zeros_BCTHW], dim=2))


def condition(segment: Segment, carry: Carry | None, picture: Frame, encode: Encode) -> Tensor:
    """y_BCTHW of a segment, whose anchor shows `picture`; float32, on the encoder's device."""
    import torch

    anchor_BCFHW = to_pixels(picture)
    if segment.sampler.variant == "2.0":
        if carry and carry.last_frame.shape != picture.shape:
            raise foreign_carry_error(segment)
        start_BCFHW = to_pixels(carry.last_frame) if carry else anchor_BCFHW
        return condition_on_frames(start_BCFHW, anchor_BCFHW, segment.frames, encode)
    anchor_BCTHW = encode(anchor_BCFHW)
    motion_BCTHW = None
    if carry:
        count = segment.sampler.motion_latents
        if carry.engine == segment.engine:
            latents_BCTHW = torch.tensor(carried_array(carry, "latents", segment)).to(anchor_BCTHW)
        else:  # what it handed over are pictures alone
            latents_BCTHW = encode(torch.cat([to_pixels(frame) for frame in carry.last_frames], dim=2))
        motion_BCTHW = latents_BCTHW[:, :, -count:]
        if motion_BCTHW.shape != (*anchor_BCTHW.shape[:2], count, *anchor_BCTHW.shape[3:]):
            raise foreign_carry_error(segment)
    return condition_on_latents(anchor_BCTHW, motion_BCTHW, latent_count(segment.frames))


def _with_mask(latents_BCTHW: Tensor) -> Tensor:
    import torch

    return torch.cat([make_mask(latents_BCTHW), latents_BCTHW], dim=1)
