"""Sampling: which expert takes which step, the initial noise, and the Euler loop with guidance.

s_i = 1 - i/n;  sigma = shift * s / (1 + (shift - 1) * s);  timestep = 1000 sigma;  x += v * (sigma' - sigma).
Source: DiffSynth-Studio's FlowMatchScheduler as the SVI authors' scripts call it (float32 throughout).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from svi_story.engines.base import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from diffusers import WanTransformer3DModel
    from torch import Tensor

    from svi_story.engines.svi.weights.candidates import Expert
    from svi_story.enginespec.sampling import Sampler
    from svi_story.plan.model import Size

    AfterStep = Callable[[int, Tensor, Tensor], None]
    """Called with the steps done so far, x_BCTHW after them and the velocity of the last one.

    Must not wait for the device without need.
    """

TIMESTEPS = 1000
STRIDE = (4, 8, 8)
"""Frames, rows and columns of pixels that one latent stands for (the first latent for one frame only)."""


@dataclass(frozen=True)
class Step:
    """One step of the sampler."""

    index: int
    expert: Expert
    timestep: float
    """Not rounded."""
    delta: float
    """sigma' - sigma, negative."""
    guidance: float


def sigmas(steps: int, shift: float) -> Tensor:
    """sigma_S, float32, from 1 downwards; the 0 that follows the last is left out."""
    import torch

    s_S = torch.linspace(1, 0, steps + 1)[:-1]
    return shift * s_S / (1 + (shift - 1) * s_S)


def make_steps(sampler: Sampler) -> tuple[Step, ...]:
    """All steps of a segment. Timesteps of boundary * 1000 and more belong to the high-noise expert."""
    import torch

    sigma_S = sigmas(sampler.steps, sampler.shift)
    delta_S = torch.cat([sigma_S[1:], sigma_S.new_zeros(1)]) - sigma_S
    timestep_S = sigma_S * TIMESTEPS
    steps: list[Step] = []
    for index, (timestep, delta) in enumerate(zip(timestep_S.tolist(), delta_S.tolist(), strict=True)):
        high = timestep >= sampler.boundary * TIMESTEPS
        guidance = sampler.guidance.high if high else sampler.guidance.low
        steps.append(Step(index, "high" if high else "low", timestep, delta, guidance))
    return tuple(steps)


def count_high_noise_steps(sampler: Sampler) -> int:
    """How many steps are the high-noise expert's, without torch.

    Where a timestep meets the boundary exactly, torch's last bit may decide for one step more or less.
    """
    import numpy as np

    s_S = np.linspace(1, 0, sampler.steps + 1, dtype=np.float32)[:-1]
    sigma_S = np.float32(sampler.shift) * s_S / (1 + np.float32(sampler.shift - 1) * s_S)
    return int((sigma_S * np.float32(TIMESTEPS) >= np.float32(sampler.boundary * TIMESTEPS)).sum())


def phases_of(sampler: Sampler, high: int, lora_sets: Mapping[Expert, str]) -> tuple[Phase, ...]:
    """The VAE's encoding, then each expert's run of steps, of which `high` are the high-noise expert's."""
    low = sampler.steps - high
    passes_high = high * (1 if sampler.guidance.high == 1 else 2)
    passes_low = low * (1 if sampler.guidance.low == 1 else 2)
    frames = sampler.variant == "2.0"  # 2.0 Pro continues from latents alone
    phases = (
        Phase("vae", 0, 0, 0, needs_frames=frames),
        Phase("high", 1, high, passes_high, lora_sets["high"], frames),
        Phase("low", 2, sampler.steps, passes_low, lora_sets["low"], frames),
    )
    return tuple(phase for phase in phases if phase.passes or phase.model == "vae")


def latent_count(frames: int) -> int:
    """Latents along time for 4k+1 frames: k+1."""
    return (frames - 1) // STRIDE[0] + 1


def latent_shape(frames: int, size: Size, channels: int) -> tuple[int, int, int, int, int]:
    """[1, channels, latents, rows, columns] of a segment's latents."""
    return 1, channels, latent_count(frames), size.height // STRIDE[1], size.width // STRIDE[2]


def make_noise(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The initial noise x_BCTHW on the CPU: drawn as float32 there whatever the machine, then rounded."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)


@dataclass(frozen=True)
class Inputs:
    """What stays the same through all steps of a segment, on the device and in the model's dtype."""

    y_BCTHW: Tensor
    positive_BLD: Tensor
    negative_BLD: Tensor
    timestep_S: Tensor
    """In the model's dtype, as upstream rounds it: in bfloat16 a multiple of 4 near 1000."""


def denoise(
    x_BCTHW: Tensor,
    steps: Sequence[Step],
    predict: Callable[[Tensor, Step], Tensor],
    after_step: AfterStep,
    start: int = 0,
) -> Tensor:
    """x_BCTHW after the steps from `start` on. `predict` gives the velocity; nothing waits for the device."""
    for step in steps[start:]:
        velocity_BCTHW = predict(x_BCTHW, step)
        x_BCTHW = x_BCTHW + velocity_BCTHW * step.delta
        after_step(step.index + 1, x_BCTHW, velocity_BCTHW)
    return x_BCTHW


def guided(
    inputs: Inputs, expert: Callable[[Expert], WanTransformer3DModel]
) -> Callable[[Tensor, Step], Tensor]:
    """The velocity with guidance: neg + g * (pos - neg), one pass after the other; one pass when g is 1."""
    import torch

    known: dict[object, Any] = {}
    """What the last expert computed that is the same in several passes."""
    last: Expert | None = None

    def predict(x_BCTHW: Tensor, step: Step) -> Tensor:
        nonlocal last
        if step.expert != last:
            known.clear()
            last = step.expert
        model = expert(step.expert)
        input_BCTHW = torch.cat([x_BCTHW, inputs.y_BCTHW], dim=1)
        positive = _velocity(model, input_BCTHW, inputs, inputs.positive_BLD, step, known)
        if step.guidance == 1:
            return positive
        negative = _velocity(model, input_BCTHW, inputs, inputs.negative_BLD, step, known)
        return positive.sub_(negative).mul_(step.guidance).add_(negative)  # in place, rounded all the same

    return predict


def _velocity(
    model: WanTransformer3DModel,
    input_BCTHW: Tensor,
    inputs: Inputs,
    context_BLD: Tensor,
    step: Step,
    known: dict[object, Any],
) -> Tensor:
    """One forward pass. `input_BCTHW` is the noisy latents, joined with the conditioning on the channel axis.

    `known` has what earlier passes of this model computed for the same size, text or step.
    """
    import torch

    embedder = model.condition_embedder
    with (
        torch.no_grad(),
        _once(model.rope, known, "positions"),
        _once(embedder.text_embedder, known, id(context_BLD)),
        _once(embedder.time_embedder, known, ("time", step.index)),
        _once(embedder.time_proj, known, ("projected time", step.index)),
    ):
        velocity_BCTHW: Tensor = model(
            hidden_states=input_BCTHW,
            timestep=inputs.timestep_S[step.index : step.index + 1],
            encoder_hidden_states=context_BLD,
            return_dict=False,
        )[0]
    return velocity_BCTHW


@contextmanager
def _once(module: Any, known: dict[object, Any], key: object) -> Iterator[None]:
    """Within, a module returns what is known by a key, and computes it where nothing is."""
    compute = module.forward

    def forward(*inputs: Any) -> Any:
        if key not in known:
            known[key] = compute(*inputs)
        return known[key]

    module.forward = forward
    try:
        yield
    finally:
        del module.forward
