"""What the SVI tests share: the tiny reference set, segments, checkpoints, and files with planted faults."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections import defaultdict
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before diffusers is imported anywhere

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from svi_story.engines.base import Carry
from svi_story.engines.svi.engine import Svi
from svi_story.engines.svi.options import SviOptions
from svi_story.engines.svi.weights.locate import ModelFolders, find_weights
from svi_story.enginespec.sampling import Guidance, Sampler
from svi_story.events import Warned
from svi_story.plan.model import Anchor, Segment, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from svi_story.engines.base import Frame, Latents
    from svi_story.engines.svi.weights.catalogue import ModelPaths
    from svi_story.events import Event, Reporter

torch.set_num_threads(1)

DATA = Path(__file__).parent / "data" / "svi"
MODELS = DATA / "models"
SETTINGS = json.loads((DATA / "settings.json").read_text("utf-8"))
VARIANTS = ("2.0", "2.0-pro")
EXPERT_FOLDERS = {e: Path("Wan-AI/Wan2.2-I2V-A14B") / f"{e}_noise_model" for e in ("high", "low")}
CONVERTED = Path("DiffSynth-Studio/Wan-Series-Converted-Safetensors")
VAE_FILE = CONVERTED / "Wan2.1_VAE.safetensors"
TEXT_FILE = CONVERTED / "models_t5_umt5-xxl-enc-bf16.safetensors"
LORAS = Path("Stable-Video-Infinity/version-2.0")
CPU = torch.device("cpu")


@cache
def units() -> dict[str, Tensor]:
    """What the reference implementation computes, piece by piece."""
    return load_file(DATA / "units.safetensors")


@cache
def chain() -> dict[str, Tensor]:
    """What the reference implementation makes of three clips."""
    return load_file(DATA / "chain.safetensors")


def anchor_picture() -> Frame:
    """The reference image."""
    return np.asarray(Image.open(DATA / "anchor.png").convert("RGB"))


def sampler(variant: str = "2.0", **changes: object) -> Sampler:
    """The reference chain's sampler, with changes."""
    assert variant in ("2.0", "2.0-pro")
    base = Sampler(
        variant="2.0" if variant == "2.0" else "2.0-pro",
        steps=SETTINGS["num_inference_steps"],
        guidance=Guidance(SETTINGS["cfg_scale"], SETTINGS["cfg_scale"]),
        shift=SETTINGS["sigma_shift"],
        boundary=SETTINGS["switch_boundary"],
        motion_latents=SETTINGS["motion_latents"],
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # the tests' own keywords


def segment(
    clip: int = 0, variant: str = "2.0", settings: Sampler | None = None, **changes: object
) -> Segment:
    """One clip of the reference chain, with changes."""
    size = Size(SETTINGS["width"], SETTINGS["height"])
    base = Segment(
        clip=f"clip-{clip}",
        index=0,
        prompt=SETTINGS["prompts"][clip],
        negative_prompt=SETTINGS["negative_prompt"],
        seed=SETTINGS["seeds"][clip],
        size=size,
        fps=Fraction(15),
        frames=SETTINGS["frames_per_clip"],
        overlap=0,
        first_frame=0,
        anchor=Anchor(DATA / "anchor.png", size, "crop", "anchor"),
        engine="svi",
        options=settings or sampler(variant),
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # the tests' own keywords


@dataclass
class Memory:
    """A checkpoint in memory, which remembers every state and can lose all but the first few."""

    state: Latents | None = None
    saved: list[Latents] = field(default_factory=list)

    def load(self) -> Latents | None:
        """The newest state."""
        return self.state

    def save(self, state: Latents) -> None:
        """Keep a copy."""
        self.state = {name: np.array(array) for name, array in state.items()}
        self.saved.append(self.state)


def engine(
    root: Path = MODELS,
    dtype: str = "float32",
    pictures: Mapping[str, Frame] | None = None,
    report: Reporter = lambda _: None,
    **options: object,
) -> Svi:
    """An engine on the CPU; `pictures` has anchors by their hash, else all show the reference image."""
    shown = pictures or defaultdict(anchor_picture)
    given = SviOptions(folders(root), dtype=dtype, device="cpu", **options)  # type: ignore[arg-type]  # the tests' keywords
    return Svi(given, anchor_pixels=lambda anchor: shown[anchor.pixels], report=report)


def ignore_step(done: int, steps: int) -> None:
    """An on_step that does nothing."""


@dataclass
class Made:
    """One clip as an engine made it."""

    latents: NDArray[np.float32]
    frames: NDArray[np.uint8]

    def carry(self) -> Carry:
        """What the next clip gets."""
        return Carry("svi", {"latents": self.latents}, list(self.frames[-1:]))


def render(svi: Svi, segments: Iterable[Segment]) -> list[Made]:
    """A chain of segments, one after the other."""
    made: list[Made] = []
    for one in segments:
        latents = svi.sample(one, made[-1].carry() if made else None, Memory(), ignore_step)
        frames = np.stack(list(svi.decode(one, latents)))
        made.append(Made(np.asarray(latents["latents"], dtype=np.float32), frames))
    return made


def folders(root: Path = MODELS) -> ModelFolders:
    """A folder as the place where weights are searched."""
    return ModelFolders((root,))


def find_models(root: Path) -> ModelPaths:
    """Every model's files in a folder."""
    return find_weights(folders(root)).models()


def copy_models(to: Path) -> Path:
    """The reference models in a folder where they may be changed."""
    return Path(shutil.copytree(MODELS, to / "models"))


def change_file(file: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor] | None]) -> None:
    """Write a safetensors file again, after a change of its tensors (in place, or returned)."""
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}  # not mapped from the file
    changed = change(tensors) or tensors
    save_file({key: tensor.contiguous() for key, tensor in changed.items()}, file)


def lora_file(root: Path, expert: str, variant: str = "2.0") -> Path:
    """One of the SVI LoRAs."""
    suffix = "_pro" if variant == "2.0-pro" else ""
    return root / LORAS / f"SVI_Wan2.2-I2V-A14B_{expert}_noise_lora_v2.0{suffix}.safetensors"


def deviation(got: NDArray[np.float32] | Tensor, want: Tensor) -> float:
    """The largest difference, in standard deviations of what is wanted."""
    return float((torch.as_tensor(got) - want).abs().max() / want.std())


@dataclass
class Recorder:
    """A reporter that remembers."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def __str__(self) -> str:
        return "\n".join(str(event) for event in self.events if isinstance(event, Warned))


@dataclass
class Full:
    """Calls a function, and lets some of the calls fail as if memory ran out."""

    call: Callable[..., Any]
    fails: set[int]
    error: Callable[[], Exception] = lambda: torch.OutOfMemoryError("CUDA out of memory (a test)")
    calls: int = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls in self.fails:
            raise self.error()
        return self.call(*args, **options)


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types none of it
    """Counts the bytes of the tensors that an operation makes, as long as they live."""

    def __init__(self, *known: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        held = [tensor for model in known for tensor in (*model.parameters(), *model.buffers())]
        self.seen = {tensor.untyped_storage()._cdata for tensor in held}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map(self._count, made)
        return made

    def _count(self, made: object) -> None:
        if not isinstance(made, torch.Tensor) or made.untyped_storage()._cdata in self.seen:
            return
        storage = made.untyped_storage()
        self.seen.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, name: int, count: int) -> None:
        self.seen.discard(name)
        self.now -= count
