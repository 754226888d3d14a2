"""What an engine declares about itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from fractions import Fraction

    from svi_story.enginespec.sampling import ClipSampling
    from svi_story.fields import Part

    OpenFile = Callable[[str], Path]
    """From a file's name on the board to its place on the disk."""


KERNELS = (
    *("auto", "flash-attn-4", "flash-attn-3", "flash-attn-2", "sage-2", "sage-3"),
    *("torch-flash", "torch-cudnn", "torch-efficient", "torch-math"),
)
"""Attention kernels by name; `auto` takes flash-attn where it is there, as the model was trained with it."""

PRECISIONS = ("bf16", "int8")
"""How experts are held in memory; bf16 stands for the type that they compute in."""


@dataclass(frozen=True)
class EngineOptions:
    """The engine options of the command line."""

    models: tuple[Path, ...] = (Path("models"),)
    """The folders with the weights."""
    dtype: str = "bfloat16"
    """What the experts compute in: bfloat16 or float32."""
    attention: str = "auto"
    """The attention kernel by name."""
    compile: bool = False
    """Whether the experts' blocks are compiled with torch.compile."""
    memory: str = "auto"
    """The memory mode: auto, resident, offload or stream."""
    precision: str = "bf16"
    """How the experts are held in memory: bf16 or int8."""
    vae: str = "whole"
    """How the VAE works: on whole pictures, in strips (other last bits), or in tiles, which may show."""
    threads: int = 0
    """With how many threads the CPU computes; 0: as many as it takes by itself."""
    workers_on_host: int = 1
    """How many workers may run on this machine, which share its RAM."""
    weights: tuple[tuple[str, Path], ...] = ()
    """Roles (such as high) and the files that the user chose for them."""


@dataclass(frozen=True)
class Training:
    """What a model was trained on: the lints measure a board against it."""

    frames: int
    """Of one pass."""
    size: tuple[int, int]
    """Width and height in pixels."""
    shapes: tuple[Fraction, Fraction]
    """Width over height that is near enough to `size`, from and to."""
    rates: tuple[int, int]
    """Frames per second at which its motion looks right, from and to."""
    steps: int
    """The fewest sampling steps without a distilled LoRA."""


def _no_options(_settings: Any, _clip: ClipSampling, _open_file: OpenFile) -> object:
    return None


@dataclass(frozen=True)
class EngineSpec:
    """An engine, as the rest of the program sees it before it is started."""

    name: str
    """As a board and `--engine` name it."""
    summary: str
    """Half a sentence for help and the schema."""
    implementation: str
    """The module that implements `svi_story.engines.Implementation`; it may need heavy libraries."""
    grid: int
    """One pass makes `grid` * k + 1 frames, k >= 1."""
    settings: type[Part]
    """Its part of `engine:` in a board."""
    size: tuple[int, int]
    """Width and height where neither board nor preset sets them."""
    fps: Fraction
    """Frames per second where the board does not say."""
    overlap: Callable[[Any], int] = lambda _settings: 1
    """Settings -> leading frames of a continuing segment that repeat its parent's last: `grid` * n + 1."""
    continued: Callable[[Any], int] = lambda _settings: 0
    """Settings -> the fewest frames of a segment that another one continues from."""
    options: Callable[[Any, ClipSampling, OpenFile], object] = _no_options
    """(Settings, the clip with its own ones, OpenFile) -> `Segment.options`: immutable and hashable."""
    preset_size: Callable[[Any], tuple[int, int] | None] = lambda _settings: None
    """Settings -> the size that their preset stands for."""
    describe: Callable[[Any], Mapping[str, str]] = lambda _options: {}
    """`Segment.options` -> the settings that the review page shows, by name."""
    system: Callable[[Any, str], str] = lambda _options, _model: ""
    """(`Segment.options`, what the model calls itself) -> its name; empty for an engine without one."""
    training: Training | None = None
    """None: no lint compares a board with it."""
    lints: frozenset[str] = frozenset()
    """Those that apply to it, besides those of every film."""
    memory_modes: tuple[str, ...] = ()
    """From the fastest to the one that needs the least on the GPU."""
    frame_options: tuple[str, ...] = ()
    """The fields of EngineOptions that its frames depend on."""
    needs_gpu: bool = False
    uses_weights: bool = False
    """Whether it reads models and LoRAs from `EngineOptions.models`."""
    follows_board: bool = False
    """Whether it makes any number of frames, so that it shows a board in the timing of the engine that the
    board names."""
    still_subject: bool = False
    """Whether only the camera moves over one picture."""

    def makes(self, frames: int) -> bool:
        """Whether it can make that many frames in one pass."""
        return frames > self.grid and frames % self.grid == 1

    def nearest(self, frames: int) -> tuple[int, int]:
        """The two frame counts on the grid around one that is not, nearer first, ties to the longer."""
        rest = (frames - 1) % self.grid
        below, above = max(frames - rest, self.grid + 1), max(frames - rest + self.grid, self.grid + 1)
        return (above, below) if 2 * rest >= self.grid else (below, above)

    @property
    def is_model(self) -> bool:
        """Whether a trained model renders the pictures."""
        return self.training is not None
