"""SVI a second time, as plainly as it can be written: whole state dicts, no reuse, no checkpoints.

It shares diffusers' and transformers' modules with the engine, and nothing else. The tests compare the two
where the reference set has no numbers.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import ftfy
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from safetensors.torch import load_file
from svi_support import EXPERT_FOLDERS, TEXT_FILE, VAE_FILE, lora_file
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from svi_story.engines.base import Frame
    from svi_story.plan.model import Segment

EXPERT_SETTINGS = {"num_attention_heads": 4, "attention_head_dim": 24, "in_channels": 36, "out_channels": 16}
EXPERT_SIZES = {"text_dim": 32, "freq_dim": 256, "ffn_dim": 128, "num_layers": 2}
TEXT_SETTINGS = {"vocab_size": 153, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}


@dataclass
class Plain:
    """The models of the reference set, with one variant's LoRAs merged."""

    experts: Mapping[str, Any]
    vae: Any
    text: Callable[[str], Tensor]


@cache
def load(root: Path, variant: str) -> Plain:
    """The models, with the variant's LoRAs merged."""
    experts = {}
    for expert, folder in EXPERT_FOLDERS.items():
        state: dict[str, Tensor] = {}
        for shard in sorted((root / folder).glob("*.safetensors")):
            state |= load_file(shard)
        lora = load_file(lora_file(root, expert, variant))
        for key in [key for key in lora if "lora_A" in key]:
            name = key.replace(".lora_A.default.weight", ".weight")
            state[name] = state[name] + lora[key.replace("lora_A", "lora_B")] @ lora[key]
        model = WanTransformer3DModel(**EXPERT_SETTINGS, **EXPERT_SIZES)
        model.load_state_dict(convert_wan_transformer_to_diffusers(state), strict=True)
        experts[expert] = model.eval()
    vae = AutoencoderKLWan(base_dim=8)
    vae.load_state_dict(convert_wan_vae_to_diffusers(load_file(root / VAE_FILE)), strict=True)
    return Plain(experts, vae.eval(), load_text(root))


def load_text(root: Path) -> Callable[[str], Tensor]:
    """Prompt -> embedding [1, 512, 32], as diffusers' Wan pipelines make it."""
    names = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
    inner = {"attn": "0.SelfAttention", "norm1": "0.layer_norm", "norm2": "1.layer_norm"}
    leaf = {"pos_embedding.embedding": "0.SelfAttention.relative_attention_bias"}
    leaf |= {"ffn.gate.0": "1.DenseReluDense.wi_0", "ffn.fc1": "1.DenseReluDense.wi_1"}
    leaf |= {"ffn.fc2": "1.DenseReluDense.wo"}
    state = {}
    for key, tensor in load_file(root / TEXT_FILE).items():
        if key.startswith("blocks."):
            _, block, rest = key.removesuffix(".weight").split(".", 2)
            head, _, tail = rest.partition(".")
            place = leaf.get(rest) or f"{inner[head]}.{tail}".rstrip(".")
            state[f"encoder.block.{block}.layer.{place}.weight"] = tensor
        else:
            state[f"{names[key.removesuffix('.weight')]}.weight"] = tensor
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    encoder = UMT5EncoderModel(UMT5Config(**TEXT_SETTINGS, feed_forward_proj="gated-gelu")).eval()
    encoder.load_state_dict(state, strict=True)
    tokenizer = AutoTokenizer.from_pretrained(root / "Wan-AI/Wan2.1-T2V-1.3B/google/umt5-xxl")

    def embed(prompt: str) -> Tensor:
        cleaned = re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()).strip()
        tokens = tokenizer(
            cleaned, padding="max_length", truncation=True, max_length=512, return_tensors="pt"
        )
        out = encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        kept = torch.zeros_like(out)
        length = int(tokens.attention_mask.sum())
        kept[:, :length] = out[:, :length]
        return kept

    return embed


@torch.no_grad()
def clip(models: Plain, segment: Segment, picture: Frame, before: tuple[Tensor, Frame] | None) -> Tensor:
    """The final latents of one clip; `before` is the parent's latents and last frame."""
    settings, frames = segment.sampler, segment.frames
    count = (frames - 1) // 4 + 1

    def pixels(frame: Frame) -> Tensor:
        return torch.tensor(frame).permute(2, 0, 1).float()[None, :, None] / 127.5 - 1

    if settings.variant == "2.0":
        start = pixels(before[1] if before else picture)
        known = encode(models.vae, torch.cat([start] + [pixels(picture)] * (frames - 1), dim=2))
    else:
        known = torch.zeros(1, 16, count, segment.size.height // 8, segment.size.width // 8)
        known[:, :, :1] = encode(models.vae, pixels(picture))
        if before:
            known[:, :, 1 : 1 + settings.motion_latents] = before[0][:, :, -settings.motion_latents :]
    mask = torch.zeros(1, 4, *known.shape[2:])
    mask[:, :, 0] = 1
    y = torch.cat([mask, known], dim=1)
    context, negative = models.text(segment.prompt), models.text(segment.negative_prompt)
    x = torch.randn(known.shape, generator=torch.Generator("cpu").manual_seed(segment.seed))
    for index in range(settings.steps):
        sigma, following = (_sigma(index + more, settings.steps, settings.shift) for more in (0, 1))
        expert = "high" if sigma * 1000 >= settings.boundary * 1000 else "low"
        scale = settings.guidance.high if expert == "high" else settings.guidance.low
        call = {"timestep": torch.tensor([sigma * 1000], dtype=torch.float32), "return_dict": False}
        model, inputs = models.experts[expert], torch.cat([x, y], dim=1)
        wanted = model(inputs, encoder_hidden_states=context, **call)[0]
        unwanted = model(inputs, encoder_hidden_states=negative, **call)[0]
        x = x + (unwanted + scale * (wanted - unwanted)) * (following - sigma)
    return x


def encode(vae: Any, video: Tensor) -> Tensor:
    """Normalised latents of pixels."""
    mean = torch.tensor(vae.config.latents_mean).view(1, 16, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, 16, 1, 1, 1)
    latents: Tensor = (vae.encode(video).latent_dist.mean - mean) / std
    return latents


def _sigma(index: int, steps: int, shift: float) -> float:
    s = 1 - index / steps
    return shift * s / (1 + (shift - 1) * s)
