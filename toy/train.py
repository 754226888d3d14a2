"""Train the toy: a VAE, a base model, two experts, and a pair of SVI LoRAs for each variant.

    python toy/train.py                          # every stage that is not done yet, in order
    python toy/train.py --stage vae --steps 300  # one of them, shortened

Interrupted at any time, it continues where it was. Every step has its own seed, so a stage that was
interrupted takes the same steps as one that was not. Losses go to log.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import networks
import numpy as np
import torch
from data import PRO_OVERLAP, SEED, Films, begin_anywhere, choose, make_data, pieces, to_video
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from svi_story.engines.svi.sampler import TIMESTEPS
from svi_story.enginespec.svi import PRESETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.random import Generator

    Loss = Callable[[Generator, float], Tensor]
    """The loss of one step, from what is random in it and how much of the stage is done (0 to 1)."""
    Parameters = Sequence[nn.Parameter]

WORK = Path(__file__).parent / "work"
SCHEDULE = PRESETS["quality"]
"""Its shift, and the boundary between the experts, are the toy's."""


class Plan(NamedTuple):
    """How a stage is trained."""

    steps: int
    rate: float
    """The highest learning rate."""
    start: str = ""
    """The stage whose weights it starts from."""


PLANS = {
    "vae": Plan(9000, 2e-3),
    "decoder": Plan(5000, 1.5e-3, "vae-normalised"),
    "fast": Plan(3000, 5e-4, "decoder"),
    "base": Plan(3000, 1.5e-3),
    "high": Plan(1000, 6e-4, "base"),
    "low": Plan(1000, 6e-4, "base"),
    "2.0-high": Plan(1400, 2.5e-3, "high"),
    "2.0-low": Plan(1400, 2.5e-3, "low"),
    "2.0-pro-high": Plan(1400, 2.5e-3, "high"),
    "2.0-pro-low": Plan(1400, 2.5e-3, "low"),
}
ORDER = (
    ("vae",),
    ("data",),
    ("base", "decoder"),
    ("high", "low"),
    ("2.0-pro-high", "2.0-pro-low"),
    ("2.0-high", "2.0-low"),
    ("fast",),
)
"""Stages in one line are trained at the same time, each with half of the threads."""
SAVE_SECONDS, LOG_STEPS = 60, 50
NARROW = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
"""Train the VAE in bfloat16, as the committed one was: on CPUs without it, that takes ten times as long."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    work: Path
    steps: int | None = None
    """Instead of the planned ones."""
    minutes: float | None = None
    """Instead of steps: as many as fit, which is not repeatable."""
    share: float = 1
    """Of the planned films, how many are drawn."""
    batch: int = 32
    """Clips in each step of an expert; the VAE's pieces of films are fewer."""
    until: int | None = None
    """Stop after this step, as an interruption would: to compare losses with those of another training."""

    def file(self, name: str) -> Path:
        """One of the files that stages leave for each other."""
        return self.work / f"{name}.safetensors"

    def log(self, **line: object) -> None:
        """Add a line to the log."""
        told = json.dumps(
            {name: float(f"{x:.5g}") if isinstance(x, float) else x for name, x in line.items()}
        )
        print(told, flush=True)
        with (self.work / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(told + "\n")


def fit(
    stage: str,
    parameters: Parameters,
    loss_at: Loss,
    options: Options,
    judge: Callable[[], float] | None = None,
) -> bool:
    """Train parameters, and leave their moving average in them. What `judge` finds is logged now and then.

    Whether all steps were taken.
    """
    plan, state_file = PLANS[stage], options.work / f"{stage}.state"
    steps = options.steps or plan.steps
    warm_up = min(100, steps / 10)
    average = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.01)
    step, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        step, seconds, average = state["step"], state["seconds"], state["average"]
        optimizer.load_state_dict(state["optimizer"])
        _set(parameters, state["parameters"])
    losses: list[float] = []
    clock = saved = time.monotonic()
    while (done := seconds / (60 * options.minutes) if options.minutes else step / steps) < 1:
        if step == options.until:
            return False
        rate = plan.rate * min(1, (step + 1) / warm_up) * (0.51 + 0.49 * math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rng = np.random.default_rng([SEED, *stage.encode(), step])
        torch.manual_seed(int(rng.integers(2**31)))
        loss = loss_at(rng, done)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        forget = max(0.002, 1 / (step / 10 + 1))
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], forget)
        losses.append(loss.item())
        now = time.monotonic()
        seconds, clock = seconds + now - clock, now
        if step % LOG_STEPS:
            continue
        about = {}
        if judge and step % (10 * LOG_STEPS) == 0:
            with _averaged(parameters, average):
                about["judged"] = judge()
        mean = float(np.mean(losses))
        options.log(stage=stage, step=step, seconds=round(seconds), loss=mean, **about)
        losses.clear()
        if now - saved > SAVE_SECONDS:
            saved = now
            state = {
                "step": step,
                "seconds": seconds,
                "average": average,
                "optimizer": optimizer.state_dict(),
            }
            state["parameters"] = [parameter.detach() for parameter in parameters]
            unfinished = state_file.with_suffix(".unfinished")
            torch.save(state, unfinished)
            unfinished.replace(state_file)
    _set(parameters, average)
    options.log(stage=stage, step=step, seconds=round(seconds), finished=True)
    return True


def _set(parameters: Parameters, values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


@contextmanager
def _averaged(parameters: Parameters, average: Sequence[Tensor]) -> Iterator[None]:
    before = [parameter.detach().clone() for parameter in parameters]
    _set(parameters, average)
    yield
    _set(parameters, before)


# --- the VAE


def train_vae(stage: str, options: Options) -> None:
    """L1 and square error, on whole pictures first, then on moving pieces of films.

    Then the decoder alone, on what the encoder makes of moving pieces: the experts' latents stay as they are.
    "fast" continues with films of which half move as fast as the clips of 2.0 Pro, from the decoder as it is
    exported, in float16.
    """
    torch.manual_seed(SEED)
    alone, vae = stage != "vae", networks.make_vae()
    noise = 0.1 if alone else 0.03  # about 5 % of a latent's deviation, which is larger after `normalise`
    if alone:
        start = load_file(options.file(PLANS[stage].start))
        if stage == "fast":
            start = {name: tensor.half().float() for name, tensor in start.items()}
        vae.load_state_dict(start)
        vae.encoder.requires_grad_(requires_grad=False)
        vae.quant_conv.requires_grad_(requires_grad=False)
    rng = np.random.default_rng([SEED, 1])
    films = []
    for _ in range(max(16, round(1000 * options.share))):
        story, _anchor = begin_anywhere(rng)
        films.append(story.clip(choose(story, rng)))
        if stage == "fast":
            films.append(story.clip(choose(story, rng), PRO_OVERLAP))
    held_out = to_video(films[:8])
    bank = np.stack(films[8:])

    def loss_at(rng: Generator, done: float) -> Tensor:
        video_BCFHW = to_video(pieces(bank, rng, 1 if alone else done, options.batch))
        with torch.autocast("cpu", torch.bfloat16, enabled=NARROW):
            mean_BCTHW = networks.encode(vae, video_BCFHW).float()
            noisy_BCTHW = mean_BCTHW + noise * torch.randn_like(mean_BCTHW)
            error = networks.decode(vae, noisy_BCTHW).float() - video_BCFHW
        if alone:
            return error.abs().mean() + 10 * error.square().mean()
        return error.abs().mean() + 2 * error.square().mean() + 1e-4 * mean_BCTHW.square().mean()

    def psnr() -> float:
        with torch.no_grad():
            seen = networks.decode(vae, networks.encode(vae, held_out)).clamp(-1, 1)
        return float((-10 * ((seen - held_out) / 2).square().mean(dim=(1, 2, 3, 4)).log10()).mean())

    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    if fit(stage, trained, loss_at, options, psnr):
        save_file(vae.state_dict(), options.file(stage))


# --- the experts


def train_expert(stage: str, options: Options) -> None:
    """The base, an expert, or the LoRA of one; the loss of flow matching on the noise that it is for."""
    torch.manual_seed(SEED)
    variant = stage.rpartition("-")[0]
    expert, start = networks.make_expert(), PLANS[stage].start
    if start:
        expert.load_state_dict(load_file(options.file(start)))
    tensors = networks.add_lora(expert) if variant else dict(expert.named_parameters())
    padding = networks.use_padding(expert)
    films = Films(options.work, options.batch)
    middle = SCHEDULE.boundary / (SCHEDULE.shift - (SCHEDULE.shift - 1) * SCHEDULE.boundary)
    least, most = {"high": (middle, 1.0), "low": (0.0, middle)}.get(stage.rpartition("-")[2], (0.0, 1.0))

    def loss_at(rng: Generator, _done: float) -> Tensor:
        x_BCTHW, y_BCTHW, actions = films.batch(variant, rng)
        context_BLD, padding.bias = films.say(actions, rng)
        s_B = least + (most - least) * torch.rand(options.batch)
        sigma_B = SCHEDULE.shift * s_B / (1 + (SCHEDULE.shift - 1) * s_B)
        noise_BCTHW = torch.randn_like(x_BCTHW)
        noisy_BCTHW = torch.lerp(x_BCTHW, noise_BCTHW, sigma_B.view(-1, 1, 1, 1, 1))
        velocity_BCTHW = expert(
            hidden_states=torch.cat([noisy_BCTHW, y_BCTHW], dim=1),
            timestep=sigma_B * TIMESTEPS,
            encoder_hidden_states=context_BLD,
            return_dict=False,
        )[0]
        loss: Tensor = (velocity_BCTHW - (noise_BCTHW - x_BCTHW)).square().mean()
        return loss

    if fit(stage, list(tensors.values()), loss_at, options):
        trained = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(trained, options.file(stage))


# --- the command


def train(stage: str, options: Options) -> None:
    """Train one stage, unless it is done."""
    if options.file(stage).exists():
        return
    if stage in ("vae", "decoder", "fast"):
        train_vae(stage, options)
    elif stage == "data":
        options.log(stage="data", finished=True, **make_data(options.work, options.share))
    else:
        train_expert(stage, options)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=["data", *PLANS], help="this stage alone")
    parser.add_argument("--steps", type=int, help="of each stage, instead of the planned ones")
    parser.add_argument("--until", type=int, help="stop after this step; with --stage")
    parser.add_argument("--minutes", type=float, help="for each stage, instead of steps; not repeatable")
    parser.add_argument("--share", type=float, default=1, help="of the planned films, drawn: 0 to 1")
    parser.add_argument("--batch", type=int, default=32, help="clips in each step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=WORK, help="a folder for everything unfinished")
    asked = parser.parse_args(words)
    if asked.until and not asked.stage:
        parser.error("--until needs --stage: the next stage starts from what a whole one leaves")
    asked.work.mkdir(parents=True, exist_ok=True)
    options = Options(asked.work, asked.steps, asked.minutes, asked.share, asked.batch, asked.until)
    torch.set_num_threads(asked.threads)
    if asked.stage:
        train(asked.stage, options)
        return
    given = list(sys.argv[1:] if words is None else words)
    for stages in ORDER:
        threads = str(max(1, asked.threads // len(stages)))
        runs = [
            [sys.executable, __file__, *given, "--stage", stage, "--threads", threads] for stage in stages
        ]
        started = [subprocess.Popen(run) for run in runs]
        if any([process.wait() for process in started]):  # noqa: C419 - wait for all of them
            sys.exit(1)


if __name__ == "__main__":
    main()
