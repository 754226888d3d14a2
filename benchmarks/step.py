"""What do a denoise step and a decode cost, beside diffusers' own pipeline on the same weights?

Also beside our loop at an earlier commit (--before), and with compiled blocks (--compiled).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING

from common import HERE, QUEUEING, Finding, Result, Table, finish, options, progress, shown
from wan import FULL, NOT_ON_A_GPU, WORDS, Shape, clock, matrix_peak, random_expert, wait

from svi_story.engines.svi import sampler as ours_sampler
from svi_story.engines.svi import vae as ours_vae
from svi_story.engines.svi.attention import choose_kernel, use_kernel
from svi_story.engines.svi.compiled import CACHE, check_compiler, compile_blocks
from svi_story.engines.svi.sampler import TIMESTEPS, Inputs, latent_shape, make_noise, make_steps
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
    "All use the very same modules, embeddings and conditioning in one process with the same threads. Each "
    "has its own attention choice: diffusers' default (`native`), ours by name. Turns alternate (ours, "
    "theirs, ours, theirs); each ratio is of one pair of neighbours, the figure is their median, the range "
    "in brackets. *quickest*: our quickest turn beside theirs, which other processes disturb least."
)
CLOCK = "Seconds are CPU time of the process on a CPU, wall time on a GPU."
PEAK = (
    "The share of the matrix peak counts the products of the blocks alone, beside a large square product "
    "measured in this run."
)
BEFORE = (
    "*before*: `denoise` and `guided` of the commit in the settings, all else as it is now. Their latents "
    "were compared with ours in every turn, and are the same bit for bit."
)
COMPILED = (
    "The larger case, compiled as by --compile (Inductor; blocks only, one graph for both experts), with an "
    "empty cache. Eager and compiled turns alternate. The difference is of the latents after all steps: the "
    "root of the mean square in percent of the eager ones', and the largest in percent of their standard "
    "deviation."
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
    def names(self) -> tuple[str, str]:
        """The weights and the video."""
        return self.name, f"{self.size.width}x{self.size.height}x{self.frames}"

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
        self._now = clock(device)
        self._ends = [self._now()]

    def tick(self) -> None:
        """Note that a step, or the decode after the steps, is done."""
        wait(self._device)
        self._ends.append(self._now())

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

    def ours(self, loop: ModuleType = ours_sampler, *, decode: bool = True) -> Turn:
        """A clip by our sampler, or an earlier version of it, and our decode, if that is wanted."""
        clock = self._settle(lambda expert: use_kernel(expert, self.kernel))
        guidance = Guidance(self._guidance, self._guidance)
        sampler = Sampler("2.0-pro", self._steps, guidance, SHIFT, BOUNDARY, 1)
        steps = make_steps(sampler)
        inputs = Inputs(
            self._y_BCTHW, self._texts[0], self._texts[1], self._timesteps([s.timestep for s in steps])
        )
        predict = loop.guided(inputs, lambda name: self.case.high if name == "high" else self.case.low)
        noise = self._noise_BCTHW.to(self._place.device, self._place.dtype)
        self.latents = loop.denoise(noise, steps, predict, lambda _done, _x, _velocity: clock.tick())
        if decode:
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


def sampler_at(commit: str) -> ModuleType:
    """Our sampler as it was at a commit."""
    name = f"{commit}:svi_story/engines/svi/sampler.py"
    shown = subprocess.run(["git", "show", name], cwd=HERE, check=True, capture_output=True, text=True)
    module = ModuleType("sampler_before")
    sys.modules[module.__name__] = module  # where dataclasses look for it
    exec(compile(shown.stdout, name, "exec"), module.__dict__)
    return module


@dataclass(frozen=True)
class Ratio:
    """Turns beside those that took turns with them."""

    mine: list[float]
    other: list[float]

    def cells(self) -> tuple[float, ...]:
        """Seconds of both, then mine / other: median, least and greatest of pairs, and of the quickest."""
        ratios = [one / two for one, two in zip(self.mine, self.other, strict=True)]
        seconds = statistics.median(self.mine), statistics.median(self.other)
        quickest = min(self.mine) / min(self.other)
        return (*seconds, statistics.median(ratios), min(ratios), max(ratios), quickest)


def measure(bench: Bench, pairs: int, before: ModuleType | None) -> list[tuple[Cell, ...]]:
    """Rows of turns that alternate, after one of each that warms up: beside diffusers and the loop before."""

    def earlier() -> Turn:
        made = bench.latents
        turn = bench.ours(before or ours_sampler, decode=False)
        assert (made == bench.latents).all(), "the loop at that commit has other bits"
        return turn

    ways = {"": bench.ours, "diffusers": bench.theirs, **({"before": earlier} if before else {})}
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    for number in range(pairs + 1):
        progress(f"{bench.case.name}, round {number} of {pairs}")
        for name, way in ways.items():
            turn = way()
            if number:
                turns[name].append(turn)
    share = bench.share(statistics.median(turn.step for turn in turns[""]))
    rows: list[tuple[Cell, ...]] = []
    for name, what in (("diffusers", "step"), ("diffusers", "decode"), ("before", "step")):
        if name in turns:
            ratio = Ratio(*([getattr(turn, what) for turn in turns[way]] for way in ("", name)))
            rows.append((*bench.case.names, what, name, *ratio.cells(), share if what == "step" else None))
    return rows


def measure_compiled(bench: Bench, pairs: int) -> tuple[Cell, ...]:
    """A row: steps with compiled blocks beside eager ones, and how far apart their latents are."""
    blocks = [block for expert in (bench.case.high, bench.case.low) for block in expert.blocks]
    bench.ours(decode=False)
    eager = bench.latents
    for expert in {bench.case.high, bench.case.low}:
        compile_blocks(expert)
    progress(f"{bench.case.name}, compiling")
    start = time.perf_counter()
    bench.ours(decode=False)
    cold = time.perf_counter() - start
    off = (bench.latents - eager).float()
    apart = difference(bench.latents, eager), 100 * float(off.abs().max() / eager.float().std())
    compiled = [block.forward for block in blocks]
    turns: list[tuple[float, float]] = []
    for number in range(pairs):
        progress(f"{bench.case.name}, compiled, pair {number + 1} of {pairs}")
        first = bench.ours(decode=False).step
        for block in blocks:
            block.__dict__.pop("forward", None)
        turns.append((first, bench.ours(decode=False).step))
        for block, forward in zip(blocks, compiled, strict=True):
            block.forward = forward
    ratio = Ratio(*([pair[side] for pair in turns] for side in (0, 1)))
    return (*bench.case.names, *ratio.cells(), cold, *apart)


def difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The root of the mean square of the difference, in percent of that of what is wanted."""
    got, wanted = got.float(), wanted.float()
    return float(100 * (got - wanted).norm() / wanted.norm())


COLUMNS = ("ratio", "least", "most", "quickest")


def report(
    rows: list[tuple[Cell, ...]],
    compiled: list[tuple[Cell, ...]],
    chosen: argparse.Namespace,
    place: Placement,
) -> Result:
    import diffusers
    import torch

    seen = NOT_ON_A_GPU if place.device.type == "cpu" else f"On {torch.cuda.get_device_name(place.device)}."
    columns = ("weights", "size", "what", "beside", "ours s", "theirs s", *COLUMNS, "% of matrix peak")
    tables = [Table(f"Seconds, median of {chosen.pairs} rounds", columns, tuple(rows))]
    if compiled:
        what = ("weights", "size", "compiled s", "eager s", *COLUMNS)
        columns = (*what, "first turn, wall s", "rms %", "largest %")
        tables.append(Table("Steps with compiled blocks beside eager ones", columns, tuple(compiled)))
    on = "CPU, small" if place.device.type == "cpu" else "GPU"
    return Result(
        name="step" if place.device.type == "cpu" else "step-gpu",
        question="what do a denoise step and a decode cost, beside diffusers' own pipeline?",
        settings={
            "pairs": chosen.pairs,
            "steps": chosen.steps,
            "before": chosen.before or "-",
            "device": place.device.type,
            "dtype": str(place.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        tables=tuple(tables),
        findings=(*(_finding(row, on) for row in rows), *(_compiled_finding(row, on) for row in compiled)),
        notes=(seen, CLOCK, WHOLE, SAME, BEFORE, COMPILED, PEAK, UNTESTED, QUEUEING),
    )


def _finding(row: tuple[Cell, ...], on: str) -> Finding:
    name, video, what, beside, ours, theirs, ratio, least, most, quickest, _ = row
    spread = f"{shown(least)} to {shown(most)}, quickest {shown(quickest)}"
    figure = f"{shown(ratio)} x {beside} ({spread}; {shown(ours)} and {shown(theirs)} s)"
    return Finding(f"{what}, {name}, {video} ({on})", figure)


def _compiled_finding(row: tuple[Cell, ...], on: str) -> Finding:
    name, video, compiled, eager, ratio, least, most, quickest, cold, apart, largest = row
    spread = f"{shown(least)} to {shown(most)}, quickest {shown(quickest)}"
    seconds = f"{shown(compiled)} and {shown(eager)} s, the first turn with the compiler {shown(cold)} s"
    off = f"latents differ by {shown(apart)} %, {shown(largest)} % at most"
    figure = f"{shown(ratio)} x eager ({spread}; {seconds}); {off}"
    return Finding(f"step, compiled, {name}, {video} ({on})", figure)


def main() -> None:
    import torch

    parser = options(__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="of each turn, at least 3")
    parser.add_argument("--size", default="64x64")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--dim", type=int, default=256, help="width of the random experts, a multiple of 128")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--before", metavar="COMMIT", help="compare with the loop of a commit")
    parser.add_argument(
        "--compiled", action="store_true", help="compile, too: some minutes of the C++ compiler"
    )
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
    before = sampler_at(chosen.before) if chosen.before else None
    rows: list[tuple[Cell, ...]] = []
    compiled: list[tuple[Cell, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE] = folder
        for make in makers:
            bench = Bench(make(), place, chosen.steps)
            rows += measure(bench, chosen.pairs, before)
            if chosen.compiled and make is makers[-1]:
                check_compiler(place.device)
                compiled.append(measure_compiled(bench, chosen.pairs))
    finish(report(rows, compiled, chosen, place), write=chosen.write)


if __name__ == "__main__":
    main()
