"""What an SVI engine is made with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from svi_story.engines.svi.device import FreeMemory
    from svi_story.engines.svi.weights.locate import ModelFolders


@dataclass(frozen=True)
class SviOptions:
    """What the machine and the user decide, besides the board."""

    where: ModelFolders
    dtype: str = "bfloat16"
    """What the experts and the text encoder compute in; the VAE is always float32."""
    device: str = "auto"
    attention: str = "auto"
    compile: bool = False
    """Whether the experts' blocks are compiled."""
    checkpoint_every: int = 5
    """Steps between two checkpoints."""
    memory: str = "auto"
    """The memory mode to start with: auto, resident, offload or stream."""
    vae: str = "whole"
    """How the VAE works from the start: whole, strips or tiles."""
    precision: str = "bf16"
    """How the experts are held in memory: bf16, which stands for their dtype, or int8."""
    free_memory: FreeMemory | None = None
    """The free memory to plan with; None measures it."""
    threads: int = 0
    """With how many threads the CPU computes, which decides the last bits; 0 leaves it to torch."""
    workers_on_host: int = 1
    """How many worker processes share this machine's RAM, this one included."""
