"""Who makes it: one contract, several engines. Nothing heavy is imported before an engine is entered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from svi_story.engines.base import Checkpoint, Engine
    from svi_story.plan.keys import Identity

    Digest = Callable[[Path], str]
    """A file's sha256 in hex. Raises InputError when it cannot be read."""
    Keep = Callable[[str], Checkpoint]
    """A durable place for a content address."""

NAMES = ("svi", "animatic")


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
    """The memory rung: resident, offload or stream."""


def identity_of(name: str, options: EngineOptions, digest: Digest) -> Identity:
    """What an engine's frames depend on, found without loading it."""
    if name == "animatic":
        from svi_story.engines.animatic import AnimaticIdentity

        return AnimaticIdentity()
    from svi_story.engines.svi.identity import SviIdentity

    return SviIdentity(options.models, options.dtype, digest)


def create(name: str, options: EngineOptions, digest: Digest, keep: Keep) -> Engine:
    """The engine of that name, not entered yet. Raises InputError when this machine cannot have it."""
    if name == "animatic":
        from svi_story.engines.animatic import Animatic

        return Animatic()
    from svi_story.engines.svi import open_engine

    return open_engine(options, digest, keep)
