"""Who makes it: one contract, several engines. Nothing heavy is imported before an engine is entered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from svi_story.engines.base import Checkpoint, Engine, Phase
    from svi_story.engines.svi.memory import Need
    from svi_story.events import Reporter
    from svi_story.plan.keys import Identity
    from svi_story.plan.model import Segment

    Digest = Callable[[Path], str]
    """A file's sha256 in hex. Raises InputError when it cannot be read."""
    Keep = Callable[[str], Checkpoint]
    """A durable place for a content address."""

NAMES = ("svi", "animatic")
KERNELS = (
    *("auto", "flash-attn-3", "flash-attn-2"),
    *("torch-flash", "torch-cudnn", "torch-efficient", "torch-math"),
)
"""Attention kernels by name; `auto` takes the first that is there and fits."""


@dataclass(frozen=True)
class EngineOptions:
    """What the user decides about engines, besides the board."""

    models: Path = Path("models")
    """The folder with the weights."""
    dtype: str = "bfloat16"
    """What the experts compute in: bfloat16 or float32."""
    attention: str = "auto"
    """The attention kernel by name."""
    memory: str = "auto"
    """The memory rung to start on: auto, resident, offload or stream."""
    vae: str = "whole"
    """How the VAE works: on whole pictures, or in tiles, which changes numbers a little."""
    threads: int = 0
    """With how many threads the CPU computes; 0: as many as it takes by itself."""


def identity_of(name: str, options: EngineOptions, digest: Digest) -> Identity:
    """What an engine's frames depend on, found without loading it."""
    if name == "animatic":
        from svi_story.engines.animatic import AnimaticIdentity

        return AnimaticIdentity()
    from svi_story.engines.svi.identity import SviIdentity

    return SviIdentity(options.models, options.dtype, digest, options.vae)


def create(name: str, options: EngineOptions, digest: Digest, keep: Keep, report: Reporter) -> Engine:
    """The engine of that name, not entered yet; `report` hears what it has to say while it works.

    Raises InputError when this machine cannot have it.
    """
    if name == "animatic":
        from svi_story.engines.animatic import Animatic

        return Animatic()
    from svi_story.engines.svi import open_engine

    return open_engine(options, digest, keep, report)


def memory_of(name: str, options: EngineOptions, segments: Sequence[Segment]) -> Mapping[str, Need]:
    """What each memory rung needs for these segments, without loading anything; empty where none can tell."""
    if name != "svi" or not segments:
        return {}
    from svi_story.engines.svi.layout import find_layout
    from svi_story.engines.svi.memory import ITEM, most, needs_of
    from svi_story.engines.svi.parts import read_parts
    from svi_story.errors import InputError

    try:
        parts = read_parts(find_layout(options.models))
    except InputError:  # told elsewhere: the board has no keys either
        return {}
    needs = needs_of(parts, ITEM[options.dtype], *most(segments))
    return {rung: need for rung, need in needs.items() if options.memory in ("auto", rung)}


def phases_without(options: EngineOptions, name: str, segment: Segment) -> Sequence[Phase]:
    """`Engine.phases` without the engine. Raises InputError for missing LoRAs."""
    if name == "animatic":
        from svi_story.engines.animatic import Animatic

        return Animatic().phases(segment)
    from svi_story.engines.svi.identity import outfits_of
    from svi_story.engines.svi.schedule import phases_of, reckon_high

    outfits = outfits_of(segment, options.models)
    return phases_of(segment.sampler, reckon_high(segment.sampler), outfits)


def bytes_of(name: str, options: EngineOptions) -> tuple[int, int]:
    """Bytes of an expert, and of its blocks, which are all that is streamed; zeros where nothing can tell."""
    if name != "svi":
        return 0, 0
    from svi_story.engines.svi.layout import find_layout
    from svi_story.engines.svi.memory import ITEM
    from svi_story.engines.svi.parts import read_parts
    from svi_story.errors import InputError

    try:
        parts = read_parts(find_layout(options.models))
    except InputError:  # told elsewhere, as in `memory_of`
        return 0, 0
    return parts.expert * ITEM[options.dtype], parts.blocks * ITEM[options.dtype]
