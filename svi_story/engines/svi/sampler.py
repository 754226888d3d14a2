"""The loop: plain Euler on the predicted velocity, with classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diffusers import WanTransformer3DModel
    from torch import Tensor

    from svi_story.engines.svi.layout import Expert
    from svi_story.engines.svi.schedule import Step

    Predict = Callable[[Tensor, Step], Tensor]
    """The velocity v_BCTHW at x_BCTHW in a step."""
    AfterStep = Callable[[int, Tensor], None]
    """Called with the steps done so far and x_BCTHW after them; must not wait for the device without need."""


@dataclass(frozen=True)
class Inputs:
    """What stays the same through all steps of a segment, on the device and in the model's dtype."""

    y_BCTHW: Tensor
    positive_BLD: Tensor
    negative_BLD: Tensor
    timestep_S: Tensor
    """In the model's dtype, as upstream rounds it: in bfloat16 a multiple of 4 near 1000."""


def denoise(
    x_BCTHW: Tensor, steps: Sequence[Step], predict: Predict, after_step: AfterStep, start: int = 0
) -> Tensor:
    """x_BCTHW after the steps from `start` on. Nothing in here waits for the device."""
    for step in steps[start:]:
        x_BCTHW = x_BCTHW + predict(x_BCTHW, step) * step.delta
        after_step(step.index + 1, x_BCTHW)
    return x_BCTHW


def guided(inputs: Inputs, expert: Callable[[Expert], WanTransformer3DModel]) -> Predict:
    """The velocity with guidance: neg + g * (pos - neg), one pass after the other; one pass when g is 1."""

    def predict(x_BCTHW: Tensor, step: Step) -> Tensor:
        model = expert(step.expert)
        positive = _velocity(model, x_BCTHW, inputs, inputs.positive_BLD, step)
        if step.guidance == 1:
            return positive
        negative = _velocity(model, x_BCTHW, inputs, inputs.negative_BLD, step)
        return negative + step.guidance * (positive - negative)

    return predict


def _velocity(
    model: WanTransformer3DModel, x_BCTHW: Tensor, inputs: Inputs, context_BLD: Tensor, step: Step
) -> Tensor:
    """One forward pass; the conditioning joins the noisy latents on the channel axis."""
    import torch

    with torch.no_grad():
        velocity_BCTHW: Tensor = model(
            hidden_states=torch.cat([x_BCTHW, inputs.y_BCTHW], dim=1),
            timestep=inputs.timestep_S[step.index : step.index + 1],
            encoder_hidden_states=context_BLD,
            return_dict=False,
        )[0]
    return velocity_BCTHW
