"""What each memory rung needs, computed from the shapes in the files' headers, and which rung to take.

Computed, not measured on a GPU: weights are counted, the largest sum of live tensors was traced without a
device (docs/memory.md), and MARGIN and CONTEXT stand for what neither shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svi_story.engines.svi.schedule import latent_count
from svi_story.errors import InputError
from svi_story.units import GIB, gib

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from svi_story.engines.svi.parts import Parts
    from svi_story.plan.model import Segment, Size

Rung = Literal["resident", "offload", "stream"]
RUNGS: tuple[Rung, ...] = ("resident", "offload", "stream")
"""From the fastest to the one that needs least on the GPU."""
WHAT = {
    "resident": "both experts on the GPU",
    "offload": "one expert on the GPU at a time",
    "stream": "one block of an expert on the GPU at a time",
}

CONTEXT = GIB
"""Bytes on the GPU for its driver's context and the libraries' workspaces."""
MARGIN = 1.15
"""Factor on the work: the allocator's gaps, and kernels' own space."""
HOST = 4 * GIB
"""Bytes of RAM for Python, the libraries, the frames and one tensor on its way."""
ITEM = {"bfloat16": 2, "float32": 4}
"""Bytes of a value."""


@dataclass(frozen=True)
class Room:
    """Free memory in bytes."""

    vram: int
    ram: int
    shared: bool = False
    """Whether both are the same memory, as on the CPU."""


@dataclass(frozen=True)
class Load:
    """What one phase holds on the device, in bytes."""

    weights: int
    work: int

    @property
    def bare(self) -> int:
        """The least it can be."""
        return self.weights + self.work

    @property
    def total(self) -> int:
        """With the margin."""
        return self.weights + int(self.work * MARGIN) + CONTEXT


@dataclass(frozen=True)
class Need:
    """What a rung needs, in bytes: on the device phase by phase, and in RAM."""

    text: Load
    sampling: Load
    decoding: Load
    ram: int
    """At the least: the expert that is not in use is read from its files again."""
    ram_kept: int
    """With both experts kept in memory."""

    @property
    def gpu(self) -> int:
        """The most that any phase needs, with the margin."""
        return max(load.total for load in (self.text, self.sampling, self.decoding))


@dataclass(frozen=True)
class Choice:
    """A rung, whether the expert that is not in use stays in memory, and why."""

    rung: Rung
    keep: bool = True
    why: str = ""


RESIDENT = Choice("resident")
Needs = dict[Rung, Need]


def needs_of(parts: Parts, item: int, size: Size, frames: int) -> Needs:
    """What each rung needs for a clip; `item` is the bytes of a value that the experts compute with.

    While sampling: the experts on the device, the VAE, and the work of one pass. While decoding: the VAE, its
    work, and the experts only where they stay. The text encoder comes before the experts, beside the VAE.
    """
    vae, expert, text = parts.vae * 4, parts.expert * item, parts.text * item
    sampling, decoding = sampling_work(parts, item, size, frames), decoding_work(parts, size, frames)
    words = text_work(parts, item)
    streamed = (parts.expert - parts.blocks + 2 * parts.block) * item  # one block at work, one on its way
    pinned = (parts.pinned + parts.expert - parts.blocks) * item
    whole = Load(vae + text, words)
    return {
        "resident": Need(
            whole, Load(vae + 2 * expert, sampling), Load(vae + 2 * expert, decoding), HOST, HOST
        ),
        "offload": Need(whole, Load(vae + expert, sampling), Load(vae, decoding), HOST, HOST + expert),
        "stream": Need(
            Load(vae + parts.text_leaf * item, words),
            Load(vae + streamed, sampling),
            Load(vae, decoding),
            HOST + max(text, pinned),
            HOST + max(text, 2 * pinned),
        ),
    }


def sampling_work(parts: Parts, item: int, size: Size, frames: int) -> int:
    """Bytes that one pass of an expert holds besides weights, at most; its attention keeps no matrix.

    For each token (16x16 pixels of one latent) and each value of the width: while attending, 8 numbers in the
    computing type and 7 bytes of float32; while feeding forward, 3 and 8, and 2 of the inner width.
    """
    tokens = latent_count(frames) * (size.width // 16) * (size.height // 16)
    attending = parts.width * (8 * item + 7)
    feeding = parts.width * (3 * item + 8) + 2 * parts.inner * item
    return tokens * max(attending, feeding)


def decoding_work(parts: Parts, size: Size, frames: int) -> int:
    """Bytes that the VAE holds besides weights, at most, untiled, in float32; encoding holds less.

    For each pixel: 51 values for each of its narrowest channels (four frames on their way, and what causal
    convolutions remember), and 4 for each frame that is done.
    """
    return size.width * size.height * 4 * (51 * parts.vae_width + 4 * frames)


def text_work(parts: Parts, item: int) -> int:
    """Bytes that the text encoder holds besides weights: 512 tokens, float32 scores for each head of 64."""
    tokens = 512
    scores = tokens * tokens * max(1, parts.text_width // 64) * (4 + 4 + item)
    return scores + tokens * parts.text_width * 24


def most(segments: Sequence[Segment]) -> tuple[Size, int]:
    """The size and the frames of the segment that needs most."""
    largest = max(segments, key=lambda one: one.size.width * one.size.height * one.frames)
    return largest.size, largest.frames


def choose(asked: str, room: Room, needs: Needs) -> Choice:
    """The rung to start on: the one asked for, or with `auto` the fastest that fits with its margin.

    A rung asked for is refused only where it cannot fit even without a margin. Untiled decoding need not fit
    where the experts are off the device by then: it is tiled when memory runs out. Raises InputError.
    """
    if asked != "auto":
        return _asked(asked, room, needs)
    for rung in RUNGS:
        if _fits(rung, room, needs[rung]):
            return _settled(rung, room, needs, _too_large(room, needs, RUNGS[: RUNGS.index(rung)]))
    raise InputError(f"too little memory for any rung: {_lacks(room, needs, RUNGS)}; {CURE}")


CURE = "close what else uses the GPU and RAM, use a smaller size or fewer frames, or a larger machine"


def _asked(name: str, room: Room, needs: Needs) -> Choice:
    rung = next((rung for rung in RUNGS if rung == name), None)
    if rung is None:
        raise InputError(f"--memory {name}: use one of auto, {', '.join(RUNGS)}")
    need = needs[rung]
    bare = max(need.text.bare, need.sampling.bare)
    if bare > room.vram or _ram(need.ram, bare, room) > room.ram:
        cure = "--memory auto takes the first rung that fits" if rung != "stream" else CURE
        raise InputError(f"--memory {rung} cannot fit: {_lacks(room, needs, (rung,))}; {cure}")
    return _settled(rung, room, needs, "asked for")


def lower(rung: Rung, room: Room, needs: Needs) -> Choice | None:
    """The next rung down, after memory ran out; None at the last, or where RAM is too small for it."""
    for below in RUNGS[RUNGS.index(rung) + 1 :]:
        if _ram(needs[below].ram, needs[below].sampling.bare, room) <= room.ram:
            return _settled(below, room, needs, f"memory ran out with {rung}")
    return None


def _settled(rung: Rung, room: Room, needs: Needs, reason: str) -> Choice:
    need = needs[rung]
    keep = rung == "resident" or (not room.shared and need.ram_kept <= room.ram)
    told = [f"{WHAT[rung]} ({reason})" if reason else WHAT[rung], _compared(need, room, keep=keep)]
    if not keep:
        told.append("the expert not in use is read from its files again, as RAM is too small to keep it")
    if need.decoding.total > room.vram:
        told.append(f"decoding untiled needs {gib(need.decoding.total)}: it is tiled if memory runs out")
    return Choice(rung, keep, "; ".join(told))


def _fits(rung: Rung, room: Room, need: Need) -> bool:
    loads = [need.text, need.sampling]
    if rung == "resident":
        loads.append(need.decoding)  # or the experts would have to leave for every clip
    gpu = max(load.total for load in loads)
    return gpu <= room.vram and _ram(need.ram, gpu, room) <= room.ram


def _ram(ram: int, gpu: int, room: Room) -> int:
    return ram + gpu if room.shared else ram


def _too_large(room: Room, needs: Needs, rungs: Iterable[Rung]) -> str:
    larger = [rung for rung in rungs if needs[rung].gpu > room.vram]
    return " and ".join(f"{rung} needs {gib(needs[rung].gpu)}" for rung in larger)


def _lacks(room: Room, needs: Needs, rungs: Iterable[Rung]) -> str:
    return "; ".join(f"{rung}: {_compared(needs[rung], room)}" for rung in rungs)


def _compared(need: Need, room: Room, *, keep: bool = False) -> str:
    gpu, ram = max(need.text.total, need.sampling.total), need.ram_kept if keep else need.ram
    if room.shared:
        return f"needs {gib(gpu + need.ram)} of {gib(room.ram)} free memory"
    return f"needs {gib(gpu)} of {gib(room.vram)} free on the GPU and {gib(ram)} of {gib(room.ram)} free RAM"
