"""Memory modes: what each needs, which is used, and what happens when memory runs out.

The needs are computed from the shapes in the files' headers, not measured on a GPU: weights are counted,
the largest sum of live tensors was traced without a device (docs/memory.md), and MARGIN and CONTEXT stand for
what neither shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, TypeVar

from svi_story.engines.svi.device import FreeMemory, none_if_out_of_memory, release
from svi_story.engines.svi.sampler import latent_count
from svi_story.engines.svi.weights.architecture import count_parameters
from svi_story.errors import InputError, RenderError, TransientError
from svi_story.events import Warned
from svi_story.units import GIB, gib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch
    from diffusers import WanTransformer3DModel
    from torch import Tensor
    from transformers import UMT5EncoderModel

    from svi_story.engines.svi.experts import Experts
    from svi_story.engines.svi.weights.architecture import ParameterCounts
    from svi_story.engines.svi.weights.catalogue import ModelPaths
    from svi_story.events import Reporter
    from svi_story.plan.model import Segment, Size

T = TypeVar("T")
MemoryMode = Literal["resident", "offload", "stream"]
MODES: tuple[MemoryMode, ...] = ("resident", "offload", "stream")
"""From the fastest to the one that needs least on the GPU."""
MEANINGS = {
    "resident": "both experts on the GPU",
    "offload": "one expert on the GPU at a time",
    "stream": "one block of an expert on the GPU at a time",
}
REMEDY = "close what else uses the GPU and RAM, use a smaller size or fewer frames, or a larger machine"

CONTEXT = GIB
"""Bytes on the GPU for its driver's context and the libraries' workspaces."""
MARGIN = 1.15
"""Factor on activations: the allocator's gaps, and kernels' workspaces."""
HOST = 4 * GIB
"""Bytes of RAM for Python, the libraries, the frames and one tensor on its way."""
VALUE_BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class DeviceUse:
    """What one phase holds on the device, in bytes."""

    weights: int
    activations: int

    @property
    def minimum(self) -> int:
        """Without the margin."""
        return self.weights + self.activations

    @property
    def total(self) -> int:
        """With the margin."""
        return self.weights + int(self.activations * MARGIN) + CONTEXT


@dataclass(frozen=True)
class Need:
    """What a memory mode needs, in bytes: on the device phase by phase, and in RAM."""

    text: DeviceUse
    sampling: DeviceUse
    decoding: DeviceUse
    ram: int
    """At the least: the expert that is not in use is read from its files again."""
    ram_kept: int
    """With both experts kept in memory."""

    @property
    def gpu(self) -> int:
        """The most that any phase needs, with the margin."""
        return max(use.total for use in (self.text, self.sampling, self.decoding))


@dataclass(frozen=True)
class MemoryPlan:
    """A memory mode, whether the expert that is not in use stays in memory, and why."""

    mode: MemoryMode
    keep: bool = True
    why: str = ""


RESIDENT = MemoryPlan("resident")
Needs = dict[MemoryMode, Need]


def needs_of(parameters: ParameterCounts, value_bytes: int, size: Size, frames: int) -> Needs:
    """What each mode needs for a clip; `value_bytes` is the size of a value that the experts compute with.

    While sampling: the experts on the device, the VAE, and the activations of one pass. While decoding: the
    VAE, its activations, and the experts only where they stay. The text encoder comes before the experts,
    beside the VAE.
    """
    vae, expert = parameters.vae * 4, parameters.expert * value_bytes
    text, encoding = parameters.text * value_bytes, text_activations(parameters, value_bytes)
    sampling = sampling_activations(parameters, value_bytes, size, frames)
    decoding = decoding_activations(parameters, size, frames)
    outside = parameters.expert - parameters.blocks
    streamed = (outside + 2 * parameters.block) * value_bytes  # one block at work, one on its way
    pinned = (parameters.pinned + outside) * value_bytes
    whole = DeviceUse(vae + text, encoding)
    return {
        "resident": Need(
            whole, DeviceUse(vae + 2 * expert, sampling), DeviceUse(vae + 2 * expert, decoding), HOST, HOST
        ),
        "offload": Need(
            whole, DeviceUse(vae + expert, sampling), DeviceUse(vae, decoding), HOST, HOST + expert
        ),
        "stream": Need(
            DeviceUse(vae + parameters.text_leaf * value_bytes, encoding),
            DeviceUse(vae + streamed, sampling),
            DeviceUse(vae, decoding),
            HOST + max(text, pinned),
            HOST + max(text, 2 * pinned),
        ),
    }


def sampling_activations(parameters: ParameterCounts, value_bytes: int, size: Size, frames: int) -> int:
    """Bytes that one pass of an expert holds besides weights, at most; its attention keeps no matrix.

    For each token (16x16 pixels of one latent) and each value of the width: in attention, 8 numbers in the
    computing type and 7 bytes of float32; in the feed-forward layers, 3 and 8, and 2 of the inner width.
    """
    tokens = latent_count(frames) * (size.width // 16) * (size.height // 16)
    attention = parameters.width * (8 * value_bytes + 7)
    feed_forward = parameters.width * (3 * value_bytes + 8) + 2 * parameters.inner * value_bytes
    return tokens * max(attention, feed_forward)


def decoding_activations(parameters: ParameterCounts, size: Size, frames: int) -> int:
    """Bytes that the VAE holds besides weights, at most, untiled, in float32; encoding holds less.

    For each pixel: 51 values for each of its narrowest channels (four frames on their way, and what causal
    convolutions remember), and 4 for each frame that is done.
    """
    return size.width * size.height * 4 * (51 * parameters.vae_width + 4 * frames)


def text_activations(parameters: ParameterCounts, value_bytes: int) -> int:
    """Bytes that the text encoder holds besides weights: 512 tokens, float32 scores for each head of 64."""
    tokens = 512
    scores = tokens * tokens * max(1, parameters.text_width // 64) * (4 + 4 + value_bytes)
    return scores + tokens * parameters.text_width * 24


def largest(segments: Sequence[Segment]) -> tuple[Size, int]:
    """The size and the frames of the segment that needs most."""
    segment = max(segments, key=lambda one: one.size.width * one.size.height * one.frames)
    return segment.size, segment.frames


def choose(requested: str, free: FreeMemory, needs: Needs) -> MemoryPlan:
    """The mode to start with: the requested one, or with `auto` the fastest that fits with its margin.

    A requested mode is refused only where it cannot fit even without a margin. Untiled decoding need not fit
    where the experts are off the device by then: it is tiled when memory runs out. Raises InputError.
    """
    if requested == "auto":
        for mode in MODES:
            if _fits(mode, free, needs[mode]):
                faster = MODES[: MODES.index(mode)]
                too_large = [
                    f"{name} needs {gib(needs[name].gpu)}" for name in faster if needs[name].gpu > free.vram
                ]
                return _plan(mode, free, needs, " and ".join(too_large))
        raise InputError(f"too little memory for any memory mode: {_shortage(free, needs, MODES)}; {REMEDY}")
    if requested not in MODES:
        raise InputError(f"--memory {requested}: use one of auto, {', '.join(MODES)}")
    mode = next(mode for mode in MODES if mode == requested)
    need = needs[mode]
    minimum = max(need.text.minimum, need.sampling.minimum)
    if minimum > free.vram or _ram(need.ram, minimum, free) > free.ram:
        remedy = "--memory auto takes the first mode that fits" if mode != "stream" else REMEDY
        raise InputError(f"--memory {mode} cannot fit: {_shortage(free, needs, (mode,))}; {remedy}")
    return _plan(mode, free, needs, "asked for")


def choose_smaller(mode: MemoryMode, free: FreeMemory, needs: Needs) -> MemoryPlan | None:
    """The next mode that needs less, after memory ran out; None after the last, or where RAM is too small."""
    for smaller in MODES[MODES.index(mode) + 1 :]:
        if _ram(needs[smaller].ram, needs[smaller].sampling.minimum, free) <= free.ram:
            return _plan(smaller, free, needs, f"memory ran out with {mode}")
    return None


def _plan(mode: MemoryMode, free: FreeMemory, needs: Needs, reason: str) -> MemoryPlan:
    need = needs[mode]
    keep = mode == "resident" or (not free.shared and need.ram_kept <= free.ram)
    why = [f"{MEANINGS[mode]} ({reason})" if reason else MEANINGS[mode], _compare(need, free, keep=keep)]
    if not keep:
        why.append("the expert not in use is read from its files again, as RAM is too small to keep it")
    if need.decoding.total > free.vram:
        why.append(f"decoding untiled needs {gib(need.decoding.total)}: it is tiled if memory runs out")
    return MemoryPlan(mode, keep, "; ".join(why))


def _fits(mode: MemoryMode, free: FreeMemory, need: Need) -> bool:
    uses = [need.text, need.sampling]
    if mode == "resident":
        uses.append(need.decoding)  # or the experts would have to leave for every clip
    gpu = max(use.total for use in uses)
    return gpu <= free.vram and _ram(need.ram, gpu, free) <= free.ram


def _ram(ram: int, gpu: int, free: FreeMemory) -> int:
    return ram + gpu if free.shared else ram


def _shortage(free: FreeMemory, needs: Needs, modes: Iterable[MemoryMode]) -> str:
    return "; ".join(f"{mode}: {_compare(needs[mode], free)}" for mode in modes)


def _compare(need: Need, free: FreeMemory, *, keep: bool = False) -> str:
    gpu, ram = max(need.text.total, need.sampling.total), need.ram_kept if keep else need.ram
    if free.shared:
        return f"needs {gib(gpu + need.ram)} of {gib(free.ram)} free memory"
    return f"needs {gib(gpu)} of {gib(free.vram)} free on the GPU and {gib(ram)} of {gib(free.ram)} free RAM"


@dataclass
class MemoryManager:
    """Decides where the experts are. Changes memory, never numbers, except by tiling, which it reports."""

    experts: Experts
    paths: ModelPaths
    value_bytes: int
    """Bytes of a value that the experts compute with."""
    measure: Callable[[], FreeMemory]
    report: Reporter
    on_plan: Callable[[MemoryPlan], None] = lambda _: None
    """Called with every plan that is adopted."""
    plan: MemoryPlan | None = None
    tiled: set[Size] = field(default_factory=set)
    """Sizes at which the VAE did not fit whole."""
    needs: Needs = field(default_factory=dict)

    def start(self, requested: str, segments: Sequence[Segment]) -> MemoryPlan:
        """Choose the mode for all of these segments, once. Raises InputError when none fits."""
        if self.plan is None:
            self.needs = needs_of(count_parameters(self.paths), self.value_bytes, *largest(segments))
            plan = choose(requested, self.measure(), self.needs)
            self._adopt(plan)
            if requested == "auto" and plan.mode != "resident":
                self.report(Warned(f"memory: {plan.mode}: {plan.why}"))
            return plan
        return self.plan

    def reduce(self, doing: str) -> MemoryPlan:
        """Take the next smaller mode, after memory ran out. Raises TransientError when there is none.

        Transient, for what cannot fit was refused at the start: another process took the memory since.
        """
        assert self.plan is not None, "start comes first"
        self.experts.free()
        release()
        before, free = self.plan.mode, self.measure()
        plan = choose_smaller(before, free, self.needs)
        if plan is None:
            raise TransientError(
                f"memory ran out {doing} with --memory {before}, and no smaller memory mode fits: "
                f"{gib(free.vram)} are free on the GPU (this needs about {gib(self.needs[before].gpu)}) and "
                f"{gib(free.ram)} of RAM; {REMEDY}. What was sampled is kept"
            )
        try:
            self._adopt(plan)
        except InputError as error:
            raise RenderError(*error.problems) from error
        self.report(Warned(f"memory ran out {doing}; continuing with --memory {plan.mode}: {plan.why}"))
        return plan

    def _adopt(self, plan: MemoryPlan) -> None:
        if plan.mode == "stream" and find_spec("accelerate") is None:  # diffusers' hooks need it
            raise InputError("--memory stream needs accelerate: pip install 'svi-story[svi]'")
        self.experts.set_plan(plan)
        self.plan = plan
        self.on_plan(plan)

    def run_vae(self, size: Size, run: Callable[[bool], T]) -> T:
        """The result of `run(tiled)`: whole; when memory runs out, with no expert beside it; then in tiles.

        Raises TransientError when memory runs out in tiles too.
        """
        if self.experts.leave_device():
            release()
        while (result := none_if_out_of_memory(partial(run, size in self.tiled))) is None:
            if self.plan is not None and self.plan.mode == "resident" and self.experts.held:
                self._clear_device(size)
                continue
            if size in self.tiled:
                raise TransientError(
                    f"memory ran out in the VAE at {size}, in tiles and alone on the device, with "
                    f"{gib(self.measure().vram)} free; {REMEDY}. What was sampled is kept"
                )
            self.tiled.add(size)
            self.report(
                Warned(
                    f"memory ran out in the VAE at {size} again: it works in tiles from here on, which may "
                    "show on still backgrounds; it is recorded with every clip"
                )
            )
        return result

    def _clear_device(self, size: Size) -> None:
        """Take the experts off the device, now and whenever the VAE works."""
        self.experts.free()
        release()
        plan = choose_smaller("resident", self.measure(), self.needs)
        if plan is not None:
            self._adopt(plan)
        changed = "" if plan is None else f" (--memory {plan.mode} from here on)"
        self.report(
            Warned(
                f"memory ran out in the VAE at {size}; trying again without the experts beside it{changed}"
            )
        )


def pin(name: str, weight: Tensor) -> Tensor:
    """A finished weight in RAM; a block's is pinned where there is a GPU, so that it can be fetched ahead."""
    home = weight.cpu()
    return home.pin_memory() if weight.is_cuda and name.startswith("blocks.") else home


def stream_blocks(model: WanTransformer3DModel, device: torch.device) -> None:
    """Fetch an expert's blocks one by one, on a GPU the next while one is at work."""
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        model,
        onload_device=device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )


def stream_leaves(model: UMT5EncoderModel, device: torch.device) -> None:
    """Fetch the text encoder's layers one by one; it is used once, so nothing is pinned or fetched ahead."""
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(model, onload_device=device, offload_type="leaf_level")
