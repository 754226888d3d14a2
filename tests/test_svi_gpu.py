"""The engine on a real GPU; `benchmarks/gpu_day.py` runs these too."""

from __future__ import annotations

import numpy as np
import pytest
import svi_support as support
import torch
from svi_support import VARIANTS, Made

from svi_story.engines.svi import vae
from svi_story.engines.svi.engine import Svi
from svi_story.engines.svi.options import SviOptions
from svi_story.engines.svi.weights.loading import Placement, load_vae

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def chain(variant: str, dtype: str, memory: str = "auto") -> list[Made]:
    """The reference chain's three clips."""
    options = SviOptions(support.folders(), dtype=dtype, device="cuda", memory=memory)
    with Svi(options, anchor_pixels=lambda _: support.anchor_picture()) as svi:
        segments = [support.segment(clip, variant) for clip in range(3)]
        svi.prepare(segments)
        return support.render(svi, segments)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_is_the_reference_implementation_s(variant: str) -> None:
    for clip, made in enumerate(chain(variant, "float32")):
        wanted = support.chain()[f"{variant}/clip{clip}/latents"]
        assert support.deviation(made.latents, wanted) < (2e-2 if clip and variant == "2.0" else 1e-3)


def test_every_memory_mode_gives_the_same_bits_again_and_again() -> None:
    first, *others = [
        chain("2.0-pro", "bfloat16", mode) for mode in ("resident", "offload", "stream", "stream")
    ]
    for other in others:
        for one, same in zip(first, other, strict=True):
            assert np.array_equal(one.latents, same.latents)
            assert np.array_equal(one.frames, same.frames)


def test_no_step_waits_for_the_gpu() -> None:
    def strict(done: int, steps: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if 2 <= done < steps else "default")

    sampler = support.sampler("2.0-pro", steps=6, boundary=0.0)
    one = support.segment(0, "2.0-pro", sampler)
    options = SviOptions(support.folders(), device="cuda", memory="resident", checkpoint_every=100)
    with Svi(options, anchor_pixels=lambda _: support.anchor_picture()) as svi:
        svi.prepare([one])
        try:
            svi.sample(one, None, support.Memory(), strict)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_strips_are_the_whole_picture_but_for_rounding() -> None:
    model = load_vae(support.find_models(support.MODELS).vae, Placement(torch.device("cuda"), torch.float32))
    latents = support.units()["vae/latents"].cuda()
    whole = vae.decode(model, latents)
    assert (whole.cpu() - support.units()["vae/decoded"]).abs().max() < 1e-3
    for strips in (2, 4):
        assert (vae.decode(model, latents, strips) - whole).abs().max() < 1e-4
