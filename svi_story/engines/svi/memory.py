"""Memory modes: what each needs, which is used, and what happens when memory runs out.

The needs are computed from the shapes in the files' headers, not measured on a GPU: weights are counted,
the largest sum of live tensors was traced without a device (docs/memory.md), and MARGIN and CONTEXT stand for
what neither shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from svi_story.engines.svi.sampler import STRIDE, latent_count
from svi_story.engines.svi.vae import WHOLE, strips_of
from svi_story.errors import InputError
from svi_story.units import GIB, gib

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from svi_story.engines.svi.device import FreeMemory
    from svi_story.engines.svi.weights.architecture import ParameterCounts
    from svi_story.plan.model import Segment, Size

T = TypeVar("T")
MemoryMode = Literal["resident", "offload", "stream"]
MODES: tuple[MemoryMode, ...] = ("resident", "offload", "stream")
"""From the fastest to the one that needs least on the GPU."""
MEANINGS = {
    "resident": "both experts on the GPU",
    "offload": "one expert on the GPU at a time",
    "stream": "an expert's blocks are copied to the GPU one after another",
}
REMEDY = "close what else uses the GPU and RAM, use a smaller size or fewer frames, or a larger machine"

CONTEXT = GIB
"""Bytes on the GPU for its driver's context and the libraries' workspaces."""
MARGIN = 1.15
"""Factor on activations: the allocator's gaps, and kernels' workspaces."""
HOST = 4 * GIB
"""Bytes of RAM for Python, the libraries, the frames and one tensor on its way."""
VALUE_BYTES = {"bfloat16": 2, "float32": 4}
SCALE_BYTES = 2
"""Of a row's scale in int8."""


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
class ModelSize:
    """Of a model whose blocks can be streamed, in bytes."""

    outside: int
    """Of what is outside of the blocks, which stays on the device."""
    block: int
    blocks: int
    """How many blocks there are."""

    @property
    def whole(self) -> int:
        """All of it."""
        return self.outside + self.blocks * self.block

    @property
    def streamed(self) -> int:
        """On the device when no block stays there: two buffers, one block at work and one on its way."""
        return self.outside + 2 * self.block

    def resident(self, free: int) -> int:
        """How many blocks stay on the device where so many bytes are free for it; negative: it does not fit.

        Unless all fit, there are two buffers besides.
        """
        return self.blocks if self.whole <= free else (free - self.outside) // self.block - 2


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
    def together(self) -> DeviceUse:
        """While a segment is sampled and another one is decoded."""
        return DeviceUse(self.sampling.weights, self.sampling.activations + self.decoding.activations)

    @property
    def gpu(self) -> int:
        """The most that any phase needs, with the margin."""
        return max(use.total for use in (self.text, self.sampling, self.decoding))


@dataclass(frozen=True)
class MemoryPlan:
    """A memory mode, and how it is carried out."""

    mode: MemoryMode
    keep: bool = True
    """Whether RAM holds a copy of both experts; else they are read from their files again."""
    resident_blocks: int = 0
    """`stream`: how many blocks of an expert stay on the device."""
    beside: bool = False
    """Whether the VAE works beside the experts, while they sample."""
    why: str = ""


RESIDENT = MemoryPlan("resident")


@dataclass(frozen=True)
class Needs:
    """What every mode needs for a clip."""

    modes: Mapping[MemoryMode, Need]
    expert: ModelSize
    text_encoder: ModelSize

    def __getitem__(self, mode: MemoryMode) -> Need:
        return self.modes[mode]


def expert_size(parameters: ParameterCounts, value_bytes: int, *, int8: bool = False) -> ModelSize:
    """Of the larger expert, with values of that many bytes; in `int8`, with one byte in linear layers."""
    outside, blocks = parameters.expert - parameters.blocks, -(-parameters.blocks // parameters.block)
    block = parameters.block * value_bytes
    if int8:
        block += parameters.block_linear * (1 - value_bytes) + parameters.block_rows * SCALE_BYTES
    return ModelSize(outside * value_bytes, block, blocks)


def text_encoder_size(parameters: ParameterCounts, value_bytes: int) -> ModelSize:
    """Of the text encoder. Its embedding, a third of a small card, is outside of the blocks."""
    outside = parameters.text - parameters.text_blocks
    blocks = -(-parameters.text_blocks // parameters.text_block)
    return ModelSize(outside * value_bytes, parameters.text_block * value_bytes, blocks)


def needs_of(
    parameters: ParameterCounts, value_bytes: int, size: Size, frames: int, *, int8: bool = False
) -> Needs:
    """What each mode needs for a clip; `value_bytes` is the size of a value that the experts compute with.

    While sampling: the experts on the device, the VAE, and the activations of one pass. While decoding: the
    VAE, its activations, and the experts only where they stay. The text encoder comes before the experts,
    beside the VAE; whole, or streamed where the mode is.
    """
    vae = parameters.vae * 4
    expert = expert_size(parameters, value_bytes, int8=int8)
    text = text_encoder_size(parameters, value_bytes)
    encoding = text_activations(parameters, value_bytes)
    sampling = sampling_activations(parameters, value_bytes, size, frames, int8=int8)
    decoding = decoding_activations(parameters, size, frames)
    alone, kept = DeviceUse(vae, decoding), HOST + 2 * expert.whole

    def whole(experts: int, decode: DeviceUse, ram_kept: int) -> Need:
        sample = DeviceUse(vae + experts * expert.whole, sampling)
        # while it is loaded, the text encoder's embedding is on the device twice, on its way to its place
        encode = DeviceUse(vae + text.whole, max(encoding, text.outside))
        return Need(encode, sample, decode, HOST, ram_kept)

    modes: dict[MemoryMode, Need] = {
        "resident": whole(2, DeviceUse(vae + 2 * expert.whole, decoding), HOST),
        "offload": whole(1, alone, kept),
        "stream": Need(
            DeviceUse(vae + text.streamed, max(encoding, text.outside - 2 * text.block)),
            DeviceUse(vae + expert.streamed, sampling),
            alone,
            HOST + max(expert.blocks * expert.block, text.blocks * text.block),
            kept,
        ),
    }
    return Needs(modes, expert, text)


def sampling_activations(
    parameters: ParameterCounts, value_bytes: int, size: Size, frames: int, *, int8: bool = False
) -> int:
    """Bytes that one pass of an expert holds besides weights, at most; its attention keeps no matrix.

    For each token (16x16 pixels of one latent) and each value of the width: in attention, 4 numbers in the
    computing type and 15 bytes of float32 and small tensors; in the feed-forward layers, 4 numbers and a
    byte, and 2 of the inner width. In `int8`, the largest weight is converted before the second of those 2.
    """
    tokens = latent_count(frames) * (size.width // 16) * (size.height // 16)
    attention = parameters.width * (4 * value_bytes + 15)
    inner = parameters.inner * value_bytes
    feed_forward = parameters.width * (4 * value_bytes + 1) + inner
    converted = parameters.width * inner if int8 else 0
    return max(tokens * attention, tokens * feed_forward + max(tokens * inner, converted))


def decoding_activations(parameters: ParameterCounts, size: Size, frames: int, strips: int = WHOLE) -> int:
    """Bytes that the VAE holds besides weights, at most, in float32; encoding holds less.

    For each pixel: 51 values for each of its narrowest channels (four frames on their way, and what causal
    convolutions remember), and 4 for each frame that is done. In strips: the pixels of the widest strip with
    its surroundings, the whole video, and four times as many channels for each pixel of the latents.
    """
    rows, columns = size.height // STRIDE[1], size.width // STRIDE[2]
    pixel = 4 * 51 * parameters.vae_width
    if strips == WHOLE:
        return size.width * size.height * (pixel + 4 * 4 * frames)
    widest = max(len(needed) for _, needed in strips_of(rows, strips))
    middle = latent_count(frames) * rows * columns * 4 * 4 * parameters.vae_width
    return size.width * widest * STRIDE[1] * pixel + size.width * size.height * 3 * 4 * frames + middle


def vae_need(parameters: ParameterCounts, size: Size, frames: int, strips: int) -> DeviceUse:
    """What the VAE needs with no expert beside it."""
    return DeviceUse(parameters.vae * 4, decoding_activations(parameters, size, frames, strips))


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

    A requested mode is refused only where it cannot fit even without a margin. Decoding as a whole need not
    fit where the experts are off the device by then: it is done in strips when memory runs out. Raises
    InputError.
    """
    if requested == "auto":
        for mode in MODES:
            if _fits(mode, free, needs):
                faster = MODES[: MODES.index(mode)]
                too_large = [
                    f"{name} needs {gib(needs[name].gpu)}" for name in faster if needs[name].gpu > free.vram
                ]
                return _plan(mode, free, needs, " and ".join(too_large))
        raise InputError(f"too little memory for any memory mode: {_shortage(free, needs, MODES)}; {REMEDY}")
    if requested not in MODES:
        raise InputError(f"--memory {requested}: use one of auto, {', '.join(MODES)}")
    mode = next(mode for mode in MODES if mode == requested)
    minimum = max(needs["stream"].text.minimum, needs[mode].sampling.minimum)
    if minimum > free.vram or _ram(mode, free, needs, minimum) > free.ram:
        remedy = "--memory auto takes the first mode that fits" if mode != "stream" else REMEDY
        raise InputError(f"--memory {mode} cannot fit: {_shortage(free, needs, (mode,))}; {remedy}")
    return _plan(mode, free, needs, "asked for")


def choose_smaller(plan: MemoryPlan, free: FreeMemory, needs: Needs) -> MemoryPlan | None:
    """What needs less, after memory ran out; None after the last, or where RAM is too small.

    First the next mode, then half as many blocks that stay on the device.
    """
    reason = f"memory ran out with {plan.mode}"
    for smaller in MODES[MODES.index(plan.mode) + 1 :]:
        if _ram(smaller, free, needs, needs[smaller].sampling.minimum) <= free.ram:
            return _plan(smaller, free, needs, reason)
    if plan.mode == "stream" and plan.resident_blocks:
        return _plan("stream", free, needs, reason, most=plan.resident_blocks // 2)
    return None


def resident_blocks(free: FreeMemory, needs: Needs) -> int:
    """`stream`: how many blocks of an expert stay on the device; on a CPU none, as it would save nothing."""
    if free.shared:
        return 0
    besides = needs["stream"].sampling.total - needs.expert.streamed
    return max(0, needs.expert.resident(free.vram - besides))


def text_blocks(free: FreeMemory, needs: Needs) -> int:
    """How many blocks of the text encoder stay on the device, whatever the memory mode."""
    blocks = needs.text_encoder.blocks
    if free.shared or needs["resident"].text.total <= free.vram:
        return blocks
    besides = needs["stream"].text.total - needs.text_encoder.streamed
    return max(0, min(blocks - 2, needs.text_encoder.resident(free.vram - besides)))


def _plan(
    mode: MemoryMode, free: FreeMemory, needs: Needs, reason: str, most: int | None = None
) -> MemoryPlan:
    need, count = needs[mode], needs.expert.blocks
    keep = mode == "resident" or (not free.shared and need.ram_kept <= free.ram)
    blocks = min(count if most is None else most, resident_blocks(free, needs)) if mode == "stream" else 0
    why = [f"{MEANINGS[mode]} ({reason})" if reason else MEANINGS[mode]]
    if mode == "stream":
        why.append(f"{blocks} of {count} blocks stay on the GPU")
    why.append(_compare(mode, free, needs, keep=keep))
    if not keep:
        why.append("the expert not in use is read from its files again, as RAM is too small to keep it")
    if need.decoding.total > free.vram:
        why.append(
            f"decoding as a whole needs {gib(need.decoding.total)}: it is done in strips if memory runs out"
        )
    return MemoryPlan(mode, keep, blocks, _vae_fits_beside(mode, free, needs), "; ".join(why))


def _vae_fits_beside(mode: MemoryMode, free: FreeMemory, needs: Needs) -> bool:
    """Whether a segment can be decoded while another one is sampled; `stream` has better use for the room."""
    gpu = needs[mode].together.total
    return mode != "stream" and gpu <= free.vram and _ram(mode, free, needs, gpu) <= free.ram


def _fits(mode: MemoryMode, free: FreeMemory, needs: Needs) -> bool:
    uses = [needs["stream"].text, needs[mode].sampling]
    if mode == "resident":
        uses.append(needs[mode].decoding)  # or the experts would have to leave for every clip
    gpu = max(use.total for use in uses)
    return gpu <= free.vram and _ram(mode, free, needs, gpu) <= free.ram


def _ram(mode: MemoryMode, free: FreeMemory, needs: Needs, gpu: int) -> int:
    """The least RAM that a mode needs; with `gpu`, where both are one memory."""
    ram = needs[mode].ram
    if mode == "stream":
        ram -= resident_blocks(free, needs) * needs.expert.block
    return ram + gpu if free.shared else max(HOST, ram)


def _shortage(free: FreeMemory, needs: Needs, modes: Iterable[MemoryMode]) -> str:
    return "; ".join(f"{mode}: {_compare(mode, free, needs)}" for mode in modes)


def _compare(mode: MemoryMode, free: FreeMemory, needs: Needs, *, keep: bool = False) -> str:
    need = needs[mode]
    gpu = max(needs["stream"].text.total, need.sampling.total)
    ram = need.ram_kept if keep else _ram(mode, free, needs, gpu)
    if free.shared:
        return f"needs {gib(ram)} of {gib(free.ram)} free memory"
    return f"needs {gib(gpu)} of {gib(free.vram)} free on the GPU and {gib(ram)} of {gib(free.ram)} free RAM"
