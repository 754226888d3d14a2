"""What the benchmarks of the model share: random experts of any size, and what a forward pass computes."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported anywhere: nothing is downloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from diffusers import WanTransformer3DModel

NOT_ON_A_GPU = "CPU, small size: not measured on a GPU yet. Says nothing about full-size seconds."
WORDS = 512
"""Tokens of a prompt, padded."""


@dataclass(frozen=True)
class Shape:
    """How large an expert is; heads are 128 wide."""

    width: int
    inner: int
    layers: int
    text: int = 4096

    def settings(self) -> dict[str, object]:
        """The arguments of WanTransformer3DModel for an image-to-video expert of Wan 2.2."""
        return {
            "num_attention_heads": self.width // 128,
            "attention_head_dim": 128,
            "in_channels": 36,
            "out_channels": 16,
            "text_dim": self.text,
            "ffn_dim": self.inner,
            "num_layers": self.layers,
        }

    def operations(self, tokens: int) -> float:
        """Multiplications and additions in the blocks' matrix products, of one forward pass."""
        on_video = 6 * self.width**2 + 2 * self.width * self.inner
        on_text = 2 * self.width**2
        pairs = 2 * self.width * tokens * (tokens + WORDS)
        return 2.0 * self.layers * (on_video * tokens + on_text * WORDS + pairs)


FULL = Shape(5120, 13824, 40)


def random_expert(shape: Shape, device: torch.device, dtype: torch.dtype) -> WanTransformer3DModel:
    """An expert with random weights, made where and as what it will be used."""
    import torch
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = WanTransformer3DModel(**shape.settings())
        rope = model.rope  # its tables were made in float64 and rounded; the device alone must be right
        model.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len).to(device)
    finally:
        torch.set_default_dtype(before)
    return model.to(dtype).requires_grad_(requires_grad=False).eval()


def clock(device: torch.device) -> Callable[[], float]:
    """Wall time for a GPU; for a CPU the CPU time of this process, which other processes change least."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was told."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product: the best of the median of 10."""
    import torch

    side = 8192 if device.type == "cuda" else 1536
    one = torch.randn(side, side, device=device, dtype=dtype)
    other = torch.randn(side, side, device=device, dtype=dtype)
    now = clock(device)
    seconds = []
    for _ in range(13):
        start = now()
        torch.mm(one, other)
        wait(device)
        seconds.append(now() - start)
    return 2.0 * side**3 / statistics.median(seconds[3:])
