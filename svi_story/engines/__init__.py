"""Engines behind one contract. Nothing heavy is imported before an engine is entered."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from svi_story.enginespec import spec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from fractions import Fraction
    from pathlib import Path

    from svi_story.engines.base import Checkpoint, Engine, Phase
    from svi_story.enginespec import EngineOptions
    from svi_story.events import Reporter
    from svi_story.plan.keys import Identity
    from svi_story.plan.model import Segment, Size

    Digest = Callable[[Path], str]
    """A file's sha256 in hex. Raises InputError when it cannot be read."""
    Keep = Callable[[str], Checkpoint]
    """A durable place for a content address."""


@dataclass(frozen=True)
class MemoryNeed:
    """What a memory mode needs, in bytes; the fields are those of `plan --json`."""

    gpu_bytes: int
    """The most of any phase."""
    gpu_sampling_bytes: int
    gpu_decoding_bytes: int
    gpu_text_bytes: int
    ram_bytes: int
    """At the least: what is not in use is read from its files again."""
    ram_kept_bytes: int
    """With everything kept in memory."""


@dataclass(frozen=True)
class ModelSizes:
    """Of an engine's experts: the large models that may have to take turns on the device. In bytes."""

    names: tuple[str, ...]
    """Of the experts, as phases name them."""
    expert: int
    blocks: int
    """What of an expert is streamed through the device in every pass."""


class Implementation(Protocol):
    """What the module offers that `EngineSpec.implementation` names. Importing it loads nothing heavy."""

    def identity_of(self, options: EngineOptions, digest: Digest) -> Identity:
        """What the engine's frames depend on, found without loading it."""
        ...

    def create_engine(self, options: EngineOptions, digest: Digest, keep: Keep, report: Reporter) -> Engine:
        """The engine, not entered yet. `keep` stores what serves several segments.

        Raises InputError when this machine cannot have it.
        """
        ...

    def phases_of(self, options: EngineOptions, segment: Segment) -> Sequence[Phase]:
        """`Engine.phases` without the engine. Raises InputError for missing files."""
        ...

    def memory_needs(self, options: EngineOptions, segments: Sequence[Segment]) -> Mapping[str, MemoryNeed]:
        """What each memory mode needs for these segments; empty where that is unknown."""
        ...

    def model_sizes(self, options: EngineOptions) -> ModelSizes | None:
        """How large its experts are; None where there are none, or that is unknown."""
        ...

    def overlay_rows(self, size: Size, fps: Fraction) -> int:
        """Rows at a frame's top that are text drawn by the engine, and no picture."""
        ...


def implementation_of(name: str) -> Implementation:
    """The engine of that name, not created yet."""
    return cast("Implementation", import_module(spec_of(name).implementation))
