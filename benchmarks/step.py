"""What do a denoise step and a decode cost, beside diffusers' own pipeline on the same weights?"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from common import HERE, QUEUEING, Finding, Result, Table, finish, options, progress, shown
from wan import FULL, NOT_ON_A_GPU, WORDS, Shape, matrix_peak, random_expert, wait

from svi_story.engines.svi import vae as ours_vae
from svi_story.engines.svi.attention import choose_kernel, use_kernel
from svi_story.engines.svi.sampler import (
    TIMESTEPS,
    Inputs,
    denoise,
    guided,
    latent_shape,
    make_noise,
    make_steps,
)
from svi_story.engines.svi.weights.loading import Placement, load_transformer, load_vae, read_transformer
from svi_story.engines.svi.weights.locate import ModelFolders, find_weights
from svi_story.enginespec.sampling import Guidance, Sampler
from svi_story.plan.model import Size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import torch
    from common import Cell
    from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
    from torch import Tensor

MODELS = HERE.parent / "tests" / "data" / "svi" / "models"
GUIDANCE, SHIFT, BOUNDARY = 5.0, 5.0, 0.875
WHOLE = (
    "diffusers' pipeline is called as a whole (image and `prompt_embeds` in, arrays out; "
    "Euler, so that the schedule's own cost is alike). A step is the time between two callbacks after a "
    "step, on both sides: two forward passes, guidance, the schedule's step. The decode is the time from "
    "the last callback to the frames: float32 arrays there, 8-bit on our side. The first step is left out."
)
SAME = (
    "Both use the very same modules, embeddings and conditioning in one process with the same threads. Each "
    "has its own attention choice: diffusers' default (`native`), ours by name. Turns alternate (ours, "
    "theirs, ours, theirs); each ratio is of one pair of neighbours, the figure is their median, the range "
    "in brackets. *quickest*: our quickest turn beside theirs, which other processes disturb least."
)
PEAK = (
    "The share of the matrix peak counts the products of the blocks alone, beside a large square product "
    "measured in this run."
)
UNTESTED = (
    "--device cuda and --full-size (random weights, one module as both experts) are written but untested."
)


@dataclass(frozen=True)
class Case:
    """One set of weights at one size."""

    name: str
    high: WanTransformer3DModel
    low: WanTransformer3DModel
    vae: AutoencoderKLWan
    size: Size
    frames: int

    @property
    def shape(self) -> Shape:
        """How large the experts are."""
        config = self.high.config
        width = config.num_attention_heads * config.attention_head_dim
        return Shape(width, config.ffn_dim, config.num_layers, config.text_dim)

    @property
    def tokens(self) -> int:
        """Patches of 1x2x2 latents."""
        _, _, time, rows, columns = latent_shape(self.frames, self.size, 16)
        return time * (rows // 2) * (columns // 2)


@dataclass(frozen=True)
class Turn:
    """Seconds of one turn."""

    first: float
    """The first step, with all that is done once."""
    step: float
    """Median of the others."""
    decode: float


def tiny_models(place: Placement, size: Size, frames: int) -> Case:
    """The checkpoint that the tests use, loaded by our loader."""
    layout = find_weights(ModelFolders((MODELS,))).models()
    high, low = (
        load_transformer(read_transformer(files), place, place.take).model
        for files in (layout.high, layout.low)
    )
    return Case("tests' checkpoint", high, low, load_vae(layout.vae, place), size, frames)


def random_models(shape: Shape, place: Placement, size: Size, frames: int) -> Case:
    """Two random experts beside the tests' VAE."""
    high, low = (random_expert(shape, place.device, place.dtype) for _ in range(2))
    vae = load_vae(find_weights(ModelFolders((MODELS,))).models().vae, place)
    return Case(f"random, {shape.layers} layers of {shape.width}", high, low, vae, size, frames)


def full_models(place: Placement) -> Case:
    """One random full-size module as both experts, for a step needs one at a time; Wan's VAE, float32."""
    import torch
    from diffusers import AutoencoderKLWan

    expert = random_expert(FULL, place.device, place.dtype)
    with torch.device(place.device):
        vae = AutoencoderKLWan().requires_grad_(requires_grad=False).eval()
    return Case("random, full size", expert, expert, vae, Size(832, 480), 81)


class Clock:
    """When each step ended."""

    def __init__(self, device: torch.device) -> None:
        wait(device)
        self._device = device
        self._ends = [time.perf_counter()]

    def tick(self) -> None:
        """Note that a step, or the decode after the steps, is done."""
        wait(self._device)
        self._ends.append(time.perf_counter())

    def turn(self) -> Turn:
        """The first step, all others, and what followed the last."""
        gaps = [after - before for before, after in pairwise(self._ends)]
        return Turn(gaps[0], statistics.median(gaps[1:-1]), gaps[-1])


class Bench:
    """One case, ready to be run by either side."""

    latents: Tensor
    """What our last turn sampled."""

    def __init__(self, case: Case, place: Placement, steps: int, guidance: float = GUIDANCE) -> None:
        import torch

        self.case, self._place, self._steps, self._guidance = case, place, steps, guidance
        generator = torch.Generator("cpu").manual_seed(1)
        text = (1, WORDS, case.shape.text)
        self._texts = [torch.randn(text, generator=generator).to(place.device, place.dtype) for _ in range(2)]
        self._noise_BCTHW = make_noise(0, latent_shape(case.frames, case.size, 16), torch.float32)
        self.kernel = choose_kernel(place.device, place.dtype)
        self._pipe = _pipeline(case)
        self._y_BCTHW = self._condition()

    def _condition(self) -> Tensor:
        """The conditioning that the pipeline makes of a grey picture, so that both see the same."""
        import torch

        size, device = self.case.size, self._place.device
        picture = torch.zeros(1, 3, size.height, size.width, device=device)
        with torch.no_grad():
            _, y = self._pipe.prepare_latents(
                picture, 1, 16, size.height, size.width, self.case.frames, torch.float32, device
            )
        return y.to(self._place.dtype)  # type: ignore[no-any-return]  # diffusers is not typed

    def _settle(self, use: Callable[[WanTransformer3DModel], None]) -> Clock:
        for expert in (self.case.high, self.case.low):
            use(expert)
        return Clock(self._place.device)

    def ours(self) -> Turn:
        """A clip by our sampler and decode."""
        clock = self._settle(lambda expert: use_kernel(expert, self.kernel))
        guidance = Guidance(self._guidance, self._guidance)
        sampler = Sampler("2.0-pro", self._steps, guidance, SHIFT, BOUNDARY, 1)
        steps = make_steps(sampler)
        inputs = Inputs(
            self._y_BCTHW, self._texts[0], self._texts[1], self._timesteps([s.timestep for s in steps])
        )
        predict = guided(inputs, lambda name: self.case.high if name == "high" else self.case.low)
        noise = self._noise_BCTHW.to(self._place.device, self._place.dtype)
        self.latents = denoise(noise, steps, predict, lambda _done, _x, _velocity: clock.tick())
        ours_vae.to_frames(ours_vae.decode(self.case.vae, self.latents)).cpu().numpy()
        clock.tick()
        return clock.turn()

    def _timesteps(self, timesteps: list[float]) -> Tensor:
        import torch

        return torch.tensor(timesteps, device=self._place.device).to(self._place.dtype)

    def theirs(self) -> Turn:
        """A clip by diffusers' pipeline, called as a whole."""
        from PIL import Image

        clock = self._settle(lambda expert: expert.set_attention_backend("native"))
        size = self.case.size

        def after_step(
            _pipe: object, _index: int, _timestep: object, kept: dict[str, object]
        ) -> dict[str, object]:
            clock.tick()
            return kept

        self._pipe(
            image=Image.new("RGB", (size.width, size.height), (128, 128, 128)),
            height=size.height,
            width=size.width,
            num_frames=self.case.frames,
            num_inference_steps=self._steps,
            guidance_scale=self._guidance,
            latents=self._noise_BCTHW,
            prompt_embeds=self._texts[0],
            negative_prompt_embeds=self._texts[1],
            output_type="np",
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=["latents"],
        )
        clock.tick()
        return clock.turn()

    def share(self, seconds: float) -> float:
        """Percent of the measured matrix peak that a guided step reaches."""
        peak = matrix_peak(self._place.device, self._place.dtype)
        return 100 * 2 * self.case.shape.operations(self.case.tokens) / seconds / peak


def _pipeline(case: Case) -> WanImageToVideoPipeline:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline

    pipe = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=case.vae,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS, shift=SHIFT),
        transformer=case.high,
        transformer_2=case.low,
        boundary_ratio=BOUNDARY,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass(frozen=True)
class Measured:
    """All pairs of turns of one case."""

    case: Case
    ours: list[Turn]
    theirs: list[Turn]
    share: float

    def rows(self) -> list[tuple[Cell, ...]]:
        """One for the step, one for the decode."""
        video = f"{self.case.size.width}x{self.case.size.height}x{self.case.frames}"
        rows: list[tuple[Cell, ...]] = []
        for what in ("step", "decode"):
            mine, other = ([getattr(t, what) for t in turns] for turns in (self.ours, self.theirs))
            share = self.share if what == "step" else None
            seconds = (statistics.median(mine), statistics.median(other))
            quickest = min(mine) / min(other)
            rows.append((self.case.name, video, what, *seconds, *self._ratios(what), quickest, share))
        return rows

    def _ratios(self, what: str) -> tuple[float, float, float]:
        """Median, least and greatest of ours / diffusers, pair by pair."""
        pairs = zip(self.ours, self.theirs, strict=True)
        ratios = [getattr(mine, what) / getattr(other, what) for mine, other in pairs]
        return statistics.median(ratios), min(ratios), max(ratios)


def measure(bench: Bench, pairs: int) -> Measured:
    """Turns that alternate, after one of each that warms up."""
    bench.ours(), bench.theirs()
    turns: list[tuple[Turn, Turn]] = []
    for number in range(pairs):
        progress(f"{bench.case.name}, pair {number + 1} of {pairs}")
        turns.append((bench.ours(), bench.theirs()))
    ours, theirs = ([pair[side] for pair in turns] for side in (0, 1))
    return Measured(bench.case, ours, theirs, bench.share(statistics.median(t.step for t in ours)))


def report(measured: list[Measured], chosen: argparse.Namespace, place: Placement) -> Result:
    import diffusers
    import torch

    rows = [row for each in measured for row in each.rows()]
    seen = NOT_ON_A_GPU if place.device.type == "cpu" else f"On {torch.cuda.get_device_name(place.device)}."
    columns = (
        "weights",
        "size",
        "what",
        "ours s",
        "diffusers s",
        "ratio",
        "least",
        "most",
        "quickest",
        "% of matrix peak",
    )
    return Result(
        name="step" if place.device.type == "cpu" else "step-gpu",
        question="what do a denoise step and a decode cost, beside diffusers' own pipeline?",
        settings={
            "pairs": chosen.pairs,
            "steps": chosen.steps,
            "device": place.device.type,
            "dtype": str(place.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        tables=(Table(f"Seconds, median of {chosen.pairs} pairs", columns, tuple(rows)),),
        findings=tuple(_finding(row, place) for row in rows),
        notes=(seen, WHOLE, SAME, PEAK, UNTESTED, QUEUEING),
    )


def _finding(row: tuple[Cell, ...], place: Placement) -> Finding:
    name, video, what, ours, theirs, ratio, least, most, quickest, _ = row
    spread = f"{shown(least)} to {shown(most)}, quickest {shown(quickest)}"
    figure = f"{shown(ratio)} x diffusers ({spread}; {shown(ours)} and {shown(theirs)} s)"
    on = "CPU, small" if place.device.type == "cpu" else "GPU"
    return Finding(f"{what}, {name}, {video} ({on})", figure)


def main() -> None:
    import torch

    parser = options(__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="of each turn, at least 3")
    parser.add_argument("--size", default="64x64")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--dim", type=int, default=256, help="width of the random experts, a multiple of 128")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--full-size", action="store_true", help="bfloat16, 832x480x81 (untested)")
    chosen = parser.parse_args()
    place = Placement(torch.device(chosen.device), torch.bfloat16 if chosen.full_size else torch.float32)
    size = Size(*map(int, chosen.size.split("x")))
    small = Shape(chosen.dim, 4 * chosen.dim, chosen.layers)
    makers: list[Callable[[], Case]] = [
        partial(tiny_models, place, size, chosen.frames),
        partial(random_models, small, place, size, chosen.frames),
    ]
    if chosen.full_size:
        makers = [partial(full_models, place)]
    measured = [measure(Bench(make(), place, chosen.steps), chosen.pairs) for make in makers]
    finish(report(measured, chosen, place), write=chosen.write)


if __name__ == "__main__":
    main()
