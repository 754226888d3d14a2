"""The toy's networks: the engine's own architectures, made small, and faster ways to compute the same.

Tensors are named with their shapes, as in svi_story/engines/svi.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import UMT5Config, UMT5EncoderModel
from world import all_prompts

from svi_story.engines.svi.text import TOKENS
from svi_story.engines.svi.weights.lora import SVI_TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHANNELS = 16
"""Of a latent."""
TEXT_WIDTH = 64
WORDS = 12
"""More than the tokens of any prompt, with the end."""
RANK = 20
"""Of the LoRAs."""
VAE = {"base_dim": 8, "decoder_base_dim": 8, "z_dim": CHANNELS}
EXPERT = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 2 * CHANNELS + 4,
    "out_channels": CHANNELS,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 256,
    "ffn_dim": 384,
    "num_layers": 6,
}


def make_expert() -> WanTransformer3DModel:
    """An untrained expert."""
    return WanTransformer3DModel(**EXPERT)


def make_vae() -> AutoencoderKLWan:
    """An untrained VAE: residual branches add nothing yet, and nothing looks at other frames yet."""
    vae = AutoencoderKLWan(**VAE)
    for name, module in vae.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Conv3d):
            continue
        weight = module.weight.data
        assert module.bias is not None
        nn.init.zeros_(module.bias)
        if name.endswith(("conv2", ".proj")):
            weight.zero_()
        elif name.endswith("time_conv"):  # frames are repeated, or left out
            weight.zero_()
            for channel in range(weight.shape[0]):
                weight[channel, channel % weight.shape[1], 2] = 1
        else:
            if module.kernel_size[0] == 3 and weight.ndim == 5:
                weight[:, :, :2] = 0
            fan = weight[0].numel() // (3 if weight.ndim == 5 and weight.shape[2] == 3 else 1)
            last = weight[:, :, -1] if weight.ndim == 5 else weight
            nn.init.normal_(last, std=fan**-0.5)
    return vae


# --- the VAE without chunks: all frames at once, as pictures, which is several times as fast


def encode(vae: AutoencoderKLWan, video_BCFHW: Tensor) -> Tensor:
    """The posterior's mean, as `vae.encode` computes it; not normalised. [B, 16, (F-1)/4+1, H/8, W/8]."""
    encoder = vae.encoder
    x, frames = _conv(encoder.conv_in, *_pictures(video_BCFHW))
    for layer in encoder.down_blocks:
        x, frames = (_resample if hasattr(layer, "resample") else _residual)(layer, x, frames)
    x, frames = _middle(encoder.mid_block, x, frames)
    x, frames = _conv(encoder.conv_out, F.silu(_norm(encoder.norm_out, x)), frames)
    x, frames = _conv(vae.quant_conv, x, frames)
    return _video(x, frames).chunk(2, dim=1)[0]


def decode(vae: AutoencoderKLWan, latents_BCTHW: Tensor) -> Tensor:
    """Pixels, as `vae.decode` computes them, but not cut to [-1, 1]."""
    decoder = vae.decoder
    x, frames = _conv(vae.post_quant_conv, *_pictures(latents_BCTHW))
    x, frames = _middle(decoder.mid_block, *_conv(decoder.conv_in, x, frames))
    for block in decoder.up_blocks:
        for layer in block.resnets:
            x, frames = _residual(layer, x, frames)
        for layer in block.upsamplers or ():
            x, frames = _resample(layer, x, frames)
    x, frames = _conv(decoder.conv_out, F.silu(_norm(decoder.norm_out, x)), frames)
    return _video(x, frames)


def _pictures(video_BCFHW: Tensor) -> tuple[Tensor, int]:
    """x_NCHW, channels last, and how many frames each video has."""
    x = video_BCFHW.transpose(1, 2).flatten(0, 1)
    return x.contiguous(memory_format=torch.channels_last), video_BCFHW.shape[2]


def _video(x: Tensor, frames: int) -> Tensor:
    return _by_video(x, frames).transpose(1, 2)


def _by_video(x: Tensor, frames: int) -> Tensor:
    return x.reshape(-1, frames, *x.shape[1:])


def _taps(x: Tensor, frames: int, past: int, stride: int = 1) -> Tensor:
    """Each frame with the two before it, on the channel axis; `past` zero frames come before the first."""
    x_BFHWC = F.pad(_by_video(x.permute(0, 2, 3, 1), frames), (0, 0, 0, 0, 0, 0, past, 0))
    count = (x_BFHWC.shape[1] - 3) // stride + 1
    shifted = [x_BFHWC[:, tap : tap + stride * (count - 1) + 1 : stride] for tap in range(3)]
    return torch.cat(shifted, dim=-1).flatten(0, 1).permute(0, 3, 1, 2)


def _conv(layer: Any, x: Tensor, frames: int) -> tuple[Tensor, int]:
    """A causal convolution over time and place."""
    weight, padding = layer.weight, (layer._padding[2], layer._padding[0])
    if weight.shape[2] == 1 or frames == 1:
        return F.conv2d(x, weight[:, :, -1], layer.bias, padding=padding), frames
    return _conv_taps(layer, _taps(x, frames, 2), padding), frames


def _conv_taps(layer: Any, x: Tensor, padding: tuple[int, int] = (0, 0)) -> Tensor:
    weight = layer.weight.transpose(1, 2).flatten(1, 2)
    return F.conv2d(x, weight, layer.bias, padding=padding)


def _norm(layer: Any, x: Tensor) -> Tensor:
    gain: Tensor = (layer.scale * layer.gamma.view(1, -1, 1, 1)).to(x.dtype)  # what follows stays as narrow
    return x * (x.square().sum(1, keepdim=True) + 1e-12).rsqrt() * gain


def _residual(layer: Any, x: Tensor, frames: int) -> tuple[Tensor, int]:
    shortcut = layer.conv_shortcut
    straight = x if isinstance(shortcut, nn.Identity) else _conv(shortcut, x, frames)[0]
    x, _ = _conv(layer.conv1, F.silu(_norm(layer.norm1, x)), frames)
    x, _ = _conv(layer.conv2, F.silu(_norm(layer.norm2, x)), frames)
    return straight + x, frames


def _middle(block: Any, x: Tensor, frames: int) -> tuple[Tensor, int]:
    x, _ = _residual(block.resnets[0], x, frames)
    x = block.attentions[0](x[:, :, None])[:, :, 0]
    return _residual(block.resnets[1], x, frames)


def _resample(layer: Any, x: Tensor, frames: int) -> tuple[Tensor, int]:
    """Twice or half the rows and columns, and of frames where the layer has a `time_conv`.

    The first frame stays alone, and the upsampling of the others does not see it.
    """
    if layer.mode == "upsample3d" and frames > 1:
        x_BFCHW = _by_video(x, frames)
        first, others = x_BFCHW[:, :1], x_BFCHW[:, 1:].flatten(0, 1)
        pairs = _conv_taps(layer.time_conv, _taps(others, frames - 1, 2))
        later = pairs.reshape(len(first), -1, *x.shape[1:])
        x = torch.cat([first, later], dim=1).flatten(0, 1)
        frames = 2 * frames - 1
    x = layer.resample(x)
    if layer.mode == "downsample3d" and frames > 1:
        later = _conv_taps(layer.time_conv, _taps(x, frames, 0, stride=2))
        first, count = _by_video(x, frames)[:, :1], (frames - 1) // 2
        x = torch.cat([first, _by_video(later, count)], dim=1).flatten(0, 1)
        frames = count + 1
    return x.contiguous(memory_format=torch.channels_last), frames


def normalise(vae: AutoencoderKLWan, mean_C: Tensor, std_C: Tensor) -> None:
    """Give the VAE's latents the statistics of Wan 2.1's, which its config.json has: exact, as both 1x1x1
    convolutions beside the latents can scale and shift them. What it decodes stays.
    """
    wanted_mean, wanted_std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    scale = wanted_std / std_C
    shift = wanted_mean - mean_C * scale
    with torch.no_grad():
        into, out = vae.quant_conv, vae.post_quant_conv
        into.weight[:CHANNELS] *= scale.view(-1, 1, 1, 1, 1)
        into.bias[:CHANNELS] = into.bias[:CHANNELS] * scale + shift
        out.bias -= out.weight[:, :, 0, 0, 0] @ (shift / scale)
        out.weight /= scale.view(1, -1, 1, 1, 1)


# --- text


def make_tokenizer() -> Tokenizer:
    """Whole words, as many as the prompts have."""
    texts = " ".join(all_prompts()).lower().replace(".", " .").split()
    vocabulary = {word: at for at, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(set(texts))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def make_text_encoder(words: int) -> UMT5EncoderModel:
    """A random one that is never trained: the experts learn to read what it makes of words and places."""
    config = UMT5Config(
        vocab_size=words,
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=128,
        num_heads=4,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    encoder = UMT5EncoderModel(config).eval()
    for name, weight in encoder.named_parameters():
        if weight.ndim == 2:
            inner = 1.0 if "shared" in name else 0.5 if "relative" in name else 0.5 * weight.shape[1] ** -0.5
            nn.init.normal_(weight, std=inner)
    return encoder


# --- training


class Padding:
    """Stands for the 512 - n equal rows behind the n of a prompt: one row that counts as often. Same output.

    A processor of cross-attention, for all blocks of an expert; `bias` belongs to the prompts of a batch.
    """

    bias: Tensor

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: object) -> Tensor:
        context = encoder_hidden_states
        parts = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(context)), attn.to_v(context)
        query, key, value = (part.unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in parts)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias)
        projected: Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return projected


def use_padding(expert: WanTransformer3DModel) -> Padding:
    """Let an expert take prompts as `pack` makes them."""
    padding = Padding()
    for block in expert.blocks:
        block.attn2.processor = padding
    return padding


def pack(embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[n, width] each -> context_BLD [B, WORDS, width] and its bias [B, 1, 1, WORDS]."""
    context_BLD = torch.zeros(len(embeddings), WORDS, TEXT_WIDTH)
    bias = torch.full((len(embeddings), 1, 1, WORDS), -1e4)
    for at, rows in enumerate(embeddings):
        count = len(rows)
        context_BLD[at, :count] = rows
        bias[at, ..., :count] = 0
        bias[at, ..., count] = math.log(TOKENS - count)
    return context_BLD, bias


class LowRank(nn.Module):
    """Adds up @ down to a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(RANK, weight.shape[1]) * weight.shape[1] ** -0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def lora_layers(expert: WanTransformer3DModel) -> Iterator[tuple[str, nn.Linear]]:
    """Every layer that an SVI LoRA changes, with diffusers' name."""
    cross = [name.replace("attn1", "attn2") for name in SVI_TARGETS if "attn1" in name]
    for block in range(len(expert.blocks)):
        for target in (*SVI_TARGETS, *cross):
            name = f"blocks.{block}.{target}"
            layer = expert.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            yield name, layer


def add_lora(expert: WanTransformer3DModel) -> dict[str, nn.Parameter]:
    """Add an SVI LoRA, which changes nothing yet; its tensors by the names of upstream's files."""
    expert.requires_grad_(requires_grad=False)
    tensors: dict[str, nn.Parameter] = {}
    names = {
        "attn1.to_": "self_attn.",
        "attn2.to_": "cross_attn.",
        "out.0": "o",
        "net.0.proj": "0",
        "net.": "",
    }
    for name, layer in lora_layers(expert):
        change = LowRank(layer.weight)
        parametrize.register_parametrization(layer, "weight", change)
        for old, new in names.items():
            name = name.replace(old, new)  # noqa: PLW2901 - one after the other
        tensors[f"{name}.lora_A.default.weight"] = change.down
        tensors[f"{name}.lora_B.default.weight"] = change.up
    return tensors
