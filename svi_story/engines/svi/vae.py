"""Pixels to normalised latents and back, in float32: as a whole, in strips, or in tiles.

Normalised: (mean of the posterior - latents_mean) / latents_std, per channel; the statistics are Wan 2.1's.

Everything outside of the VAE's middle blocks is local. So it can work in strips of rows that overlap by as
much as a row depends on, and the middle blocks, whose attention sees the whole picture, on all rows: the
numbers are those of the whole picture but for the last bits. Tiles cut the middle blocks too, which may show.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from svi_story.engines.svi.sampler import STRIDE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Progress = Callable[[int, int], None]
    """Called with the latents that are done, and their number."""

    from diffusers import AutoencoderKLWan
    from torch import Tensor

    Layers = Callable[[Tensor, list[Any], list[int]], Tensor]
    """Some of the VAE's layers, with the list and the place in it where causal convolutions keep the past."""

WHOLE, TILES = 1, 0
"""How many strips a picture is worked on in; none means in tiles."""
STRIPS = (2, 4, 8)
"""Numbers of strips to choose from. More save little: each needs its surroundings too."""
HALO = 13
"""Rows of latents above and below a strip that its pixels depend on: 12.25, or 9.4 when encoding."""
CACHE = 64
"""Places for causal convolutions to keep the past; the decoder has 33."""


@contextmanager
def reporting(
    vae: AutoencoderKLWan, latents: tuple[int, int, int], strips: int, report: Progress
) -> Iterator[None]:
    """Report how many latents are encoded or decoded inside; their shape is [time, rows, columns].

    In strips and tiles, a part of a latent counts as that part.
    """
    time, rows, columns = latents
    parts = strips
    if strips == TILES:
        stride = vae.tile_sample_stride_height // STRIDE[1], vae.tile_sample_stride_width // STRIDE[2]
        parts = -(-rows // stride[0]) * -(-columns // stride[1])
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        report(min(done // parts, time), time)

    layers = (vae.encoder.conv_in, vae.decoder.conv_out)  # once for each latent and part
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def encode(vae: AutoencoderKLWan, video_BCFHW: Tensor, strips: int = WHOLE) -> Tensor:
    """Pixels [1, 3, 4k+1, height, width] in [-1, 1] -> normalised latents [1, 16, k+1, height/8, width/8]."""
    import torch

    with torch.no_grad(), _without_cache(vae):
        video_BCFHW = video_BCFHW.to(vae.device, vae.dtype)
        mean_C, std_C = _statistics(vae)
        if strips > WHOLE:
            moments_BCTHW = _encode_in_strips(vae, video_BCFHW, strips)
            return (moments_BCTHW.chunk(2, dim=1)[0] - mean_C) / std_C
        _set_tiling(vae, strips)
        posterior = vae.encode(video_BCFHW, return_dict=False)[0]
        latents: Tensor = (posterior.mode() - mean_C) / std_C
        return latents


def decode(vae: AutoencoderKLWan, latents_BCTHW: Tensor, strips: int = WHOLE) -> Tensor:
    """Normalised latents [1, 16, k+1, rows, columns] -> pixels [1, 3, 4k+1, 8 rows, 8 columns] in [-1, 1]."""
    import torch

    with torch.no_grad(), _without_cache(vae):
        mean_C, std_C = _statistics(vae)
        latents_BCTHW = latents_BCTHW.to(vae.device, vae.dtype) * std_C + mean_C
        if strips > WHOLE:
            return _decode_in_strips(vae, latents_BCTHW, strips)
        _set_tiling(vae, strips)
        video_BCFHW: Tensor = vae.decode(latents_BCTHW, return_dict=False)[0]
        return video_BCFHW


def to_frames(video_BCFHW: Tensor) -> Tensor:
    """Pixels [1, 3, frames, height, width] in [-1, 1] -> uint8 RGB [frames, height, width, 3].

    Quantised by truncation, as upstream does: rounding would drift, for 2.0 feeds the last frame back.
    """
    import torch

    frames_FHWC = ((video_BCFHW[0] + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return frames_FHWC.permute(1, 2, 3, 0)


def describe_strips(strips: int) -> str:
    """How the VAE works, as it is recorded with every segment."""
    return {WHOLE: "untiled", TILES: "tiled"}.get(strips, f"{strips} strips")


def strips_of(rows: int, count: int) -> list[tuple[range, range]]:
    """The rows of latents of each strip, without and with what they depend on."""
    edges = [round(rows * place / count) for place in range(count + 1)]
    return [
        (range(start, end), range(max(0, start - HALO), min(rows, end + HALO)))
        for start, end in pairwise(edges)
    ]


def _decode_in_strips(vae: AutoencoderKLWan, latents_BCTHW: Tensor, count: int) -> Tensor:
    decoder, scale = vae.decoder, vae.spatial_compression_ratio

    def lower(x_BCTHW: Tensor, cache: list[Any], place: list[int]) -> Tensor:
        x_BCTHW = _convolve(decoder.conv_in, x_BCTHW, cache, place)
        out: Tensor = decoder.mid_block(x_BCTHW, feat_cache=cache, feat_idx=place)
        return out

    def upper(x_BCTHW: Tensor, cache: list[Any], place: list[int], *, first: bool) -> Tensor:
        for block in decoder.up_blocks:
            x_BCTHW = block(x_BCTHW, feat_cache=cache, feat_idx=place, first_chunk=first)
        x_BCTHW = decoder.nonlinearity(decoder.norm_out(x_BCTHW))
        return _convolve(decoder.conv_out, x_BCTHW, cache, place)

    batch, _, time, rows, columns = latents_BCTHW.shape
    x_BCTHW = vae.post_quant_conv(latents_BCTHW)
    cache: list[Any] = [None] * CACHE
    middle = [lower(x_BCTHW[:, :, t : t + 1], cache, [0]) for t in range(time)]
    frames = 1 + STRIDE[0] * (time - 1)
    size = (batch, vae.config.out_channels, frames, rows * scale, columns * scale)
    video_BCFHW = latents_BCTHW.new_empty(size)
    for strip, needed in strips_of(rows, count):
        cache, done = [None] * CACHE, 0
        inner = slice((strip.start - needed.start) * scale, (strip.stop - needed.start) * scale)
        for t, part in enumerate(middle):
            pixels = upper(part[:, :, :, needed.start : needed.stop], cache, [0], first=t == 0)
            new = slice(done, done + pixels.shape[2])
            target = video_BCFHW[:, :, new, strip.start * scale : strip.stop * scale]
            target.copy_(pixels[:, :, :, inner].clamp(-1, 1))
            done = new.stop
    return video_BCFHW


def _encode_in_strips(vae: AutoencoderKLWan, video_BCFHW: Tensor, count: int) -> Tensor:
    """Means and logarithms of variances, before normalisation."""
    import torch

    encoder, scale = vae.encoder, vae.spatial_compression_ratio

    def lower(x_BCTHW: Tensor, cache: list[Any], place: list[int]) -> Tensor:
        x_BCTHW = _convolve(encoder.conv_in, x_BCTHW, cache, place)
        for layer in encoder.down_blocks:
            x_BCTHW = layer(x_BCTHW, feat_cache=cache, feat_idx=place)
        return x_BCTHW

    def upper(x_BCTHW: Tensor, cache: list[Any], place: list[int]) -> Tensor:
        x_BCTHW = encoder.mid_block(x_BCTHW, feat_cache=cache, feat_idx=place)
        x_BCTHW = encoder.nonlinearity(encoder.norm_out(x_BCTHW))
        return _convolve(encoder.conv_out, x_BCTHW, cache, place)

    step, frames = STRIDE[0], video_BCFHW.shape[2]
    chunks = [slice(0, 1), *(slice(start, start + step) for start in range(1, frames, step))]
    columns: list[list[Tensor]] = [[] for _ in chunks]
    for strip, needed in strips_of(video_BCFHW.shape[3] // scale, count):
        cache: list[Any] = [None] * CACHE
        rows = video_BCFHW[:, :, :, needed.start * scale : needed.stop * scale]
        inner = slice(strip.start - needed.start, strip.stop - needed.start)
        for chunk, parts in zip(chunks, columns, strict=True):
            parts.append(lower(rows[:, :, chunk], cache, [0])[:, :, :, inner].clone())
    cache = [None] * CACHE
    moments = [upper(torch.cat(parts, dim=3), cache, [0]) for parts in columns]
    out: Tensor = vae.quant_conv(torch.cat(moments, dim=2))
    return out


def _convolve(layer: Any, x_BCTHW: Tensor, cache: list[Any], place: list[int]) -> Tensor:
    """A causal convolution of one chunk, which keeps its last two frames for the next. Source: diffusers."""
    import torch

    index = place[0]
    last = x_BCTHW[:, :, -2:].clone()
    if last.shape[2] < 2 and cache[index] is not None:
        last = torch.cat([cache[index][:, :, -1:], last], dim=2)
    out: Tensor = layer(x_BCTHW, cache[index])
    cache[index] = last
    place[0] += 1
    return out


def _set_tiling(vae: AutoencoderKLWan, strips: int) -> None:
    (vae.enable_tiling if strips == TILES else vae.disable_tiling)()


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
