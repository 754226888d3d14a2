"""Settings that the reference chains don't have: the engine agrees with a plain second implementation."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import pytest
import svi_plain as plain
import svi_support as support
import torch
from svi_support import VARIANTS

from svi_story.enginespec.sampling import Guidance
from svi_story.plan.model import Segment, Size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.engines.svi.engine import Svi

CASES: dict[str, dict[str, object]] = {
    "six steps, shift 8": {"steps": 6, "shift": 8.0, "boundary": 0.9},
    "one guidance for each expert": {"guidance": Guidance(4.0, 3.5)},
    "no guidance": {"guidance": Guidance(1.0, 1.0)},
    "guidance on the low expert only": {"guidance": Guidance(1.0, 2.0)},
    "boundary 0.9": {"boundary": 0.9, "steps": 5},
    "the low expert alone": {"boundary": 1.1, "steps": 2},
    "the high expert alone": {"boundary": 0.0, "steps": 2},
    "one step": {"steps": 1},
    "shift 1": {"shift": 1.0, "steps": 3},
}
TOLERANCE = 1e-4


PORTRAIT = Size(48, 96)
PICTURES = {
    "anchor": support.anchor_picture(),
    "portrait": np.random.default_rng(3).integers(0, 256, (96, 48, 3), dtype=np.uint8),
}


@pytest.fixture(scope="module")
def svi() -> Iterator[Svi]:
    """One engine for all: what it made before must not matter."""
    with support.engine(pictures=PICTURES) as entered:
        yield entered


def compare(svi: Svi, segments: list[Segment]) -> None:
    """Both implementations make the same latents of a chain (given the same carry)."""
    made = support.render(svi, segments)
    shown = PICTURES[segments[0].anchor.pixels]
    models = plain.load(support.MODELS, segments[0].sampler.variant)
    before = None
    for one, clip in zip(segments, made, strict=True):
        wanted = plain.clip(models, one, shown, before)
        assert support.deviation(clip.latents, wanted) < TOLERANCE
        before = torch.tensor(clip.latents), clip.frames[-1]


@pytest.mark.parametrize(("name", "variant"), list(zip(CASES, cycle(VARIANTS), strict=False)))
def test_sampler_settings(svi: Svi, name: str, variant: str) -> None:
    settings = support.sampler(variant, **CASES[name])
    compare(svi, [support.segment(0, variant, settings, frames=5)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_portrait(svi: Svi, variant: str) -> None:
    settings = support.sampler(variant, steps=2)
    anchor = replace(support.segment().anchor, pixels="portrait")
    changes = {"size": PORTRAIT, "anchor": anchor, "frames": 5}
    compare(svi, [support.segment(i, variant, settings, **changes) for i in range(2)])


@pytest.mark.parametrize("motion_latents", [2, 3])
def test_motion_latents(svi: Svi, motion_latents: int) -> None:
    settings = support.sampler("2.0-pro", steps=2, motion_latents=motion_latents)
    compare(svi, [support.segment(i, "2.0-pro", settings, frames=4 * motion_latents + 5) for i in range(2)])


def test_a_clip_of_one_latent(svi: Svi) -> None:
    compare(svi, [support.segment(0, "2.0", support.sampler("2.0", steps=2), frames=1)])


@pytest.mark.parametrize(
    "prompt",
    [
        "\u201cCurly\u201d quotes \u2014 and an ellipsis\u2026",
        "&amp;quot;twice escaped&amp;quot; &lt;b&gt;",
        "  lines\r\n\tand\u00a0tabs \u3000 ",
        "sÃ© mojibake â€œquotesâ€",
        "",
        "word " * 700,
        "\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff01 \ud83d\udc08",
        "\x00\x1b[31mcontrol\x07 characters",
    ],
)
def test_odd_prompts(svi: Svi, prompt: str) -> None:
    settings = support.sampler(steps=1)
    compare(
        svi, [support.segment(0, settings=settings, frames=5, prompt=prompt, negative_prompt=prompt[::-1])]
    )
