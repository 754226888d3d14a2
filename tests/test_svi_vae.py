"""The VAE in strips gives what it gives as a whole; how many strips are used, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import svi_support as support
import torch
from diffusers import AutoencoderKLWan
from svi_support import Full, Live, Recorder

from svi_story.engines.svi import vae
from svi_story.engines.svi.device import FreeMemory
from svi_story.engines.svi.memory import decoding_activations
from svi_story.engines.svi.vae import STRIPS, TILES, WHOLE, strips_of
from svi_story.engines.svi.weights.architecture import A14B
from svi_story.engines.svi.weights.loading import Placement, load_vae
from svi_story.errors import RenderError
from svi_story.plan.model import Size
from svi_story.units import GIB

if TYPE_CHECKING:
    from svi_story.engines.base import Latents

PLENTY = FreeMemory(1000 * GIB, 1000 * GIB)


def test_strips_cover_every_row_once_with_what_they_need() -> None:
    for rows in (3, 30, 60, 90):
        for count in STRIPS:
            strips = strips_of(rows, count)
            assert [row for strip, _ in strips for row in strip] == list(range(rows))
            for strip, needed in strips:
                assert needed.start == max(0, strip.start - vae.HALO)
                assert needed.stop == min(rows, strip.stop + vae.HALO)


def model_of(width: int) -> AutoencoderKLWan:
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=width).eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize(
    ("width", "rows"), [(8, 60), pytest.param(96, 30, marks=pytest.mark.slow)], ids=["narrow", "full width"]
)
def test_strips_give_what_the_whole_gives(width: int, rows: int) -> None:
    model, latents = model_of(width), torch.randn(1, 16, 2, rows, 1)
    video = torch.rand(1, 3, 5, 8 * rows, 8) * 2 - 1
    for run, given in ((vae.decode, latents), (vae.encode, video)):
        whole = run(model, given)
        for count in STRIPS[:1] if width == 96 else STRIPS:
            assert (run(model, given, count) - whole).abs().max() < 1e-5


def test_what_is_around_a_strip_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With less than half of it, the test above would fail."""
    model, latents = model_of(8), torch.randn(1, 16, 1, 60, 1)
    whole = vae.decode(model, latents)
    monkeypatch.setattr(vae, "HALO", 6)
    assert (vae.decode(model, latents, 2) - whole).abs().max() > 1e-3


@pytest.mark.parametrize(("strips", "parts"), [(WHOLE, 1), (2, 2), (TILES, 2)])
def test_latents_are_counted(strips: int, parts: int) -> None:
    model = load_vae(support.find_models(support.MODELS).vae, Placement(support.CPU, torch.float32))
    told: list[tuple[int, int]] = []
    with vae.reporting(model, (3, 8, 40), strips, lambda *count: told.append(count)):
        video = vae.decode(model, torch.zeros(1, 16, 3, 8, 40), strips)
        assert told == [((done + 1) // parts, 3) for done in range(3 * parts)]
        told.clear()
        vae.encode(model, video, strips)
    assert told[-1] == (3, 3)
    vae.decode(model, torch.zeros(1, 16, 1, 8, 8))
    assert told[-1] == (3, 3)  # not counted any more


@pytest.mark.parametrize("size", [Size(832, 480), Size(1280, 720)])
@pytest.mark.parametrize("strips", [WHOLE, 2])
def test_the_vae_holds_what_is_computed(size: Size, strips: int) -> None:
    frames = 9
    with torch.device("meta"):
        model = AutoencoderKLWan().requires_grad_(requires_grad=False)
        latents = torch.empty(1, 16, (frames - 1) // 4 + 1, size.height // 8, size.width // 8)
        video = torch.empty(1, 3, frames, size.height, size.width)
    with Live(model) as decoding:
        vae.to_frames(vae.decode(model, latents, strips))
    with Live(model) as encoding:
        vae.encode(model, video, strips)
    activations = decoding_activations(A14B, size, frames, strips)
    assert encoding.peak < decoding.peak <= activations < 1.05 * decoding.peak


# --- when memory runs out


SEGMENT = support.segment(0, "2.0-pro", frames=5)
OTHER = replace(SEGMENT, size=Size(64, 64))


def latents_of(size: Size) -> Latents:
    return {"latents": np.zeros((1, 16, 2, size.height // 8, size.width // 8), np.float32)}


@pytest.mark.parametrize(
    ("fails", "recorded", "tried"),
    [
        (set(), "untiled", [1]),
        ({1}, "untiled", [1, 1]),  # memory was in pieces
        ({1, 2}, "2 strips", [1, 1, 2]),
        ({1, 2, 3, 4}, "8 strips", [1, 1, 2, 4, 8]),
        ({1, 2, 3, 4, 5}, "tiled", [1, 1, 2, 4, 8, 0]),
    ],
)
def test_first_strips_then_tiles(
    fails: set[int], recorded: str, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, recorder = list[int](), Recorder()
    counted = Full(lambda latents: torch.zeros(1, 3, 5, 8 * latents.shape[3], 8 * latents.shape[4]), fails)

    def decode(_: object, latents: torch.Tensor, strips: int) -> object:
        seen.append(strips)
        return counted(latents)

    monkeypatch.setattr(vae, "decode", decode)
    with support.engine(report=recorder, free_memory=PLENTY) as svi:
        list(svi.decode(SEGMENT, latents_of(SEGMENT.size)))
        assert svi.environment()["vae"] == recorded
        assert seen == tried
        list(svi.decode(SEGMENT, latents_of(SEGMENT.size)))
        assert seen == [*tried, tried[-1]]  # what was found out is remembered
        list(svi.decode(OTHER, latents_of(OTHER.size)))
        assert seen[-1] == WHOLE
        assert svi.environment()["vae"] == "untiled"
    for strips in STRIPS:
        assert (f"from here on it works in {strips} strips" in str(recorder)) == (strips in tried)
    assert ("from here on it works in tiles, which may show" in str(recorder)) == (TILES in tried)


@pytest.mark.parametrize(("asked", "recorded"), [("strips", "2 strips"), ("tiles", "tiled")])
def test_strips_and_tiles_may_be_asked_for(asked: str, recorded: str) -> None:
    with support.engine(vae=asked, free_memory=PLENTY) as svi:
        list(svi.decode(SEGMENT, latents_of(SEGMENT.size)))
        assert svi.environment()["vae"] == recorded


def test_the_number_of_strips_follows_from_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 720p and 81 frames, with the published VAE, on cards of 12, 16 and 24 GB."""
    monkeypatch.setattr("svi_story.engines.svi.memory_manager.count_parameters", lambda _: A14B)
    with support.engine() as svi:
        manager = svi._running().memory
        for free, strips in ((22, 2), (15, 2), (12, 4), (10, 8), (8, TILES)):
            monkeypatch.setattr(manager, "measure", lambda free=free: FreeMemory(free * GIB, 64 * GIB))
            assert manager._next_strips(WHOLE, Size(1280, 720), 81) == strips


def test_a_device_too_small_for_tiles_fails_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "decode", Full(vae.decode, {1}))
    with support.engine(vae="tiles") as svi:
        with pytest.raises(RenderError, match="in tiles and alone on the device"):
            list(svi.decode(SEGMENT, latents_of(SEGMENT.size)))
        assert len(list(svi.decode(SEGMENT, latents_of(SEGMENT.size)))) == 5
