"""What a preset fills in where the board leaves a value open. Source: the authors' scripts."""

from __future__ import annotations

from dataclasses import dataclass

from svi_story.plan.model import Distill, Guidance, Size

STANDARD = Size(832, 480)
"""What the model was trained at."""


@dataclass(frozen=True)
class Preset:
    """One coherent set of sampler settings."""

    steps: int
    guidance: Guidance
    shift: float
    boundary: float
    size: Size = STANDARD
    distill: Distill | None = None


LIGHTX2V = Distill(high=0.5, low=1.0, files=None)
"""The strengths of the authors' ComfyUI graphs; more on the high-noise expert slows motion down."""


PRESETS = {
    # The authors' script: 50 Euler steps with guidance.
    "quality": Preset(steps=50, guidance=Guidance(5.0, 5.0), shift=5.0, boundary=0.875),
    # With the LightX2V distillation pair.
    "fast": Preset(steps=6, guidance=Guidance(1.5, 1.5), shift=8.0, boundary=0.9, distill=LIGHTX2V),
    # The same with fewer steps, at half the size in each direction.
    "draft": Preset(
        steps=4, guidance=Guidance(1.5, 1.5), shift=8.0, boundary=0.9, size=Size(416, 240), distill=LIGHTX2V
    ),
}
