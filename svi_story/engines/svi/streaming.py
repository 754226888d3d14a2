"""Weights that wait in RAM and come to the device as they are needed, through diffusers' group offloading.

On the CPU nothing moves, but the same hooks run: the numbers are those of a model that stays.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from svi_story.errors import InputError

if TYPE_CHECKING:
    import torch
    from diffusers import WanTransformer3DModel
    from torch import Tensor
    from transformers import UMT5EncoderModel


def check_streaming() -> None:
    """Raises InputError where a package is missing."""
    if find_spec("accelerate") is None:  # diffusers' hooks call it to move what goes into a module
        raise InputError("--memory stream needs accelerate: pip install 'svi-story[svi]'")


def pin(name: str, weight: Tensor) -> Tensor:
    """A finished weight in RAM; a block's is pinned where there is a GPU, so that it can be fetched ahead."""
    home = weight.cpu()
    return home.pin_memory() if weight.is_cuda and name.startswith("blocks.") else home


def stream_blocks(model: WanTransformer3DModel, device: torch.device) -> None:
    """Fetch an expert's blocks one by one, on a GPU the next while one is at work."""
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        model,
        onload_device=device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )


def stream_leaves(model: UMT5EncoderModel, device: torch.device) -> None:
    """Fetch the text encoder's layers one by one; it is used once, so nothing is pinned or fetched ahead."""
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(model, onload_device=device, offload_type="leaf_level")
