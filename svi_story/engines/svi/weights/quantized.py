"""Experts held in int8: the linear layers of their blocks, with a scale for each row of outputs.

W = values * scale. It is quantised from the float32 merge of a weight and its LoRAs, and converted to the
type that the model computes in whenever a layer computes, so the products are those of any other weights.

Scales are stored in bfloat16. Whole numbers up to 256 are exact in bfloat16, too, so `values * scale` is
rounded once, and needs no float32 copy of the weight. A scale that was rounded down still covers its row:
as 127 / (1 - 2**-8) < 127.5, the largest value becomes 127. Multiplying the layer's output instead would
leave the weight exact, but round every output twice, and outputs are larger than the weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch  # noqa: TID253 - a class needs it; this module is imported where such layers are made
from torch import nn  # noqa: TID253 - as above

from svi_story.engines.svi.weights.architecture import scale_of

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 127


class QuantizedLinear(nn.Module):
    """A linear layer whose weight [out, in] is int8, with scales [out, 1], as `quantize` makes them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        like = layer.weight
        self.weight = _constant(torch.empty_like(like, dtype=torch.int8))
        self.weight_scale = _constant(torch.empty_like(like[:, :1], dtype=torch.bfloat16))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in x's type."""
        weight = self.weight.to(x.dtype).mul_(self.weight_scale.to(x.dtype))
        return nn.functional.linear(x, weight, self.bias)


def quantize(name: str, weight: Tensor) -> dict[str, Tensor]:
    """A linear layer's float32 weight [out, in] as the parameters of a QuantizedLinear, by their names.

    A row of zeros stays zero. The scale of a row with NaN or Inf is NaN or Inf.
    """
    tiny = torch.finfo(torch.bfloat16).tiny
    scale = (weight.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=tiny).to(torch.bfloat16)
    values = (weight / scale).round_().to(torch.int8)
    return {name: values, scale_of(name): scale}


def quantize_linears(blocks: nn.Module) -> None:
    """Replace the linear layers of blocks that are on "meta" by quantised ones."""
    for parent in list(blocks.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(parent, name, QuantizedLinear(layer))


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
